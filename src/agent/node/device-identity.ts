/**
 * Identifies a device by something that lasts. Paths and numbers change at boot, and pairing metadata with the wrong
 * data device would report another device's writes.
 */
import { readdir, readFile, realpath } from 'node:fs/promises'
import { dirname } from 'node:path'
import type { DeviceMapper } from '../../../native/device-mapper.ts'
import type { DeviceNumber } from '../../devicemapper/target-words.ts'

/**
 * The identity of a device, by the first of these that exists: LVM's or device-mapper's UUID; a partition's UUID; a
 * disk's WWID or serial number; a loop device's file; the place where it is plugged in (a virtio disk without a serial
 * number has only its PCI slot); its path.
 *
 * @param sysfs where sysfs is mounted
 */
export async function deviceIdentity(
  deviceMapper: Pick<DeviceMapper, 'info'>,
  path: string,
  device: DeviceNumber,
  sysfs = '/sys'
): Promise<string> {
  const mapped = await deviceMapper.info(device)
  if (mapped) return mapped.uuid === '' ? `dm-name:${mapped.name}` : `dm-uuid:${mapped.uuid}`
  const folder = await realpath(`${sysfs}/dev/block/${device.major}:${device.minor}`).catch(() => undefined)
  if (folder === undefined) return pathIdentity(path)
  const partition = await text(`${folder}/partition`)
  if (partition === undefined) return (await diskIdentity(folder)) ?? pathIdentity(path)
  const udev = await text(`/run/udev/data/b${device.major}:${device.minor}`)
  const uuid = /^E:ID_PART_ENTRY_UUID=(\S+)$/m.exec(udev ?? '')?.[1]
  if (uuid !== undefined) return `partuuid:${uuid}`
  const disk = await diskIdentity(`${folder}/..`)
  return disk === undefined ? pathIdentity(path) : `${disk}:part${partition}:${await text(`${folder}/start`)}`
}

/**
 * Whether a device is the one with this identity. A device that was known only by its path is matched by its path, even
 * if it has a better identity now.
 */
export function isKnownBy(recorded: string, identity: string, path: string): boolean {
  return recorded === identity || recorded === pathIdentity(path)
}

/** Whether the identity is only a path, which may lead to another device after a restart. */
export function isPathOnly(identity: string): boolean {
  return identity.startsWith('path:')
}

function pathIdentity(path: string): string {
  return `path:${path}`
}

async function diskIdentity(folder: string): Promise<string | undefined> {
  const loop = await text(`${folder}/loop/backing_file`)
  if (loop !== undefined) return `loop:${loop}:${(await text(`${folder}/loop/offset`)) ?? 0}`
  for (const [name, file] of [
    ['wwid', 'wwid'],
    ['wwid', 'device/wwid'],
    ['md', 'md/uuid'],
    ['serial', 'serial'],
    ['serial', 'device/serial']
  ] as const) {
    const value = await text(`${folder}/${file}`)
    // (The disks of a user-mode kernel have the serial number "(null)".)
    if (value !== undefined && value !== '' && value !== '(null)') return `${name}:${value}`
  }
  return placeOf(await realpath(folder))
}

/**
 * Where a disk is plugged in, if it is the only one there. Without the number that virtio gives to its devices in order
 * of discovery. SCSI host numbers are of that kind too, but in the middle of the path, so SCSI disks get no place.
 */
async function placeOf(folder: string): Promise<string | undefined> {
  const place = /\/devices\/(.+)\/block\/[^/]+$/.exec(folder)?.[1]
  if (place === undefined || place.startsWith('virtual') || /\/host\d+\//.test(place)) return undefined
  if ((await readdir(dirname(folder))).length !== 1) return undefined
  return `place:${place.replace(/\/virtio\d+$/, '')}`
}

async function text(path: string): Promise<string | undefined> {
  const content = await readFile(path, 'utf8').catch(() => undefined)
  return content?.trim()
}
