/**
 * The names of a device-mapper device, its parts, and what the kernel accepts of either.
 *
 * Names and UUIDs are bytes to the kernel (at most 127 and 128 of them: DM_NAME_LEN and DM_UUID_LEN in linux/dm-ioctl.h
 * include the closing NUL). All positions and lengths are in sectors of 512 bytes.
 */
import { invalid } from '../src/errors.ts'

/** A device by its name, by its UUID, or by its number. */
export type DeviceReference = string | { readonly uuid: string } | DeviceNumber

export interface DeviceNumber {
  readonly major: number
  readonly minor: number
}

/** A name and its number, as the kernel lists them. */
export interface ListedDevice extends DeviceNumber {
  readonly name: string
}

/** One target of a table, or its status. Covers sectors `[startSector, startSector + lengthSectors)`. */
export interface TableRow {
  readonly startSector: number
  readonly lengthSectors: number
  readonly targetType: string
  /** Everything after the target's type: its parameters in a table, its own words in a status. */
  readonly params: string
}

export interface DeviceInfo extends ListedDevice {
  /** Empty when it has none. */
  readonly uuid: string
  readonly suspended: boolean
  readonly hasLiveTable: boolean
  readonly hasInactiveTable: boolean
  /** How often it is open (mounted, used by another device, held by a process). */
  readonly openCount: number
  readonly eventNumber: number
  readonly readOnly: boolean
  readonly targetCount: number
  /** It will be removed when its last user closes it. */
  readonly removeDeferred: boolean
  /** Suspended by the kernel itself, on behalf of another device. */
  readonly internallySuspended: boolean
}

export interface TargetVersion {
  readonly name: string
  readonly version: readonly [major: number, minor: number, patch: number]
}

/** A reference in the words of a message: a name, `UUID …` or `MAJOR:MINOR`. */
export function describeDevice(device: DeviceReference): string {
  if (typeof device === 'string') return device
  return 'uuid' in device ? `UUID ${device.uuid}` : `${device.major}:${device.minor}`
}

/**
 * Decodes the kernel's 64-bit device number (`huge_encode_dev` in linux/kdev_t.h): the minor's low 8 bits, 12 bits of
 * major, then the minor's other 12 bits.
 */
export function decodeDeviceNumber(encoded: number): DeviceNumber {
  return { major: (encoded >>> 8) & 0xfff, minor: (encoded & 0xff) | ((encoded >>> 12) & 0xfff00) }
}

/**
 * The file name of this device under /dev/mapper: characters that udev refuses are written `\xNN`, byte by byte, and
 * what is written so already stays (libdevmapper's automatic mangling).
 */
export function nodeName(name: string): string {
  const plain = /^[0-9A-Za-z#+\-.:=@_]$/
  const parts = name.split(/(\\x[0-9a-fA-F]{2})/)
  return parts
    .map((part, index) => {
      if (index % 2 === 1) return part
      const bytes = [...Buffer.from(part)].map((byte) => {
        const character = String.fromCharCode(byte)
        return plain.test(character) ? character : `\\x${byte.toString(16).padStart(2, '0')}`
      })
      return bytes.join('')
    })
    .join('')
}

/** Throws DM_ARGUMENT_INVALID for a name that no device can have, or that would be taken for a path. */
export function checkName(name: string): void {
  const bytes = Buffer.byteLength(name)
  if (bytes === 0 || bytes > 127 || /[/\0]/.test(name) || ['.', '..', 'control'].includes(name)) {
    throw invalid(
      `${JSON.stringify(name.slice(0, 200))} cannot be the name of a device-mapper device`,
      'use 1 to 127 bytes without a slash or NUL; ".", ".." and "control" are taken'
    )
  }
}

/** Throws DM_ARGUMENT_INVALID for a UUID longer than 128 bytes, an empty one, or one with a NUL or slash. */
export function checkUuid(uuid: string): void {
  const bytes = Buffer.byteLength(uuid)
  if (bytes === 0 || bytes > 128 || /[/\0]/.test(uuid)) {
    throw invalid(
      `${JSON.stringify(uuid.slice(0, 200))} cannot be the UUID of a device-mapper device`,
      'use 1 to 128 bytes without a slash or NUL'
    )
  }
}

/** Throws DM_ARGUMENT_INVALID for a reference that cannot name a device. */
export function checkReference(device: DeviceReference): void {
  if (typeof device === 'string') return checkName(device)
  if ('uuid' in device) return checkUuid(device.uuid)
  const fits = (value: number, below: number) => Number.isInteger(value) && value >= 0 && value < below
  if (!fits(device.major, 2 ** 12) || !fits(device.minor, 2 ** 20)) {
    throw invalid(
      `${device.major}:${device.minor} is no device number`,
      'give a major below 4096 and a minor below 1048576'
    )
  }
}

/**
 * Throws DM_ARGUMENT_INVALID for a table that the kernel would refuse with a bare EINVAL: rows must follow each other
 * from sector 0 without gaps (dm_table_add_target in drivers/md/dm-table.c), and positions must be exact.
 */
export function checkTable(rows: readonly TableRow[]): void {
  const refuse = (what: string): never => {
    throw invalid(what, 'give rows that cover the device from sector 0 without gaps')
  }
  if (rows.length === 0) refuse('a device-mapper table needs at least one row')
  let end = 0
  for (const { startSector, lengthSectors, targetType, params } of rows) {
    if (startSector !== end) refuse(`a table row starts at sector ${startSector} where ${end} was due`)
    if (!Number.isSafeInteger(lengthSectors) || lengthSectors <= 0)
      refuse(`a table row cannot be ${lengthSectors} sectors long`)
    end += lengthSectors
    if (!Number.isSafeInteger(end)) refuse('a table row ends beyond sector 2^53')
    if (!/^[!-~]{1,15}$/.test(targetType)) refuse(`${JSON.stringify(targetType)} cannot be the name of a target`)
    if (params.includes('\0')) refuse('the parameters of a target cannot hold a NUL')
  }
}
