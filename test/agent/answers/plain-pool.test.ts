/**
 * Handles of a pool that is run with dmsetup, told from tables that a kernel really had.
 */
import test from 'ava'
import type { TableRow } from '../../../native/device-mapper.ts'
import { deviceMapperSource } from '../../../src/agent/answers/plain-pool.ts'
import type { DeviceMapperPort } from '../../../src/agent/node/pool-device.ts'
import { recordedDevices } from '../../support/recorded-lvm.ts'

const mebibyte = 2 ** 20
const pool = 'my--vg-po--ol-tpool'

function source(devices: DeviceMapperPort = recordedDevices(), name = pool) {
  return deviceMapperSource(name, devices)
}

/** The recorded devices, with one more (or one changed). */
function withDevice(name: string, rows: TableRow[] | undefined): DeviceMapperPort {
  const recorded = recordedDevices()
  const number = { major: 254, minor: 9999 }
  const isIt = (reference: unknown) =>
    reference === name || JSON.stringify(reference) === JSON.stringify({ major: number.major, minor: number.minor })
  return {
    info: async (reference) =>
      isIt(reference)
        ? { ...(await recorded.info(pool))!, ...number, name, uuid: '', hasLiveTable: rows !== undefined }
        : recorded.info(reference),
    table: async (reference) => (isIt(reference) ? (rows ?? []) : recorded.table(reference))
  }
}

const row = (params: string, targetType = 'thin', lengthSectors = 131072): TableRow => ({
  startSector: 0,
  lengthSectors,
  targetType,
  params
})
const poolNumber = await recordedDevices()
  .info(pool)
  .then((info) => `${info!.major}:${info!.minor}`)

test('an active thin device', async (t) => {
  t.deepEqual(await source().snapshot('my--vg-monday'), {
    kind: 'thin',
    handle: `${pool}/my--vg-monday`,
    metadataDevice: {
      major: 254,
      minor: 0,
      uuid: 'LVM-gJd5mWme1uBQaVQAX6YffsM98VAW3czOZ4L4UK2aRB30gOqBEuFmmymZndJpJrDx-tmeta'
    },
    poolIdentity: 'YcF3il-VmZl-SEFf-lJN4-fVxd-wRxv-lwRMTw',
    thinId: 2,
    sizeBytes: 64 * mebibyte,
    writable: true,
    metadataPath: '/dev/mapper/my--vg-po--ol_tmeta',
    live: true,
    pool
  })
})

test('a device over an external origin, which a table can exchange, is refused', async (t) => {
  const message = /^the external origin \d+:\d+ shows where \S+ maps nothing/
  await t.throwsAsync(() => source().snapshot('my--vg-clone'), { code: 'DM_NOT_TRACKED', message })
})

test('what is not of this pool, or not there, is not found', async (t) => {
  t.is(await source().snapshot('my--vg-far'), undefined)
  t.is(await source().snapshot('my--vg-gone'), undefined)
  t.is(await source(withDevice('empty', undefined)).snapshot('empty'), undefined)
  // Between its creation and its first table's turn.
  t.is(await source(withDevice('fresh', [])).snapshot('fresh'), undefined)
})

test('what is not thin is refused', async (t) => {
  for (const name of ['my--vg-data', 'my--vg-thick-real', 'my--vg-po--ol', pool]) {
    await t.throwsAsync(() => source().snapshot(name), { code: 'DM_NOT_TRACKED', message: /is not thin/ })
  }
  const two = [row(`${poolNumber} 2`), { ...row(`${poolNumber} 3`), startSector: 131072 }]
  await t.throwsAsync(() => source(withDevice('two', two)).snapshot('two'), { code: 'DM_NOT_TRACKED' })
})

test('a bare id has no size without a table', async (t) => {
  await t.throwsAsync(() => source().snapshot('thin-3'), {
    code: 'DM_NOT_TRACKED',
    message: /size of thin device 3 is known nowhere else/
  })
  // What can be no id is a name like any other.
  for (const name of ['thin-16777216', 'thin-03', 'thin--1', 'thin-', 'thin-3x', 'xthin-3']) {
    t.is(await source().snapshot(name), undefined, name)
  }
})

test('a device called thin-ID is taken for what it says, or not at all', async (t) => {
  t.is((await source(withDevice('thin-3', [row(`${poolNumber} 3`)])).snapshot('thin-3'))?.thinId, 3)
  await t.throwsAsync(() => source(withDevice('thin-3', [row(`${poolNumber} 7`)])).snapshot('thin-3'), {
    code: 'DM_NOT_TRACKED',
    message: /thin device 3, or the active device thin-3, which is thin device 7/
  })
})

test('tables that make no sense, a failed pool, a size beyond counting', async (t) => {
  const codes: [TableRow, string][] = [
    [row(`${poolNumber} 16777216`), 'DM_STATUS_UNKNOWN'],
    [row(`${poolNumber}`), 'DM_STATUS_UNKNOWN'],
    [row(`/dev/dm-2 3`), 'DM_STATUS_UNKNOWN'],
    [row('Fail'), 'DM_POOL_FAILED'],
    [row(`${poolNumber} 3`, 'thin', 2 ** 45), 'DM_NOT_TRACKED']
  ]
  for (const [table, code] of codes) {
    await t.throwsAsync(() => source(withDevice('odd', [table])).snapshot('odd'), { code }, table.params)
  }
})

test('a pool that is not there', async (t) => {
  await t.throwsAsync(() => source(recordedDevices(), 'none').snapshot('x'), { code: 'DM_POOL_INACTIVE' })
  await t.throwsAsync(() => source(recordedDevices(), 'my--vg-monday').snapshot('x'), { code: 'DM_NOT_TRACKED' })
})
