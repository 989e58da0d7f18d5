/**
 * An active thin pool, as device-mapper has it: from the thin-pool target's table to the device of its metadata.
 *
 * The table is the authority: names only suggest which devices a pool is made of.
 */
import { readFile } from 'node:fs/promises'
import type { DeviceMapper, DeviceNumber, DeviceReference } from '../../../native/device-mapper.ts'
import { nodeName } from '../../../native/device.ts'
import { parsePoolTable } from '../../devicemapper/thin/table.ts'
import { DeltamapperError } from '../../errors.ts'

/** The device-mapper calls that change nothing. */
export type DeviceMapperPort = Pick<DeviceMapper, 'info' | 'table'>

export interface PoolDevice extends DeviceNumber {
  name: string
  /** Empty when it has none. */
  uuid: string
  /** The node of its metadata device. */
  metadataPath: string
  metadataDevice: MetadataDevice
  dataDevice: DeviceNumber
}

/**
 * The device of a pool's metadata. A device keeps its number while it is open. So after opening it by name, the number
 * proves that it is the one in the pool's table.
 */
export interface MetadataDevice extends DeviceNumber {
  /** Its device-mapper UUID; empty when it has none. */
  uuid: string
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
  const { metadataDevice, dataDevice } = parsePoolTable(row.params)
  const metadata = await deviceMapper.info(metadataDevice)
  return {
    ...{ ...number, name: info.name, uuid: info.uuid, dataDevice },
    metadataDevice: { ...metadataDevice, uuid: metadata?.uuid ?? '' },
    metadataPath: metadata ? `/dev/mapper/${nodeName(metadata.name)}` : await nodePath(metadataDevice)
  }
}

/** The node of a block device that is not device-mapper's. */
export async function nodePath({ major, minor }: DeviceNumber): Promise<string> {
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
