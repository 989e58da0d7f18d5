/**
 * Which device a path leads to, in a form that lasts: paths and numbers are given anew at every start of the machine, and a metadata device
 * put beside another data device would tell of writes that were none of its.
 */
import { readdir, readFile, realpath } from 'node:fs/promises'
import { dirname } from 'node:path'
import type { DeviceMapper } from '../../../native/device-mapper.ts'
import type { DeviceNumber } from '../../devicemapper/target-words.ts'

/**
 * What a device is known by: LVM's and device-mapper's UUID, a partition's, a disk's WWID or serial number, a loop device's file; else the
 * place where it is plugged in (a virtio disk without a serial number has no more than its PCI slot); and only the path where there is none of
 * these.
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

/** Whether a device is the one that was known by this. Who was known by a path only is so, whatever else could be told of it now. */
export function isKnownBy(recorded: string, identity: string, path: string): boolean {
  return recorded === identity || recorded === pathIdentity(path)
}

/** Whether nothing is known of a device but its path, which may be another's after a restart of the machine. */
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
    // (The serial number of a user-mode kernel's disks reads "(null)".)
    if (value !== undefined && value !== '' && value !== '(null)') return `${name}:${value}`
  }
  return placeOf(await realpath(folder))
}

/**
 * Where a disk is plugged in, if it is the only one there; without the number that virtio gives to its devices in the order it finds them.
 * SCSI's hosts are numbered like that as well, and in the middle: of those it is not told.
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
