/**
 * The states a real pool goes through, as its status tells them, and tables written and read back by the kernel. Runs inside the
 * kernel lab: node test/lab/run.ts test/kernel/thin-status.test.ts
 */
import { execFileSync } from 'node:child_process'
import { setTimeout as sleep } from 'node:timers/promises'
import test from 'ava'
import { DeviceMapper, type TableRow } from '../../native/device-mapper.ts'
import { parsePoolStatus, parseThinStatus, type PoolStatus } from '../../src/devicemapper/thin/status.ts'
import { formatPoolTable, formatThinTable, parsePoolTable, parseThinTable } from '../../src/devicemapper/thin/table.ts'

const mebibyteSectors = 2048
const blockSectors = 128
const deviceMapper = new DeviceMapper()
test.after.always(() => deviceMapper.close())
test.afterEach.always(async () => {
  for (const name of ['thin', 'pool', 'data', 'meta']) {
    if (await deviceMapper.info(name)) await deviceMapper.remove(name, { retry: true })
  }
})

const row = (targetType: string, lengthSectors: number, params = ''): TableRow => ({
  startSector: 0,
  lengthSectors,
  targetType,
  params
})
const linear = (offset: number, size: number) =>
  row('linear', size * mebibyteSectors, `/dev/ubda ${offset * mebibyteSectors}`)

function dd(...args: string[]): boolean {
  try {
    execFileSync('dd', [...args, 'bs=64k', 'status=none', 'conv=notrunc,fsync'], { stdio: 'ignore' })
    return true
  } catch {
    return false
  }
}

/** A pool of 64 blocks with one thin device, twice its size. */
async function makePool(): Promise<void> {
  const meta = await deviceMapper.create('meta', { table: [linear(0, 4)] })
  const data = await deviceMapper.create('data', { table: [linear(8, 4)] })
  dd('if=/dev/zero', 'of=/dev/mapper/meta', 'count=1')
  const params = formatPoolTable({
    metadataDevice: meta,
    dataDevice: data,
    blockSectors,
    lowWaterBlocks: 8,
    features: {
      skipBlockZeroing: true,
      ignoreDiscard: false,
      noDiscardPassdown: true,
      readOnly: false,
      errorIfNoSpace: true
    }
  })
  const pool = await deviceMapper.create('pool', { table: [row('thin-pool', 4 * mebibyteSectors, params)] })
  await deviceMapper.message('pool', 'create_thin 5')
  const thin = formatThinTable({ poolDevice: pool, deviceId: 5, externalOrigin: undefined })
  await deviceMapper.create('thin', { table: [row('thin', 8 * mebibyteSectors, thin)] })
}

async function poolStatus(): Promise<PoolStatus> {
  return parsePoolStatus((await deviceMapper.status('pool', { flush: true }))[0]?.params ?? '')
}

async function swapMeta(table: TableRow): Promise<void> {
  await deviceMapper.reload('meta', [table])
  await deviceMapper.suspend('meta', { lockfs: false, flush: false })
  await deviceMapper.resume('meta')
}

test('tables come back as they were written', async (t) => {
  await makePool()
  const [pool] = await deviceMapper.table('pool')
  const { metadataDevice, dataDevice, ...rest } = parsePoolTable(pool?.params ?? '')
  t.is((await deviceMapper.info(metadataDevice))?.name, 'meta')
  t.is((await deviceMapper.info(dataDevice))?.name, 'data')
  t.deepEqual(rest, {
    blockSectors,
    lowWaterBlocks: 8,
    features: {
      skipBlockZeroing: true,
      ignoreDiscard: false,
      noDiscardPassdown: true,
      readOnly: false,
      errorIfNoSpace: true
    }
  })
  const [thin] = await deviceMapper.table('thin')
  const { poolDevice, deviceId, externalOrigin } = parseThinTable(thin?.params ?? '') ?? {}
  t.is((await deviceMapper.info(poolDevice ?? ''))?.name, 'pool')
  t.deepEqual([deviceId, externalOrigin], [5, undefined])
})

test('an external origin is in the table', async (t) => {
  await makePool()
  await deviceMapper.remove('thin')
  const origin = await deviceMapper.create('origin', { table: [row('zero', 8 * mebibyteSectors)], readOnly: true })
  const pool = await deviceMapper.info('pool')
  const params = formatThinTable({ poolDevice: pool!, deviceId: 5, externalOrigin: origin })
  await deviceMapper.create('thin', { table: [row('thin', 8 * mebibyteSectors, params)] })
  const { externalOrigin } = parseThinTable((await deviceMapper.table('thin'))[0]?.params ?? '') ?? {}
  t.is((await deviceMapper.info(externalOrigin ?? ''))?.name, 'origin')
  await deviceMapper.remove('thin')
  await deviceMapper.remove('origin')
})

test('numbers follow what is written, a held metadata snapshot shows', async (t) => {
  await makePool()
  t.deepEqual(parseThinStatus((await deviceMapper.status('thin'))[0]?.params ?? ''), {
    state: 'working',
    mappedSectors: 0,
    highestMappedSector: undefined
  })
  t.true(dd('if=/dev/zero', 'of=/dev/mapper/thin', 'count=3', 'seek=10'))
  t.deepEqual(parseThinStatus((await deviceMapper.status('thin'))[0]?.params ?? ''), {
    state: 'working',
    mappedSectors: 3 * blockSectors,
    highestMappedSector: 13 * blockSectors - 1
  })
  await deviceMapper.message('pool', 'set_transaction_id 0 18446744073709551615')
  t.like(await poolStatus(), {
    state: 'working',
    transactionId: 2n ** 64n - 1n,
    totalMetadataBlocks: 1024,
    usedDataBlocks: 3,
    totalDataBlocks: 64,
    heldRoot: undefined,
    mode: 'read-write',
    discards: 'mapping-only',
    whenFull: 'error',
    needsCheck: false
  })
  await deviceMapper.message('pool', 'reserve_metadata_snap')
  const held = await poolStatus()
  t.true(held.state === 'working' && held.heldRoot !== undefined && held.heldRoot > 0 && held.heldRoot < 1024)
  await deviceMapper.message('pool', 'release_metadata_snap')
  t.like(await poolStatus(), { heldRoot: undefined })
})

test('out of data space', async (t) => {
  await makePool()
  t.false(dd('if=/dev/zero', 'of=/dev/mapper/thin', 'count=70'))
  t.like(await poolStatus(), { mode: 'out-of-data-space', usedDataBlocks: 64, totalDataBlocks: 64, needsCheck: false })
})

test('metadata that cannot be written any more: read-only, to be checked', async (t) => {
  await makePool()
  t.true(dd('if=/dev/zero', 'of=/dev/mapper/thin', 'count=3'))
  // dm-flakey with no time up: reads work, writes fail.
  await swapMeta(row('flakey', 4 * mebibyteSectors, '/dev/ubda 0 0 3600 1 error_writes'))
  dd('if=/dev/zero', 'of=/dev/mapper/thin', 'count=3', 'seek=20')
  t.like(await poolStatus(), { state: 'working', mode: 'read-only', needsCheck: true })
  await t.throwsAsync(() => deviceMapper.message('pool', 'create_thin 6'), { code: 'DM_CALL_FAILED' })
  await swapMeta(linear(0, 4))
})

test('metadata that is gone: failed', async (t) => {
  await makePool()
  t.true(dd('if=/dev/zero', 'of=/dev/mapper/thin', 'count=3'))
  await swapMeta(row('error', 4 * mebibyteSectors))
  dd('if=/dev/zero', 'of=/dev/mapper/thin', 'count=3', 'seek=20')
  for (let round = 0; round < 100 && (await poolStatus()).state !== 'failed'; round++) await sleep(50)
  t.deepEqual(await poolStatus(), { state: 'failed' })
  t.deepEqual(parseThinStatus((await deviceMapper.status('thin'))[0]?.params ?? ''), { state: 'failed' })
  t.is(parseThinTable((await deviceMapper.table('thin'))[0]?.params ?? ''), undefined)
  t.is(parsePoolTable((await deviceMapper.table('pool'))[0]?.params ?? '').blockSectors, blockSectors)
})
