/**
 * An active thin pool, as device-mapper has it: from the thin-pool target's table to the device of its metadata.
 *
 * The table is the authority: names only suggest which devices a pool is made of.
 */
import { readFile } from 'node:fs/promises'
import type {
  DeviceInfo,
  DeviceMapper,
  DeviceNumber,
  DeviceReference,
  TableRow
} from '../../../native/device-mapper.ts'
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
 * @throws DM_NOT_TRACKED when the device is no thin pool; DM_SNAPSHOT_CHANGED when its number went to another
 * meanwhile; what
 *   device-mapper calls throw
 */
export async function findPoolDevice(
  deviceMapper: DeviceMapperPort,
  reference: DeviceReference
): Promise<PoolDevice | undefined> {
  const info = await deviceMapper.info(reference)
  if (!info?.hasLiveTable) return undefined
  const number = { major: info.major, minor: info.minor }
  const [row, ...more] = await liveTable(deviceMapper, info)
  // It had a table at the look before; it may be back by now, with the number that it had.
  if (row === undefined) throw activatedAnew(info)
  if (row.targetType !== 'thin-pool' || more.length > 0) {
    await checkIsStill(deviceMapper, info)
    throw new DeltamapperError(
      'DM_NOT_TRACKED',
      `device-mapper device ${info.name} is no thin pool (its table is of ${row.targetType})`,
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

/** The device-mapper UUID of a pool's data device; empty when it has none. */
export async function dataUuidOf(deviceMapper: DeviceMapperPort, { dataDevice }: PoolDevice): Promise<string> {
  return (await deviceMapper.info(dataDevice))?.uuid ?? ''
}

/**
 * The live table of a device that was found; empty when it is gone. It is asked by UUID, or by name where there is
 * none, because its number may be another device's by now.
 */
export async function liveTable(
  deviceMapper: Pick<DeviceMapper, 'table'>,
  { uuid, name }: Pick<DeviceInfo, 'uuid' | 'name'>
): Promise<readonly TableRow[]> {
  try {
    return await deviceMapper.table(uuid === '' ? name : { uuid })
  } catch (error) {
    if (error instanceof DeltamapperError && error.code === 'DM_NO_SUCH_DEVICE') return []
    throw error
  }
}

/** A number is given out again at once: what was asked by it may be another device's. @throws DM_SNAPSHOT_CHANGED */
async function checkIsStill(deviceMapper: DeviceMapperPort, { name, uuid, major, minor }: DeviceInfo): Promise<void> {
  const now = await deviceMapper.info({ major, minor })
  if (now?.name === name && now.uuid === uuid) return
  throw activatedAnew({ name })
}

function activatedAnew({ name }: Pick<DeviceInfo, 'name'>): DeltamapperError {
  return new DeltamapperError(
    'DM_SNAPSHOT_CHANGED',
    `the thin pool ${name} was deactivated, or activated anew, while it was looked up`,
    'ask again from the beginning'
  )
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
