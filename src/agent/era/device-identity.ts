/**
 * Which device a path leads to, in a form that lasts: paths and numbers are given anew at every start of the machine, and a metadata device
 * put beside another data device would tell of writes that were none of its.
 */
import { readFile, realpath } from 'node:fs/promises'
import type { DeviceMapper } from '../../../native/device-mapper.ts'
import type { DeviceNumber } from '../../devicemapper/target-words.ts'

/**
 * What a device is known by: LVM's and device-mapper's UUID, a partition's, a disk's WWID or serial number, a loop device's file; and only
 * the path where there is none of these.
 */
export async function deviceIdentity(
  deviceMapper: Pick<DeviceMapper, 'info'>,
  path: string,
  device: DeviceNumber
): Promise<string> {
  const mapped = await deviceMapper.info(device)
  if (mapped) return mapped.uuid === '' ? `dm-name:${mapped.name}` : `dm-uuid:${mapped.uuid}`
  const folder = await realpath(`/sys/dev/block/${device.major}:${device.minor}`).catch(() => undefined)
  if (folder === undefined) return `path:${path}`
  const partition = await text(`${folder}/partition`)
  if (partition === undefined) return (await diskIdentity(folder)) ?? `path:${path}`
  const udev = await text(`/run/udev/data/b${device.major}:${device.minor}`)
  const uuid = /^E:ID_PART_ENTRY_UUID=(\S+)$/m.exec(udev ?? '')?.[1]
  if (uuid !== undefined) return `partuuid:${uuid}`
  const disk = await diskIdentity(`${folder}/..`)
  return disk === undefined ? `path:${path}` : `${disk}:part${partition}:${await text(`${folder}/start`)}`
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
  return undefined
}

async function text(path: string): Promise<string | undefined> {
  const content = await readFile(path, 'utf8').catch(() => undefined)
  return content?.trim()
}
