/**
 * Identifies a thin pool independently of names: records of one pool must not be taken for those of another of the same
 * name.
 */
import { createHash } from 'node:crypto'
import type { DeviceNumber } from '../../../native/device.ts'
import { deviceIdentity } from './device-identity.ts'
import { type DeviceMapperPort, nodePath, type PoolDevice } from './pool-device.ts'

/** Devices in the parameters of a table, as the kernel prints them. */
const DEVICES = /(?<![^ ])(\d+):(\d+)(?![^ ])/g

/** LVM's UUIDs of a group and of a pool in it, without their hyphens (answers/volume-group.ts). */
const LVM_POOL = /^LVM-[0-9A-Za-z]{32}([0-9A-Za-z]{32})-tpool$/
/** Where LVM writes hyphens into a UUID. */
const LVM_UUID = /^(.{6})(.{4})(.{4})(.{4})(.{4})(.{4})(.{6})$/

/**
 * LVM's UUID of the pool, which it keeps in any group (vgrename, vgsplit, vgmerge); otherwise its device-mapper UUID;
 * without one, the disks of its metadata and data. Growing either does not change it.
 *
 * @throws what device-mapper calls throw, DM_READ_FAILED
 */
export async function poolIdentity(deviceMapper: DeviceMapperPort, pool: PoolDevice): Promise<string> {
  const lvm = LVM_POOL.exec(pool.uuid)?.[1]
  if (lvm !== undefined) return lvm.replace(LVM_UUID, '$1-$2-$3-$4-$5-$6-$7')
  if (pool.uuid !== '') return pool.uuid
  const below = [await onDisks(deviceMapper, pool.metadataDevice), await onDisks(deviceMapper, pool.dataDevice)]
  // A hash: its length does not depend on the number of disks, and parameters may hold a key.
  return `disks:${createHash('sha256').update(below.join('\n')).digest('hex')}`
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
