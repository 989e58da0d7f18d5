/**
 * What sysfs says of a device-mapper device, as often as somebody asks, for a system call each. The files stay open: a
 * device that is in use does not go away.
 */
import { closeSync, openSync, readSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import type { DeviceNumber } from '../../native/device-mapper.ts'
import { DeltamapperError } from '../errors.ts'
import { SECTOR_BYTES } from '../units.ts'

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
/** What is under way, and whether the kernel counts. */
const [INFLIGHT, IOSTATS] = ['inflight', 'queue/iostats']
const opened = [...files, INFLIGHT, IOSTATS]

/** How long a write may at least be under way, and how often to look, in milliseconds. */
const [WRITE_MS, LOOK_MS] = [30_000, 5]

export class DeviceAttributes {
  readonly device: DeviceNumber
  /** Of `opened`. */
  readonly #descriptors: number[] = []
  readonly #buffer = Buffer.alloc(4096)

  /** @throws DM_NO_SUCH_DEVICE where it is not device-mapper's */
  constructor(device: DeviceNumber) {
    this.device = device
    const { major, minor } = device
    try {
      for (const file of opened) this.#descriptors.push(openSync(`/sys/dev/block/${major}:${minor}/${file}`, 'r'))
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
   * What it says once nobody is writing; undefined where somebody was at each of so many looks. Since Linux 6.4 a write
   * is counted when all of it is done; parts of it can be read before.
   */
  async settledAfter(mostLooks: number): Promise<Attributes | undefined> {
    for (let look = 0; look < mostLooks; look++) {
      if (look > 0) await sleep(LOOK_MS)
      // First: what ends after this is still to be counted, and what has ended before is.
      const [, writes] = this.#text(INFLIGHT).split(/\s+/)
      if (writes === '0') return this.#read()
    }
    return undefined
  }

  /** @throws DM_SNAPSHOT_CHANGED where a write takes longer than anybody waits for */
  async settled(): Promise<Attributes> {
    const found = await this.settledAfter(WRITE_MS / LOOK_MS)
    if (found) return found
    const { major, minor } = this.device
    throw new DeltamapperError(
      'DM_SNAPSHOT_CHANGED',
      `somebody has been writing to block device ${major}:${minor} for ${WRITE_MS / 1000} s`,
      'throw away what was copied; keep snapshots read-only'
    )
  }

  /** Whether the kernel is told to count. */
  get isCounted(): boolean {
    return this.#text(IOSTATS) === '1'
  }

  #read(): Attributes {
    const [name, uuid, readOnly, sectors, stat] = files.map((file) => this.#text(file))
    return {
      name,
      uuid,
      readOnly: readOnly !== '0',
      size: Number(sectors) * SECTOR_BYTES,
      writes: countIn(stat, 6, 13)
    }
  }

  /** @throws DM_NO_SUCH_DEVICE where the device was removed since (ENODEV: kernfs_get_active in fs/kernfs/file.c) */
  #text(file: string): string {
    try {
      const bytes = readSync(this.#descriptors[opened.indexOf(file)], this.#buffer, 0, this.#buffer.length, 0)
      return this.#buffer.toString('utf8', 0, bytes).trim()
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code !== 'ENODEV') throw cause
      const { major, minor } = this.device
      const gone = `block device ${major}:${minor} is gone`
      throw new DeltamapperError('DM_NO_SUCH_DEVICE', gone, 'ask again once it is there', { cause })
    }
  }

  /**
   * Finds out whether the kernel counts: newer ones do not where queue/iostats is 0, older ones do all the same.
   *
   * @param read reads something, past the page cache
   * @throws DM_NOT_TRACKED where it is not counted, so that writes would show nowhere; what reading throws
   */
  async checkCounted(read: () => Promise<unknown>): Promise<void> {
    const readSectors = () => countIn(this.#text('stat'), 2)
    const before = readSectors()
    await read()
    if (readSectors() === before) throw notCounted(this.device)
  }

  close(): void {
    for (const file of this.#descriptors.splice(0)) closeSync(file)
  }
}

/**
 * Fields of Documentation/block/stat.rst, counted from 0: sectors read (2), written (6) and discarded (13). (A flush
 * alone counts as a write of none.)
 */
function countIn(stat: string, ...at: number[]): string {
  const fields = stat.split(/\s+/)
  return at.map((each) => fields[each] ?? '0').join(' ')
}

function notCounted({ major, minor }: DeviceNumber): DeltamapperError {
  return new DeltamapperError(
    'DM_NOT_TRACKED',
    `the kernel does not count what is read from and written to block device ${major}:${minor}`,
    'write 1 to queue/iostats of the device, below /sys/block'
  )
}
