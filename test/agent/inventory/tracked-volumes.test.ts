import test from 'ava'
import { isTracked, lookAtTrackedVolumes } from '../../../src/agent/inventory/tracked-volumes.ts'
import type { DescribedEraVolume } from '../../../src/agent/era/description.ts'
import type { LogicalVolume } from '../../../src/agent/lvm/parse.ts'

const shown: DescribedEraVolume = {
  ...{ name: 'srv', deviceName: 'srv', dataDevice: '/dev/sdb', metadataDevice: '/dev/sdc', blockBytes: 65536 },
  ...{ sizeBytes: 2 ** 30, active: true, suspended: false, problem: '', line: 'l', lineBecause: 'attached' },
  ...{ guardCheckedAtMs: 1, snapshots: 0, underWay: '', createdAtMs: 1 },
  usage: { currentEra: 2, metadataUsedBytes: 4096, metadataTotalBytes: 8192, openCount: 0, heldMetadataSnapshot: 9 }
}
const id = 'era:00000000-0000-4000-8000-000000000000'
const key = 'dm-uuid:DELTAMAPPER-era-00000000-0000-4000-8000-000000000000'
const tracked = { listEra: async () => ({ volumes: [shown] }) }

test('whose a metadata snapshot is, the lease records say', async (t) => {
  const look = (device: string) => lookAtTrackedVolumes(tracked, [{ name: 'srv', id }], [{ device }])
  const facts = { name: 'srv', metadataUsedBytes: 4096, metadataTotalBytes: 8192, heldMetadataSnapshot: 9 }
  t.like(await look(key), [{ ...facts, heldByUs: true }])
  t.like(await look('dm-uuid:LVM-another'), [{ ...facts, heldByUs: false }])
})

test('a data device is told by its UUID', (t) => {
  const uuid = 'abcdef-ghij-klmn-opqr-stuv-wxyz-ABCDEF'
  const volume = { uuid } as LogicalVolume
  const group = 'G'.repeat(32)
  const own = 'abcdefghijklmnopqrstuvwxyzABCDEF'
  t.true(isTracked(volume, [{ dataIdentity: 'wwid:x' }, { dataIdentity: `dm-uuid:LVM-${group}${own}` }]))
  t.false(isTracked(volume, [{ dataIdentity: `dm-uuid:LVM-${group}${'x'.repeat(32)}` }]))
  t.false(isTracked(volume, [{ dataIdentity: `path:/dev/${own}` }]))
})
