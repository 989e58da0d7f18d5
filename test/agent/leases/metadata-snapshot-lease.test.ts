/**
 * What is refused before any message is sent, told from status lines of the kernel's. The lease itself: test/kernel/lease.test.ts.
 */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import { pino } from 'pino'
import { type Catalog, openCatalog } from '../../../src/agent/catalog/catalog.ts'
import {
  type LeaseDeviceMapper,
  leaseOptions,
  MetadataSnapshotLeases
} from '../../../src/agent/leases/metadata-snapshot-lease.ts'
import { DeltamapperError } from '../../../src/errors.ts'
import { recordedDevices } from '../../support/recorded-lvm.ts'

const pool = 'my--vg-po--ol-tpool'
const recorded = recordedDevices()
const quiet = pino({ level: 'silent' })

function devices(status: string): LeaseDeviceMapper {
  const row = { startSector: 0, lengthSectors: 1, targetType: 'thin-pool', params: status }
  return { ...recorded, status: async () => [row] }
}

async function leases(
  t: ExecutionContext,
  deviceMapper: LeaseDeviceMapper
): Promise<{ made: MetadataSnapshotLeases; catalog: Catalog }> {
  const folder = mkdtempSync(join(tmpdir(), 'lease-'))
  const catalog = await openCatalog(join(folder, 'catalog'))
  const options = { headroom: { percent: 25, blocks: 1024 }, holdMs: 1000, waitMs: 0 }
  const made = new MetadataSnapshotLeases(catalog, deviceMapper, options, quiet)
  t.teardown(async () => {
    await made.close()
    await catalog.close()
    rmSync(folder, { recursive: true })
  })
  return { made, catalog }
}

for (const [status, code] of [
  ['Fail', 'DM_LEASE_REFUSED'],
  ['5 1/1024 20/200 - ro discard_passdown error_if_no_space - 256', 'DM_LEASE_REFUSED'],
  ['5 900/1024 20/200 - rw discard_passdown error_if_no_space - 256', 'DM_LEASE_REFUSED'],
  ['what is this', 'DM_STATUS_UNKNOWN']
] as const) {
  test(`${status}: ${code}, and no record`, async (t) => {
    const { made, catalog } = await leases(t, devices(status))
    const error = await t.throwsAsync(made.acquire(pool, { purpose: 'me' }), { instanceOf: DeltamapperError })
    t.is(error.code, code)
    t.deepEqual(await catalog.leases.list(), [])
    t.deepEqual(made.current, [])
  })
}

test('what is no pool, or not there, has no metadata snapshot', async (t) => {
  const { made } = await leases(t, devices('Fail'))
  await t.throwsAsync(made.acquire('nosuch', { purpose: 'me' }), { code: 'DM_POOL_INACTIVE' })
  await t.throwsAsync(made.acquire('my--vg-monday', { purpose: 'me' }), { code: 'DM_NOT_TRACKED' })
})

test('closed, or no longer wanted: nothing is asked', async (t) => {
  const never: LeaseDeviceMapper = {
    ...recorded,
    info: () => Promise.reject(new Error('it was asked')),
    status: () => Promise.reject(new Error('it was asked'))
  }
  const { made } = await leases(t, never)
  const signal = AbortSignal.abort(new DeltamapperError('DM_CANCELLED', 'gone', 'nothing'))
  await t.throwsAsync(made.acquire(pool, { purpose: 'me', signal }), { code: 'DM_CANCELLED' })
  await made.close()
  await t.throwsAsync(made.acquire(pool, { purpose: 'me' }), { code: 'DM_SHUTTING_DOWN' })
})

test('records of pools that are not here stay, and are said once', async (t) => {
  const lines: Record<string, unknown>[] = []
  const logger = pino({ base: null }, { write: (line: string) => lines.push(JSON.parse(line) as (typeof lines)[0]) })
  const folder = mkdtempSync(join(tmpdir(), 'lease-'))
  const catalog = await openCatalog(join(folder, 'catalog'))
  const options = { headroom: { percent: 25, blocks: 1024 }, holdMs: 1000, waitMs: 0, retryMs: 20 }
  const made = new MetadataSnapshotLeases(catalog, devices('Fail'), options, logger)
  t.teardown(async () => {
    await made.close()
    await catalog.close()
    rmSync(folder, { recursive: true })
  })
  await catalog.leases.begin({ device: 'dm-name:gone', purpose: 'thin_delta', factsBefore: '' }, 1)
  for (let round = 0; round < 3; round++) await made.recover()
  t.is((await catalog.leases.list()).length, 1)
  t.deepEqual(
    lines.map(({ msg, pool, because }) => [msg, pool, because]),
    [['a metadata snapshot on record is left as it is', 'dm-name:gone', 'the pool is not active']]
  )
})

test('seconds of the configuration are milliseconds here', (t) => {
  t.deepEqual(leaseOptions({ freePercent: 10, freeBlocks: 20, holdSeconds: 30, waitSeconds: 0.5 }), {
    headroom: { percent: 10, blocks: 20 },
    holdMs: 30_000,
    waitMs: 500
  })
})
