/**
 * Identifies a thin pool independently of names: records of one pool must not be taken for those of another of the same
 * name.
 */
import { createHash } from 'node:crypto'
import type { DeviceNumber } from '../../../native/device.ts'
import { deviceIdentity } from './device-identity.ts'
import type { PoolVolumes } from '../../devicemapper/thin/base-record/trust.ts'
import { type DeviceMapperPort, nodePath, type PoolDevice } from './pool-device.ts'

/** Devices in the parameters of a table, as the kernel prints them. */
const DEVICES = /(?<![^ ])(\d+):(\d+)(?![^ ])/g

/** LVM's UUIDs of a group and of a volume in it, without their hyphens, and what the device is to the volume. */
const LVM_DEVICE = /^LVM-[0-9A-Za-z]{32}([0-9A-Za-z]{32})(?:-([a-z]+))?$/
/** Where LVM writes hyphens into a UUID. */
const LVM_UUID = /^(.{6})(.{4})(.{4})(.{4})(.{4})(.{4})(.{6})$/

/**
 * LVM's UUID of the pool, which it keeps in any group (vgrename, vgsplit, vgmerge); otherwise its device-mapper UUID;
 * without one, the disks of its metadata and data. Growing either does not change it.
 *
 * @throws what device-mapper calls throw, DM_READ_FAILED
 */
export async function poolIdentity(deviceMapper: DeviceMapperPort, pool: PoolDevice): Promise<string> {
  const lvm = lvmUuid(pool.uuid, 'tpool')
  if (lvm !== undefined) return lvm
  if (pool.uuid !== '') return pool.uuid
  const below = [await onDisks(deviceMapper, pool.metadataDevice), await onDisks(deviceMapper, pool.dataDevice)]
  // A hash: its length does not depend on the number of disks, and parameters may hold a key.
  return `disks:${createHash('sha256').update(below.join('\n')).digest('hex')}`
}

/**
 * LVM's UUID of the volume whose device this is; undefined if it is none of LVM's.
 *
 * @param uuid of device-mapper (build_dm_uuid, lib/misc/lvm-string.c)
 * @param layer what the device has to be to its volume
 */
export function lvmUuid(uuid: string, layer?: string): string | undefined {
  const [, volume, found] = LVM_DEVICE.exec(uuid) ?? []
  if (volume === undefined || (layer !== undefined && found !== layer)) return undefined
  return volume.replace(LVM_UUID, '$1-$2-$3-$4-$5-$6-$7')
}

/** LVM's UUIDs of the volumes that a pool in use has its metadata and its data on, where they are LVM's. */
export function poolVolumes({
  metadataDevice,
  dataUuid
}: {
  readonly metadataDevice?: { readonly uuid: string }
  readonly dataUuid?: string
}): PoolVolumes {
  return { metadataUuid: lvmUuid(metadataDevice?.uuid ?? ''), dataUuid: lvmUuid(dataUuid ?? '') }
}

/** The identity of a device; a device-mapper device without UUID is identified by where its first sectors are. */
async function onDisks(deviceMapper: DeviceMapperPort, device: DeviceNumber): Promise<string> {
  const number = { major: device.major, minor: device.minor }
  const info = await deviceMapper.info(number)
  if (!info) return deviceIdentity(deviceMapper, await nodePath(number), number)
  if (info.uuid !== '') return `dm-uuid:${info.uuid}`
  const [first] = await deviceMapper.table(number)
  if (!first) return `dm-name:${info.name}`
  let params = first.params
  for (const [text, major, minor] of [...params.matchAll(DEVICES)]) {
    params = params.replace(text, await onDisks(deviceMapper, { major: Number(major), minor: Number(minor) }))
  }
  return `${first.targetType} ${params}`
}
