/**
 * What sysfs says of a device-mapper device, as often as somebody asks, for a system call each. The files stay open: a
 * device that is in use does not go away.
 */
import { closeSync, openSync, readSync } from 'node:fs'
import type { DeviceNumber } from '../../native/device-mapper.ts'
import { SECTOR_BYTES } from '../units.ts'
import { DeltamapperError } from '../errors.ts'

export interface Attributes {
  readonly name: string
  /** Empty when it has none. */
  readonly uuid: string
  readonly readOnly: boolean
  /** In bytes. */
  readonly size: number
  /** Sectors written and discarded through the device, as the kernel has counted. */
  readonly writes: string
}

/** `writes` of a device that nobody has written to since it was activated. */
export const UNWRITTEN = '0 0'

const files = ['dm/name', 'dm/uuid', 'ro', 'size', 'stat']

export class DeviceAttributes {
  readonly device: DeviceNumber
  readonly #descriptors: number[] = []
  readonly #buffer = Buffer.alloc(4096)

  /** @throws DM_NO_SUCH_DEVICE where it is not device-mapper's */
  constructor(device: DeviceNumber) {
    this.device = device
    const { major, minor } = device
    try {
      for (const file of files) this.#descriptors.push(openSync(`/sys/dev/block/${major}:${minor}/${file}`, 'r'))
    } catch (cause) {
      this.close()
      throw new DeltamapperError(
        'DM_NO_SUCH_DEVICE',
        `block device ${major}:${minor} is no device-mapper device`,
        "name the snapshot's block device with --device",
        { cause }
      )
    }
  }

  read(): Attributes {
    const [name, uuid, readOnly, sectors, stat] = this.#descriptors.map((file) => {
      const bytes = readSync(file, this.#buffer, 0, this.#buffer.length, 0)
      return this.#buffer.toString('utf8', 0, bytes).trim()
    })
    return { name, uuid, readOnly: readOnly !== '0', size: Number(sectors) * SECTOR_BYTES, writes: writesIn(stat) }
  }

  close(): void {
    for (const file of this.#descriptors.splice(0)) closeSync(file)
  }
}

/**
 * Fields 7 and 14 of Documentation/block/stat.rst: sectors written and discarded. (A flush alone counts as a write of
 * none.)
 */
function writesIn(stat: string): string {
  const fields = stat.split(/\s+/)
  return [6, 13].map((at) => fields[at] ?? '0').join(' ')
}
