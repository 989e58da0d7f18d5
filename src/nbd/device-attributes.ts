/**
 * What sysfs says of a device-mapper device, as often as somebody asks, for a system call each. The files stay open: a
 * device that is in use does not go away.
 */
import { closeSync, openSync, readSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
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
  /** Whether the kernel counts what is written (queue/iostats). */
  readonly isCounted: boolean
  /** Sectors written and discarded through the device, as the kernel has counted. */
  readonly writes: string
}

/** `writes` of a device that nobody has written to since it was activated. */
export const UNWRITTEN = '0 0'

const files = ['dm/name', 'dm/uuid', 'ro', 'size', 'queue/iostats', 'stat']

/** How long a write may be under way, and how often to look, in milliseconds. */
const [WRITE_MS, LOOK_MS] = [30_000, 5]

export class DeviceAttributes {
  readonly device: DeviceNumber
  /** `files`, and behind them the one that says what is under way. */
  readonly #descriptors: number[] = []
  readonly #buffer = Buffer.alloc(4096)

  /** @throws DM_NO_SUCH_DEVICE where it is not device-mapper's */
  constructor(device: DeviceNumber) {
    this.device = device
    const { major, minor } = device
    try {
      for (const file of [...files, 'inflight'])
        this.#descriptors.push(openSync(`/sys/dev/block/${major}:${minor}/${file}`, 'r'))
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

  /**
   * What it says once nobody is writing. Since Linux 6.4 a write is counted when all of it is done; parts of it can be
   * read before.
   *
   * @throws DM_SNAPSHOT_CHANGED where a write takes longer than anybody waits for
   */
  async settled(): Promise<Attributes> {
    for (const deadline = performance.now() + WRITE_MS; performance.now() < deadline; await sleep(LOOK_MS)) {
      // First: what ends after this is still to be counted, and what has ended before is.
      const [, writes] = this.#text(this.#descriptors[files.length]).split(/\s+/)
      if (writes === '0') return this.#read()
    }
    const { major, minor } = this.device
    throw new DeltamapperError(
      'DM_SNAPSHOT_CHANGED',
      `somebody has been writing to block device ${major}:${minor} for ${WRITE_MS / 1000} s`,
      'throw away what was copied; keep snapshots read-only'
    )
  }

  #read(): Attributes {
    const [name, uuid, readOnly, sectors, counted, stat] = files.map((_, i) => this.#text(this.#descriptors[i]))
    return {
      ...{ name, uuid, readOnly: readOnly !== '0', size: Number(sectors) * SECTOR_BYTES },
      ...{ isCounted: counted !== '0', writes: writesIn(stat) }
    }
  }

  #text(descriptor: number): string {
    const bytes = readSync(descriptor, this.#buffer, 0, this.#buffer.length, 0)
    return this.#buffer.toString('utf8', 0, bytes).trim()
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

/** @throws DM_NOT_TRACKED where writes would show nowhere */
export function checkCounted(path: string, { isCounted }: Attributes): void {
  if (isCounted) return
  throw new DeltamapperError(
    'DM_NOT_TRACKED',
    `the kernel does not count what is written to ${path} (queue/iostats is 0)`,
    'write 1 to queue/iostats of the device, below /sys/block'
  )
}
