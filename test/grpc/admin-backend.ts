/**
 * A backend of the Admin service for the tests: keeps what it is asked, answers with the largest numbers that there are, and fails on
 * request.
 */
import { DeltamapperError } from '../../src/errors.ts'
import type {
  DescribedEraSnapshot as EraSnapshot,
  DescribedEraVolume as EraVolume
} from '../../src/agent/era/description.ts'
import type { DescribedPool as Pool, DescribedThin as Volume } from '../../src/agent/owned-pools/description.ts'
import type { AdminBackend, AdminMethod, AdminResponse } from '../../src/grpc/admin.ts'

export const fullPool: Pool = {
  name: 'tank',
  deviceName: 'tank',
  metadataDevice: '/dev/disk/by-id/m',
  dataDevice: '/dev/disk/by-id/d',
  blockBytes: 65536,
  lowWaterBytes: 2 ** 30,
  whenFull: 'queue',
  state: 'out-of-data-space',
  problem: 'it is full',
  transactionId: String(2n ** 64n - 1n),
  usage: {
    dataUsedBytes: Number.MAX_SAFE_INTEGER,
    dataTotalBytes: Number.MAX_SAFE_INTEGER,
    metadataUsedBytes: 4096,
    metadataTotalBytes: 17_045_913_600,
    transactionId: String(2n ** 64n - 2n),
    heldMetadataSnapshot: 4_161_599,
    needsCheck: true
  },
  volumes: 1,
  snapshots: 2 ** 24 - 2,
  underWay: 'create-snapshot',
  createdAtMs: 1_800_000_000_000
}

export const inactivePool: Pool = {
  ...{ name: 'spare', deviceName: 'spare', metadataDevice: '/dev/m', dataDevice: '/dev/d' },
  ...{ blockBytes: 2 ** 30, lowWaterBytes: 0, whenFull: 'error', state: 'inactive', problem: '' },
  ...{ transactionId: '0', volumes: 0, snapshots: 0, underWay: '', createdAtMs: 1 }
}

export const snapshot: Volume = {
  ...{ pool: 'tank', name: 'monday', kind: 'snapshot', id: 'thin:2', thinId: 2 ** 24 - 1 },
  ...{ sizeBytes: 2 ** 53 - 512, volume: 'documents', volumeId: 'thin:1', origin: 'documents' },
  ...{ creationTime: 2 ** 32 - 1, transactionId: String(2n ** 63n), createdAtMs: 1_800_000_000_000, mappedBytes: 0 }
}

export const volume: Volume = {
  ...snapshot,
  ...{ name: 'documents', kind: 'volume', id: 'thin:1', thinId: 0, origin: '' },
  device: { path: '/dev/mapper/tank-documents', readOnly: false, openCount: 3 }
}

export const eraVolume: EraVolume = {
  ...{ name: 'srv', deviceName: 'srv', dataDevice: '/dev/vg0/srv', metadataDevice: '/dev/vg0/srv_era' },
  ...{ blockBytes: 2 ** 30, sizeBytes: 2 ** 53 - 512, active: true, suspended: false, problem: 'it is full' },
  usage: {
    currentEra: 2 ** 32 - 1,
    metadataUsedBytes: 4096,
    metadataTotalBytes: 17_045_913_600,
    heldMetadataSnapshot: 4_161_599,
    openCount: 1
  },
  ...{ dataBytes: Number.MAX_SAFE_INTEGER, line: 'b5c2', lineBecause: 'attached', guardCheckedAtMs: 1_800_000_000_000 },
  ...{ snapshots: 60, underWay: 'snapshot', createdAtMs: 1_800_000_000_000 }
}

export const inactiveEraVolume: EraVolume = {
  ...{ name: 'db', deviceName: 'db', dataDevice: '/dev/sdb1', metadataDevice: '/dev/sdb2', blockBytes: 65536 },
  ...{ sizeBytes: 2 ** 40, active: false, suspended: false, problem: '', line: 'a', lineBecause: 'a discard' },
  ...{ guardCheckedAtMs: 1, snapshots: 0, underWay: '', createdAtMs: 1 }
}

export const eraSnapshot: EraSnapshot = {
  ...{ volume: 'srv', name: 'monday', id: 'era-snapshot:1', line: 'b5c2', boundaryEra: 2 ** 32 - 1 },
  ...{ sizeBytes: 2 ** 53 - 512, lower: "LVM's vg0/monday", exact: true, suspendedMs: 812 },
  ...{ takenAtMs: 1_800_000_000_000, warning: 'nobody has /dev/mapper/srv open', lowerTag: 'deltamapper_1' }
}

export const standingBase: AdminResponse<'getBase'> = {
  ...{ handle: 'vg/monday', pool: 'pool-uuid', identity: 'lv-uuid', volume: 'origin-uuid', state: 'stands' },
  ...{ because: 'its record stands for it', record: 'lv-uuid.0badcafe.base', recordBytes: Number.MAX_SAFE_INTEGER },
  ...{ recordedAtMs: 1_800_000_000_000, firstServedAtMs: 1_799_999_999_000, goneAtMs: 1_800_000_001_000, answers: 2 },
  ...{ mappedBlocks: 2 ** 40, sizeBytes: 2 ** 53 - 512 }
}

export const lostBase: AdminResponse<'getBase'> = {
  ...{ handle: 'vg/tuesday', pool: 'pool-uuid', identity: 'lv-other', volume: 'origin-uuid', state: 'must-stay' },
  ...{ because: 'it was not made read-only', record: '', firstServedAtMs: 1_800_000_000_000, answers: 0 },
  ...{ mappedBlocks: 0, sizeBytes: 65536 }
}

/** What `calls` has of each call. */
export type RecordedCall = [method: AdminMethod, request: object]

export function recordingBackend(): { backend: AdminBackend; calls: RecordedCall[]; hold: { until?: Promise<void> } } {
  const calls: RecordedCall[] = []
  const hold: { until?: Promise<void> } = {}
  const answers = {
    ...{ createPool: fullPool, activatePool: inactivePool, deactivatePool: inactivePool, growPool: fullPool },
    ...{ removePool: {}, getPool: fullPool, acceptKernel: fullPool, listPools: { pools: [fullPool, inactivePool] } },
    ...{ createVolume: volume, growVolume: volume, activateVolume: volume, deactivateVolume: snapshot },
    ...{ deleteVolume: {}, listVolumes: { volumes: [volume] }, createSnapshot: snapshot, deleteSnapshot: {} },
    ...{ listSnapshots: { snapshots: [] }, adoptThin: volume, forgetThin: {} },
    ...{ attachEra: eraVolume, detachEra: {}, activateEra: eraVolume, deactivateEra: inactiveEraVolume },
    ...{ growEra: eraVolume, listEra: { volumes: [eraVolume, inactiveEraVolume] }, createEraSnapshot: eraSnapshot },
    ...{ listBases: { bases: [standingBase, lostBase], folder: '/var/lib/deltamapper/bases' }, dropBase: {} },
    getBase: standingBase,
    readBase: { record: 'a.base', recordBytes: 3, part: new Uint8Array([1, 2, 3]) },
    lendBase: { handle: 'vg/monday' },
    beginSnapshot: { token: 'b5c2', boundaryEra: 7, deadlineMs: 30_000 },
    endSnapshot: { snapshot: { ...eraSnapshot, removedAtMs: 1_800_000_000_001, exact: false } },
    listEraSnapshots: { snapshots: [eraSnapshot] },
    reconcile: {
      settled: ['it was begun, and carried out'],
      findings: [
        { kind: 'thin-unknown', pool: 'tank', thinId: 0, what: 'there is one', remedy: 'adopt it' },
        { kind: 'pool-inactive', pool: 'tank', what: 'it is not', remedy: 'activate it' }
      ]
    }
  }
  const backend = Object.fromEntries(
    Object.entries(answers).map(([method, answer]) => [
      method,
      async (request: { pool?: string }) => {
        calls.push([method as AdminMethod, request])
        await hold.until
        if (request.pool === 'busy') throw new DeltamapperError('DM_DEVICE_BUSY', 'busy is in use', 'wait')
        if (request.pool === 'defect') throw new TypeError('undefined is no pool')
        return answer
      }
    ])
  )
  return { backend: backend as unknown as AdminBackend, calls, hold }
}
