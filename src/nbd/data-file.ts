/**
 * Reads an image or a block device at any place: a device around the page cache, in whole pages and with a deadline, an
 * image through it.
 */
import { constants, fstatSync, readFileSync, type Stats } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { decodeDeviceNumber, type DeviceNumber } from '../../native/device.ts'
import { DeviceReads } from '../devicemapper/device-reads.ts'
import { DeltamapperError } from '../errors.ts'
import { SECTOR_BYTES } from '../units.ts'

const PAGE_BYTES = 4096
/** How long a read may take, in milliseconds: what disks take to give up. */
const DEADLINE_MS = 30_000

export interface DataFileOptions {
  /** No faster than so many bytes a second. */
  readonly bytesPerSecond?: number | undefined
}

export class DataFile {
  readonly path: string
  /** Undefined for a file. */
  readonly device: DeviceNumber | undefined
  readonly #file: FileHandle
  readonly #requests: DeviceReads
  readonly #bytesPerSecond: number | undefined
  readonly #opened: Stats

  private constructor(path: string, file: FileHandle, opened: Stats, bytesPerSecond: number | undefined) {
    this.path = path
    this.device = opened.isBlockDevice() ? decodeDeviceNumber(opened.rdev) : undefined
    this.#file = file
    this.#opened = opened
    this.#bytesPerSecond = bytesPerSecond
    this.#requests = DeviceReads.join(`data ${opened.isBlockDevice() ? opened.rdev : `${opened.dev} ${opened.ino}`}`)
  }

  /** @throws DM_READ_FAILED when it cannot be opened, or is neither a file nor a block device */
  static async open(path: string, { bytesPerSecond }: DataFileOptions = {}): Promise<DataFile> {
    const opening = (flags: number) =>
      open(path, constants.O_RDONLY | constants.O_NONBLOCK | flags).catch((cause: NodeJS.ErrnoException) => {
        throw failed(
          `${path} cannot be opened (${cause.code ?? cause.message})`,
          'check its path and permissions',
          cause
        )
      })
    let file = await opening(0)
    try {
      let status = await file.stat()
      if (status.isBlockDevice()) {
        await file.close()
        file = await opening(constants.O_DIRECT)
        status = await file.stat()
      }
      if (!status.isBlockDevice() && !status.isFile()) {
        throw failed(`${path} is neither a file nor a block device`, 'name the data image or device')
      }
      return new DataFile(path, file, status, bytesPerSecond)
    } catch (error) {
      await file.close().catch(() => undefined)
      throw error
    }
  }

  /** In bytes. */
  get sizeBytes(): number {
    if (this.device === undefined) return this.#opened.size
    const { major, minor } = this.device
    return Number(readFileSync(`/sys/dev/block/${major}:${minor}/size`, 'utf8')) * SECTOR_BYTES
  }

  /**
   * Reads `size` bytes at `position`.
   *
   * @param into page-aligned, with room for 8 KiB more
   * @returns the bytes, somewhere in `into`
   * @throws DM_READ_FAILED, also where it ends before
   */
  async read(position: number, size: number, into: Buffer): Promise<Buffer> {
    const page = this.device === undefined ? 1 : PAGE_BYTES
    const start = Math.floor(position / page) * page
    const end = Math.ceil((position + size) / page) * page
    const skipped = position - start
    const terms = { deadlineMs: DEADLINE_MS, bytesPerSecond: this.#bytesPerSecond }
    let done = 0
    try {
      // A device may end in the middle of the last page.
      while (done < skipped + size) {
        const count = await this.#requests.read(this.#file.fd, into, done, end - start - done, start + done, terms)
        if (count === 0) break
        done += count
      }
    } catch (cause) {
      const { code, message } = cause as NodeJS.ErrnoException
      throw failed(
        `${this.path} cannot be read at ${position} (${code ?? message})`,
        'look into the kernel log for what is wrong with it',
        cause
      )
    }
    if (done < skipped + size) {
      throw failed(`${this.path} ends before ${position + size}`, 'check that the copy is whole')
    }
    return into.subarray(skipped, skipped + size)
  }

  /** @throws DM_SNAPSHOT_CHANGED when an image was written to since it was opened */
  checkUnchanged(): void {
    if (this.device !== undefined) return
    const now = fstatSync(this.#file.fd)
    const { size, mtimeMs, ctimeMs } = this.#opened
    if (now.size === size && now.mtimeMs === mtimeMs && now.ctimeMs === ctimeMs) return
    throw new DeltamapperError(
      'DM_SNAPSHOT_CHANGED',
      `${this.path} was written to while it was served`,
      'begin again, on a copy that nobody changes'
    )
  }

  async close(): Promise<void> {
    this.#requests.leave()
    await this.#file.close()
  }
}

function failed(what: string, remedy: string, cause?: unknown): DeltamapperError {
  return new DeltamapperError('DM_READ_FAILED', what, remedy, { cause })
}
