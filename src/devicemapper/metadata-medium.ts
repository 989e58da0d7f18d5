/**
 * Where metadata blocks are read from: a block device, a file, or whatever is given in their place. The only place
 * in this room that
 * touches a file descriptor.
 *
 * Devices are read with O_DIRECT: the pool writes through dm-bufio, around the page cache, and keeps the device
 * open, so that
 * buffered reads would return what was true minutes ago.
 *
 * A file that is read through the page cache is read in place, synchronously: what is in memory already is copied
 * in less time than it
 * takes to ask another thread for it. It holds up whatever else this thread has to do, so that is walker threads'
 * and tools' work.
 */
import { constants, fstatSync, readFileSync, readSync } from 'node:fs'
import { open, type FileHandle } from 'node:fs/promises'
import { decodeDeviceNumber } from '../../native/device.ts'
import { DeltamapperError } from '../errors.ts'
import { systemRemedy } from '../system-errors.ts'
import { DeviceReads } from './device-reads.ts'
import { ReadQueue } from './read-queue.ts'
import type { FailedRun, ReadRuns } from './read-runs.ts'
import { SECTOR_BYTES } from '../units.ts'
import type { DeviceNumber } from './target-words.ts'
import { windowTurns } from './window-turns.ts'

/**
 * How long a request around the page cache may take unless it is said otherwise, in milliseconds: what disks take
 * to give up.
 */
const READ_DEADLINE_MS = 30_000

export interface MetadataMedium {
  readonly sizeBytes: number
  /** The block device that it is; undefined for a file. */
  readonly device: DeviceNumber | undefined
  /** Requests take time, and many should be under way at once: read with `readRuns`. Otherwise with `readNow`. */
  readonly isDirect: boolean
  /** For as long as it is open. */
  readonly descriptor: number
  /**
   * Reads into page-aligned memory, which with the runs is the medium's until this has settled. @returns a run that was
   * not read whole, if there is one: one that the kernel still has (Unanswered.sent), rather than another
   */
  readRuns(into: Uint8Array, runs: ReadRuns): Promise<FailedRun | undefined>
  readNow(into: Uint8Array, start: number, bytes: number, position: number): number
  close(): Promise<void>
}

/**
 * How reads around the page cache are made: by threads that wait for them (`preadv`), or through the kernel's queue
 * (`aio`), which costs a fraction. `auto`: by threads where the kernel has no queue for us.
 *
 * Whoever uses the queue waits in it for a millisecond now and then, unless `readWithoutWaiting` was called.
 */
export const waysToRead = ['auto', 'aio', 'preadv'] as const
export type WayToRead = (typeof waysToRead)[number]

/** Of this JavaScript thread, where it is not said otherwise. */
let wayByDefault: WayToRead = 'preadv'

/** From now on this JavaScript thread reads so, where it is not said otherwise, and never waits in the queue. */
export async function readWithoutWaiting(reads: WayToRead): Promise<void> {
  wayByDefault = reads
  if (reads === 'preadv') return
  const queue = await ReadQueue.ofThread().catch(() => undefined)
  queue?.neverWait()
}

/** How a medium is opened and read. */
export interface MediumOptions {
  /** Read around the page cache; always so for devices, on request for files. */
  direct?: boolean | undefined
  /** By default `preadv`, or what `readWithoutWaiting` was told. */
  reads?: WayToRead | undefined
  /** How long a request around the page cache may take, in milliseconds; 30,000 by default. */
  deadlineMs?: number | undefined
  /**
   * No faster than so many bytes a second around the page cache, together with all that this thread reads from
   * there.
   */
  bytesPerSecond?: number | undefined
}

/** @throws DM_READ_FAILED when it cannot be opened, or is neither a file nor a block device */
export type OpenMedium = (path: string, options: MediumOptions) => Promise<MetadataMedium>

/** Files and block devices of this machine. */
export const openMedium: OpenMedium = async (path, options) => {
  let file: FileHandle
  try {
    // O_NONBLOCK: opening a FIFO by mistake must fail below, not wait for a writer for ever.
    file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK)
  } catch (cause) {
    throw cannotOpen(path, cause)
  }
  try {
    // (What the kernel has in memory is asked in place: handing it to a thread takes longer.)
    let status = fstatSync(file.fd)
    const isDevice = status.isBlockDevice()
    if (!isDevice && !status.isFile()) {
      throw new DeltamapperError(
        'DM_READ_FAILED',
        `${path} is neither a file nor a block device`,
        "name the pool's metadata device, or a copy of it"
      )
    }
    const isDirect = isDevice || (options.direct ?? false)
    if (isDirect) {
      const first = file
      file = await open(path, constants.O_RDONLY | constants.O_DIRECT).finally(() => first.close())
      status = fstatSync(file.fd)
    }
    const { rdev, dev, ino } = status
    const device = isDevice ? decodeDeviceNumber(rdev) : undefined
    const sizeBytes = device ? deviceSizeBytes(device) : status.size
    const queue = isDirect ? await queueFor(path, options.reads) : undefined
    const requests = isDirect ? DeviceReads.join(isDevice ? `device ${rdev}` : `file ${dev}:${ino}`) : undefined
    return new FileMedium(file, { sizeBytes, device }, requests, queue, options)
  } catch (cause) {
    await file.close().catch(() => undefined)
    throw cause instanceof DeltamapperError ? cause : cannotOpen(path, cause)
  }
}

class FileMedium implements MetadataMedium {
  readonly sizeBytes: number
  readonly device: DeviceNumber | undefined
  readonly #file: FileHandle
  /** Undefined where reads go through the page cache. */
  readonly #requests: DeviceReads | undefined
  readonly #queue: ReadQueue | undefined
  readonly #options: MediumOptions
  #bytesRead = 0

  constructor(
    file: FileHandle,
    { sizeBytes, device }: Pick<MetadataMedium, 'sizeBytes' | 'device'>,
    requests: DeviceReads | undefined,
    queue: ReadQueue | undefined,
    options: MediumOptions
  ) {
    this.sizeBytes = sizeBytes
    this.device = device
    this.#file = file
    this.#requests = requests
    this.#queue = queue
    this.#options = options
  }

  get isDirect(): boolean {
    return this.#requests !== undefined
  }

  get descriptor(): number {
    return this.#file.fd
  }

  async readRuns(into: Uint8Array, runs: ReadRuns): Promise<FailedRun | undefined> {
    const { deadlineMs = READ_DEADLINE_MS, bytesPerSecond } = this.#options
    if (!this.#requests) throw new Error(`${this.#file.fd} is read through the page cache`)
    const failed = await this.#requests.readRuns(this.#file.fd, into, runs, { deadlineMs, bytesPerSecond }, this.#queue)
    this.#bytesRead += runs.bytes
    await windowTurns.take(this.#bytesRead)
    return failed
  }

  readNow(into: Uint8Array, start: number, bytes: number, position: number): number {
    return readSync(this.#file.fd, into, start, bytes, position)
  }

  async close(): Promise<void> {
    this.#requests?.leave()
    await this.#file.close()
  }
}

/** @throws DM_READ_FAILED when there has to be one, and is none */
async function queueFor(path: string, reads = wayByDefault): Promise<ReadQueue | undefined> {
  if (reads === 'preadv') return undefined
  try {
    return await ReadQueue.ofThread()
  } catch (cause) {
    if (reads === 'auto') return undefined
    throw new DeltamapperError(
      'DM_READ_FAILED',
      `${path} cannot be read through the kernel's queue: ${(cause as Error).message}`,
      'leave `reads` at `auto`, or raise fs.aio-max-nr',
      { cause }
    )
  }
}

function cannotOpen(path: string, cause: unknown): DeltamapperError {
  const { code, message } = cause as NodeJS.ErrnoException
  const remedy =
    code === 'ENOENT'
      ? 'check the path; the metadata device of a pool exists only while the pool is active'
      : code === 'EINVAL'
        ? 'the file system below does not take O_DIRECT: read the file without it'
        : (systemRemedy(cause) ?? 'check the path and the device')
  return new DeltamapperError('DM_READ_FAILED', `cannot open ${path}: ${message}`, remedy, { cause })
}

/**
 * Size of a block device. `stat` says 0; sysfs counts in sectors of 512 bytes whatever the device's own sector
 * size.
 */
function deviceSizeBytes({ major, minor }: DeviceNumber): number {
  const sectors = readFileSync(`/sys/dev/block/${major}:${minor}/size`, 'utf8')
  return Number(sectors) * SECTOR_BYTES
}
