import test from 'ava'
import type { DeviceInfo, DeviceReference, TableRow } from '../../../native/device-mapper.ts'
import type { OwnedThin } from '../../../src/agent/catalog/owned-pools.ts'
import { poolUuid, thinUuid } from '../../../src/agent/node/naming.ts'
import { ownedPoolSource } from '../../../src/agent/answers/owned-pool.ts'

const volume: OwnedThin = {
  ...{ id: 'thin:v', pool: 'tank', name: 'documents', kind: 'volume', thinId: 0, dmName: 'tank-documents' },
  ...{ sizeBytes: 2 ** 30, volume: 'thin:v', origin: undefined, creationTime: 0, transactionId: 0n, createdAt: 1 }
}
const snapshot: OwnedThin = {
  ...volume,
  ...{ id: 'thin:s', name: 'monday', kind: 'snapshot', thinId: 1, dmName: 'tank-monday', origin: 'thin:v' },
  ...{ creationTime: 1, transactionId: 1n }
}

/** Device-mapper with these devices: UUID, and the one row of its table. */
function devicesOf(devices: Record<string, TableRow>) {
  const find = (reference: DeviceReference) => {
    if (typeof reference === 'string') return undefined
    if ('uuid' in reference) return Object.keys(devices).indexOf(reference.uuid)
    return reference.major === 254 ? reference.minor : -1
  }
  return {
    async info(reference: DeviceReference): Promise<DeviceInfo | undefined> {
      const minor = find(reference) ?? -1
      const uuid = Object.keys(devices)[minor]
      if (uuid === undefined) return undefined
      const counts = { openCount: 0, eventNumber: 0, targetCount: 1 }
      const flags = { suspended: false, readOnly: false, removeDeferred: false, internallySuspended: false }
      const tables = { hasLiveTable: true, hasInactiveTable: false }
      return { name: `device-${minor}`, uuid, major: 254, minor, ...counts, ...flags, ...tables }
    },
    async table(reference: DeviceReference): Promise<readonly TableRow[]> {
      return Object.values(devices).slice(find(reference), (find(reference) ?? -1) + 1)
    }
  }
}

const row = (targetType: string, params: string, lengthSectors = 2 ** 21): TableRow => ({
  ...{ startSector: 0, lengthSectors, targetType, params }
})
const active = {
  [poolUuid({ name: 'tank' })]: row('thin-pool', '254:1 254:2 128 0 0'),
  metadata: row('linear', '8:0 0')
}

function source(devices: Record<string, TableRow>, thins = [volume, snapshot]) {
  const ownedPools = {
    findThin: async (id: string) => thins.find((each) => each.id === id),
    findThinByName: async (pool: string, name: string) => thins.find((each) => each.pool === pool && each.name === name)
  }
  return ownedPoolSource('tank', { ownedPools }, devicesOf(devices))
}

test('a snapshot that is not active, with everything the catalog has of it', async (t) => {
  t.deepEqual(await source(active).snapshot('monday'), {
    metadataDevice: { major: 254, minor: 1, uuid: 'metadata' },
    dataUuid: '',
    poolIdentity: 'DELTAMAPPER-pool-tank',
    ...{ kind: 'thin', handle: 'tank/monday', identity: 'thin:s', volume: 'thin:v', volumeName: 'tank/documents' },
    writable: false,
    ...{ thinId: 1, sizeBytes: 2 ** 30, transactionId: 1n, metadataPath: '/dev/mapper/device-1', live: true },
    madeReadOnly: true,
    pool: { uuid: poolUuid({ name: 'tank' }) },
    poolDevice: { major: 254, minor: 0 }
  })
})

test('a volume is no snapshot of itself', async (t) => {
  const found = await source(active).snapshot('documents')
  t.like(found, { identity: 'thin:v', thinId: 0, transactionId: 0n })
  t.is(found?.volume, undefined)
})

test('a snapshot whose volume was deleted still belongs to it', async (t) => {
  const found = await source(active, [snapshot]).snapshot('monday')
  t.is(found?.volume, 'thin:v')
  t.regex(found?.volumeName ?? '', /that was deleted/)
})

test('what the catalog does not have is not found', async (t) => {
  t.is(await source(active).snapshot('tank-monday'), undefined)
  t.is(await source(active).snapshot('thin-1'), undefined)
})

test('of an inactive pool nothing is known', async (t) => {
  await t.throwsAsync(source({}).snapshot('monday'), { code: 'DM_POOL_INACTIVE', message: /tank is not active/ })
  const impostor = { 'DELTAMAPPER-pool-other': row('thin-pool', '254:1 254:2 128 0 0') }
  await t.throwsAsync(source(impostor).snapshot('monday'), { code: 'DM_POOL_INACTIVE' })
})

test('a device of another size than the catalog has would be backed up by half', async (t) => {
  const own = (sectors: number) => ({ ...active, [thinUuid(snapshot)]: row('thin', '254:0 1', sectors) })
  t.like(await source(own(2 ** 21)).snapshot('monday'), { sizeBytes: 2 ** 30 })
  for (const sectors of [2 ** 21 + 8, 2 ** 21 - 8]) {
    await t.throwsAsync(source(own(sectors)).snapshot('monday'), { code: 'DM_CATALOG_DISAGREES' })
  }
})
