import test from 'ava'
import type { DeviceInfo, DeviceReference } from '../../../native/device-mapper.ts'
import { classicDevices, entriesCounted, tableToCome } from '../../../src/agent/node/classic-devices.ts'
import { DeltamapperError } from '../../../src/errors.ts'

/** No block device of any machine has it. */
const MAJOR = 4095

const group = `LVM-${'g'.repeat(32)}`
const [uuid, originUuid] = [`${group}${'s'.repeat(32)}`, `${group}${'o'.repeat(32)}`]
const tables: Readonly<Record<string, string>> = {
  [uuid]: `snapshot ${MAJOR}:2 ${MAJOR}:3 P 8`,
  [originUuid]: `snapshot-origin ${MAJOR}:2`
}
const uuids = [originUuid, uuid, `${originUuid}-real`, `${uuid}-cow`]

/** What device-mapper has said of devices that are removed by the time that sysfs is asked. */
const deviceMapper = {
  async info(device: DeviceReference): Promise<DeviceInfo> {
    const { minor = -1, uuid: found = uuids[minor] } = device as { minor?: number; uuid?: string }
    const facts = { name: `vg-${found.at(-1)}`, uuid: found, major: MAJOR, minor: uuids.indexOf(found) }
    return { ...facts, hasLiveTable: true, readOnly: true, openCount: 0 } as unknown as DeviceInfo
  },
  async table(device: DeviceReference) {
    const [targetType, ...params] = tables[(device as { uuid: string }).uuid].split(' ')
    return [{ startSector: 0, lengthSectors: 8192, targetType, params: params.join(' ') }]
  }
}

test('a snapshot that is deactivated while its devices are looked at is inactive', async (t) => {
  const looked = classicDevices(deviceMapper, { handle: 'vg/s', uuid, originUuid })
  const error = await t.throwsAsync(looked, { instanceOf: DeltamapperError })
  t.is(error.code, 'DM_COW_INACTIVE', error.message)
})

test('the same between two queries of device-mapper', async (t) => {
  const snapshot = { handle: 'vg/s', uuid, originUuid }
  const gone = async (): Promise<never> => {
    throw new DeltamapperError('DM_NO_SUCH_DEVICE', 'there is no such device', 'look')
  }
  const counted = entriesCounted({ status: gone }, snapshot, { chunkBytes: 4096 })
  const error = await t.throwsAsync(counted, { instanceOf: DeltamapperError })
  t.is(error.code, 'DM_COW_INACTIVE', error.message)
  const info = async () => ({ suspended: true, hasInactiveTable: true }) as DeviceInfo
  t.is(await tableToCome({ info, table: gone }, snapshot, 'store'), undefined)
})
