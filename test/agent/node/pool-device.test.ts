import { existsSync, readdirSync, realpathSync } from 'node:fs'
import { basename } from 'node:path'
import test from 'ava'
import { type DeviceMapperPort, findPoolDevice } from '../../../src/agent/node/pool-device.ts'
import { DeltamapperError } from '../../../src/errors.ts'
import { numbersOfAnother, recordedDevices } from '../../support/recorded-lvm.ts'

test('the table says where the metadata is', async (t) => {
  const devices = recordedDevices()
  const pool = await findPoolDevice(devices, 'my--vg-po--ol-tpool')
  t.like(pool, { name: 'my--vg-po--ol-tpool', metadataPath: '/dev/mapper/my--vg-po--ol_tmeta' })
  t.deepEqual(await findPoolDevice(devices, { major: pool!.major, minor: pool!.minor }), pool)
})

test('no device, or none with a table, is no pool', async (t) => {
  const devices = recordedDevices()
  t.is(await findPoolDevice(devices, 'my--vg-gone'), undefined)
  const empty = {
    ...devices,
    info: async (name: Parameters<typeof devices.info>[0]) => ({ ...(await devices.info(name))!, hasLiveTable: false })
  }
  t.is(await findPoolDevice(empty, 'my--vg-po--ol-tpool'), undefined)
})

test('a device of another kind is refused', async (t) => {
  for (const name of ['my--vg-po--ol', 'my--vg-monday', 'my--vg-po--ol_tmeta']) {
    await t.throwsAsync(() => findPoolDevice(recordedDevices(), name), {
      code: 'DM_NOT_TRACKED',
      message: /no thin pool/
    })
  }
})

/** The recorded devices, with the pool's metadata on another device. */
function withMetadataOn(number: string): DeviceMapperPort {
  const devices = recordedDevices()
  const table: DeviceMapperPort['table'] = async (reference) =>
    (await devices.table(reference)).map((row) => ({ ...row, params: row.params.replace(/^\d+:\d+/, number) }))
  return { ...devices, table }
}

test('a metadata device that is not of device-mapper is found in sysfs', async (t) => {
  const folder = '/sys/dev/block'
  const number = existsSync(folder) ? readdirSync(folder).find((each) => !each.startsWith('254:')) : undefined
  if (number === undefined) {
    t.pass('this machine shows no block devices')
    return
  }
  const name = basename(realpathSync(`${folder}/${number}`)).replace('!', '/')
  const pool = await findPoolDevice(withMetadataOn(number), 'my--vg-po--ol-tpool')
  t.is(pool?.metadataPath, `/dev/${name}`)
})

test('a metadata device that has gone is said to have', async (t) => {
  await t.throwsAsync(() => findPoolDevice(withMetadataOn('4095:1048575'), 'my--vg-po--ol-tpool'), {
    code: 'DM_READ_FAILED',
    message: /block device 4095:1048575/
  })
})

test('a number that went to another device between two calls is no verdict on the pool', async (t) => {
  const devices = recordedDevices()
  const name = 'my--vg-po--ol-tpool'
  const pool = (await devices.info(name))!
  const another = (await devices.info('my--vg-monday'))!
  // Removed after it was found: its number is nobody's, or another's.
  const taken = { ...devices, table: async () => devices.table('my--vg-monday') }
  const asked = (answer: typeof another | undefined): DeviceMapperPort => ({
    ...taken,
    info: async (reference) => (typeof reference === 'string' ? pool : answer)
  })
  for (const now of [undefined, { ...another, major: pool.major, minor: pool.minor }]) {
    await t.throwsAsync(() => findPoolDevice(asked(now), name), {
      code: 'DM_SNAPSHOT_CHANGED',
      message: /activated anew/
    })
  }
  const gone: DeviceMapperPort = {
    info: async (reference) => (typeof reference === 'string' ? pool : undefined),
    table: async () => {
      throw new DeltamapperError('DM_NO_SUCH_DEVICE', 'there is no such device', 'look')
    }
  }
  await t.throwsAsync(() => findPoolDevice(gone, name), { code: 'DM_SNAPSHOT_CHANGED' })
  // It was away for that one call, and has the number that it had.
  await t.throwsAsync(() => findPoolDevice({ ...gone, info: async () => pool }, name), { code: 'DM_SNAPSHOT_CHANGED' })
})

test('a pool whose number went to another pool has its own metadata still', async (t) => {
  const [devices, name] = [recordedDevices(), 'my--vg-po--ol-tpool']
  const another = 'my--vg-second-tpool'
  t.not((await findPoolDevice(devices, another))?.metadataPath, (await findPoolDevice(devices, name))?.metadataPath)
  t.deepEqual(await findPoolDevice(numbersOfAnother(devices, another), name), await findPoolDevice(devices, name))
})
