/**
 * Which source a handle's first part means; above all `*`, which leaves it to the agent.
 */
import { join } from 'node:path'
import { isDeepStrictEqual } from 'node:util'
import test, { type ExecutionContext } from 'ava'
import type { DeviceReference } from '../../../native/device-mapper.ts'
import type { LogicalVolume } from '../../../src/agent/lvm/parse.ts'
import { loadRecordedPool } from '../../../src/agent/answers/recorded-pool.ts'
import type { SnapshotSource } from '../../../src/agent/walks/snapshot.ts'
import { Sources } from '../../../src/agent/answers/sources.ts'
import { DeltamapperError, type ErrorCode } from '../../../src/errors.ts'
import { numbersOfAnother, recordedDevices, recordedVolumes } from '../../support/recorded-lvm.ts'
import { testFolder } from '../../support/test-folder.ts'
import { writeSamplePool } from '../sample-pool.ts'

const folder = testFolder(test)
let recorded: Map<string, SnapshotSource>, twins: typeof recorded
test.before(async () => {
  const sample = await writeSamplePool(join(folder, 'sample'))
  recorded = new Map([['sample', await loadRecordedPool('sample', sample.folder)]])
  twins = new Map([...recorded, ['twin', await loadRecordedPool('twin', sample.folder)]])
})

/** A node with the recorded volume group, and others of those names. */
function node(others: Record<string, string[]> = {}) {
  const volumes = recordedVolumes('volumes')
  const more = Object.entries(others).flatMap(([vgName, names]) =>
    names.map((name): LogicalVolume => ({
      ...volumes.find((lv) => lv.name === 'thick')!,
      vgName,
      name,
      role: ['public']
    }))
  )
  const all = [...volumes, ...more]
  return {
    deviceMapper: recordedDevices(),
    lvm: {
      logicalVolumes: async (group: string) => all.filter(({ vgName }) => vgName === group),
      allLogicalVolumes: async () => all,
      snapshotLinks: async () => undefined
    }
  }
}

const wherever = async (sources: Sources, name: string) => (await sources.find('*'))?.snapshot(name)

async function fails(t: ExecutionContext, promise: Promise<unknown>, code: ErrorCode, words: RegExp) {
  const error = await t.throwsAsync(promise, { instanceOf: DeltamapperError, message: words })
  t.is(error.code, code)
}

test('of recorded pools, it is the one that has the snapshot', async (t) => {
  t.is((await wherever(new Sources(recorded), 'mon'))?.handle, 'sample/mon')
  t.is(await wherever(new Sources(recorded), 'sun'), undefined)
  await fails(t, wherever(new Sources(twins), 'mon'), 'DM_HANDLE_AMBIGUOUS', /^sample and twin each have a volume mon$/)
})

test('of volume groups, it is the one that has the volume', async (t) => {
  const sources = new Sources(recorded, node({ other: ['elsewhere'] }))
  const snapshot = await wherever(sources, 'monday')
  t.is(snapshot?.handle, 'my-vg/monday')
  t.deepEqual(snapshot, await (await sources.find('my-vg'))?.snapshot('monday'))
  t.is(await wherever(sources, 'nowhere'), undefined)
  await fails(t, wherever(sources, 'elsewhere'), 'DM_NOT_TRACKED', /other\/elsewhere/)
})

test('two that have it are one too many, thin or not', async (t) => {
  const sources = new Sources(recorded, node({ other: ['monday', 'mon'] }))
  await fails(t, wherever(sources, 'monday'), 'DM_HANDLE_AMBIGUOUS', /^my-vg and other each have a volume monday$/)
  await fails(t, wherever(sources, 'mon'), 'DM_HANDLE_AMBIGUOUS', /^sample and other /)
})

test("a pool of an agent's own is not asked for by its device, whose snapshots would have another record", async (t) => {
  const { deviceMapper, lvm } = node()
  const pool = await deviceMapper.info('my--vg-po--ol-tpool')
  const devices = {
    ...deviceMapper,
    info: async (device: DeviceReference) =>
      device === 'tank-pool' ? { ...pool!, uuid: 'DELTAMAPPER-pool-tank' } : deviceMapper.info(device),
    table: async (device: DeviceReference) =>
      deviceMapper.table(isDeepStrictEqual(device, { uuid: 'DELTAMAPPER-pool-tank' }) ? pool!.name : device)
  }
  // Whether this agent has the pool on record, or another one has.
  const source = { snapshot: async () => undefined }
  for (const ownedPools of [undefined, { source: (name: string) => (name === 'tank' ? source : undefined) }]) {
    const sources = new Sources(new Map(), { deviceMapper: devices, lvm, ownedPools })
    await fails(t, sources.find('tank-pool'), 'DM_NOT_TRACKED', /^tank-pool is the device of pool tank, /)
    t.is((await sources.find('tank')) === source, ownedPools !== undefined)
  }
})

test('a number that went to another device between two calls does not make a pool or its volumes unknown', async (t) => {
  const { deviceMapper, lvm } = node()
  const sources = new Sources(new Map(), { lvm, deviceMapper: numbersOfAnother(deviceMapper, 'my--vg-thick') })
  const pool = await sources.find('my--vg-po--ol-tpool')
  t.is((await pool?.snapshot('my--vg-monday'))?.handle, 'my--vg-po--ol-tpool/my--vg-monday')
})

test('what LVM hides has no name', async (t) => {
  t.is(await wherever(new Sources(recorded, node()), 'po-ol_tdata'), undefined)
})
