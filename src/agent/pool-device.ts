/**
 * An active thin pool, as device-mapper has it: from the thin-pool target's table to the device that its metadata is on.
 *
 * The table is the authority: names only suggest what a pool stands on.
 */
import { readFile } from 'node:fs/promises'
import type { DeviceMapper, DeviceNumber, DeviceReference } from '../../native/device-mapper.ts'
import { nodeName } from '../../native/device.ts'
import { parsePoolTable } from '../devicemapper/thin/table.ts'
import { DeltamapperError } from '../errors.ts'

/** What is asked of device-mapper: nothing that changes anything. */
export type DeviceMapperPort = Pick<DeviceMapper, 'info' | 'table'>

export interface PoolDevice extends DeviceNumber {
  name: string
  /** The node of its metadata device. */
  metadataPath: string
}

/**
 * The pool behind a reference; undefined when there is no such device, or it has no table (yet).
 *
 * @throws DM_NOT_TRACKED when the device is no thin pool; what device-mapper calls throw
 */
export async function findPoolDevice(
  deviceMapper: DeviceMapperPort,
  reference: DeviceReference
): Promise<PoolDevice | undefined> {
  const info = await deviceMapper.info(reference)
  if (!info?.hasLiveTable) return undefined
  const number = { major: info.major, minor: info.minor }
  const [row, ...more] = await deviceMapper.table(number)
  if (row?.targetType !== 'thin-pool' || more.length > 0) {
    throw new DeltamapperError(
      'DM_NOT_TRACKED',
      `device-mapper device ${info.name} is no thin pool (its table is of ${row?.targetType ?? 'no target'})`,
      'name the device that has the thin-pool target (`dmsetup table --target thin-pool` lists them)'
    )
  }
  const { metadataDevice } = parsePoolTable(row.params)
  return { ...number, name: info.name, metadataPath: await devicePath(deviceMapper, metadataDevice) }
}

/** Where a block device's node is. By its name for device-mapper's own: their numbers are used again as soon as they are free. */
async function devicePath(deviceMapper: DeviceMapperPort, number: DeviceNumber): Promise<string> {
  const info = await deviceMapper.info(number)
  if (info) return `/dev/mapper/${nodeName(info.name)}`
  const { major, minor } = number
  const uevent = await readFile(`/sys/dev/block/${major}:${minor}/uevent`, 'utf8').catch((cause: unknown) => {
    throw new DeltamapperError(
      'DM_READ_FAILED',
      `block device ${major}:${minor}, which holds a pool's metadata, is not in /sys/dev/block`,
      'mount sysfs, or ask again: the pool may just have been deactivated',
      { cause }
    )
  })
  return `/dev/${/^DEVNAME=(.+)$/m.exec(uevent)?.[1] ?? `block/${major}:${minor}`}`
}
