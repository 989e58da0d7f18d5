/**
 * The inventory of this very machine, which may have device-mapper and LVM or not: it says so, and does not fail.
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import pino from 'pino'
import { DeviceMapper } from '../../../native/device-mapper.ts'
import { openCatalog } from '../../../src/agent/catalog/catalog.ts'
import type { RecordedPoolFacts } from '../../../src/agent/inventory/examination.ts'
import { Inventory, type LiveInventory } from '../../../src/agent/inventory/inventory.ts'
import { LvmReporter } from '../../../src/agent/lvm/report.ts'
import { MetadataSnapshotLeases } from '../../../src/agent/leases/metadata-snapshot-lease.ts'

function temporaryFolder(t: ExecutionContext): string {
  const folder = mkdtempSync(join(tmpdir(), 'inventory-'))
  t.teardown(() => {
    rmSync(folder, { recursive: true })
  })
  return folder
}

/** Without device-mapper, whatever this machine has: its nodes would be in an empty folder. */
function withoutDeviceMapper(t: ExecutionContext, changes: Partial<LiveInventory> = {}): LiveInventory {
  const devDirectory = temporaryFolder(t)
  const deviceMapper = new DeviceMapper({ devDirectory })
  t.teardown(() => deviceMapper.close())
  const lvmCommand = ['/nowhere/lvm']
  const lvm = new LvmReporter({ command: lvmCommand })
  return { deviceMapper, lvm, lvmCommand, catalogPath: join(devDirectory, 'catalog'), ...changes }
}

function inventory(t: ExecutionContext, live: LiveInventory | undefined, recordedPools: RecordedPoolFacts[] = []) {
  const made = new Inventory({ live, recordedPools, deadlineMs: 30_000 })
  t.teardown(() => made.close())
  return made
}

test('a machine without device-mapper and LVM: what is missing, and the way out', async (t) => {
  const live = withoutDeviceMapper(t)
  writeFileSync(live.catalogPath, 'not opened')
  const before = Date.now()
  const seen = await inventory(t, live).examine()
  t.is(seen.seenBy, 'command')
  t.true(seen.live)
  t.true(['DM_CONTROL_MISSING', 'DM_LIBDEVMAPPER_MISSING'].includes(seen.deviceMapper.problem?.code ?? ''))
  t.like(seen.lvm.problem, { code: 'DM_LVM_FAILED' })
  t.like(seen.catalog, { consulted: false, sizeBytes: 'not opened'.length })
  t.deepEqual(seen.pools, [])
  t.deepEqual(
    seen.findings.map(({ severity, kind }) => [severity, kind]),
    [
      ['problem', 'device-mapper-unusable'],
      ['note', 'lvm-silent'],
      ['note', 'catalog-not-consulted']
    ]
  )
  t.true(seen.takenAtMs >= before && seen.takenAtMs <= Date.now() && seen.tookMs >= 0)
})

/** Of volumes that are there, a kernel has to tell: test/kernel/doctor.test.ts. */
const noVolumes = { listEra: async () => ({ volumes: [] }) }

test("the agent's knows what is in the catalog", async (t) => {
  const folder = temporaryFolder(t)
  const catalog = await openCatalog(join(folder, 'catalog'))
  t.teardown(() => catalog.close())
  const live = withoutDeviceMapper(t)
  const options = { headroom: { percent: 25, blocks: 1024 }, holdMs: 1000, waitMs: 0 }
  const leases = new MetadataSnapshotLeases(catalog, live.deviceMapper, options, pino({ level: 'silent' }))
  t.teardown(() => leases.close())
  await catalog.leases.begin({ device: 'dm-name:pool', purpose: 'thin_delta', factsBefore: '' }, 123)
  const seen = await inventory(t, { ...live, agent: { catalog, leases, tracked: noVolumes } }).examine()
  t.is(seen.seenBy, 'agent')
  t.like(seen.catalog, { path: catalog.path, consulted: true })
  t.deepEqual(seen.catalog.leases, [
    { device: 'dm-name:pool', state: 'reserving', purpose: 'thin_delta', takenAtMs: 123, users: [] }
  ])
  t.true(seen.catalog.rows.some(({ table, rows }) => table === 'leases' && rows === 1))
  t.false(seen.findings.some(({ kind }) => kind.startsWith('catalog')))
})

test('a catalog that cannot be used is a problem, and the rest is there', async (t) => {
  const catalog = await openCatalog(join(temporaryFolder(t), 'catalog'))
  await catalog.close()
  const live = withoutDeviceMapper(t)
  const options = { headroom: { percent: 25, blocks: 1024 }, holdMs: 1000, waitMs: 0 }
  const leases = new MetadataSnapshotLeases(catalog, live.deviceMapper, options, pino({ level: 'silent' }))
  const seen = await inventory(t, { ...live, agent: { catalog, leases, tracked: noVolumes } }).examine()
  t.like(seen.catalog, { consulted: false, problem: { code: 'DM_SHUTTING_DOWN' } })
  t.true(seen.findings.some(({ kind, severity }) => kind === 'catalog-unusable' && severity === 'problem'))
  t.not(seen.node.kernel, '')
})

test('an agent of recorded pools looks at nothing but the node itself', async (t) => {
  const recorded = [{ name: 'demo', folder: '/srv/demo', snapshots: ['monday'] }]
  const seen = await inventory(t, undefined, recorded).examine()
  t.like(seen, { seenBy: 'agent', live: false, recordedPools: recorded, pools: [] })
  t.is(seen.deviceMapper.problem, undefined)
  t.deepEqual(
    seen.findings.map(({ severity, kind }) => [severity, kind]),
    [['note', 'recorded-only']]
  )
})

test('many who ask at once get one look', async (t) => {
  const made = inventory(t, withoutDeviceMapper(t))
  const [one, ...others] = await Promise.all(Array.from({ length: 20 }, () => made.examine()))
  for (const each of others) t.is(each, one)
  t.not(await made.examine(), one)
})
