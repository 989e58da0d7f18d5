/**
 * Reads an image or a block device at any place: around the page cache, which a backup would only fill with what nobody
 * wants again, in whole pages and with a deadline. An image on a file system that cannot do that is read through the
 * page cache.
 */
import { constants, fstatSync, readFileSync, type Stats } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { decodeDeviceNumber, type DeviceNumber } from '../../native/device.ts'
import { DeviceReads, type ReadTerms } from '../devicemapper/device-reads.ts'
import { DeltamapperError } from '../errors.ts'
import { SECTOR_BYTES } from '../units.ts'
import type { ExportData, Part } from './export.ts'
import { JoinedReads } from './joined-reads.ts'
import { readBuffers } from './read-buffers.ts'

const PAGE_BYTES = 4096
/** How long a read may take, in milliseconds: what disks take to give up. */
const DEADLINE_MS = 30_000

export interface DataFileOptions {
  /** No faster than so many bytes a second. */
  readonly bytesPerSecond?: number | undefined
}

/** What it holds is also what a volume holds, byte for byte, where it is the volume's own device. */
export class DataFile implements ExportData {
  readonly path: string
  /** Undefined for a file. */
  readonly device: DeviceNumber | undefined
  readonly #file: FileHandle
  /** Reads begin and end at multiples of so many bytes. */
  readonly #unitBytes: number
  readonly #requests: DeviceReads
  readonly #joined: JoinedReads
  readonly #opened: Stats

  private constructor(path: string, { file, isDirect }: OpenFile, opened: Stats, bytesPerSecond: number | undefined) {
    this.path = path
    this.device = opened.isBlockDevice() ? decodeDeviceNumber(opened.rdev) : undefined
    this.#file = file
    this.#unitBytes = isDirect ? PAGE_BYTES : 1
    this.#opened = opened
    this.#requests = DeviceReads.join(`data ${opened.isBlockDevice() ? opened.rdev : `${opened.dev} ${opened.ino}`}`)
    const terms: ReadTerms = { deadlineMs: DEADLINE_MS, bytesPerSecond }
    this.#joined = new JoinedReads((into, at) => this.#requests.readInto(file.fd, into, at, terms))
  }

  /** @throws DM_READ_FAILED when it cannot be opened, or is neither a file nor a block device */
  static async open(path: string, { bytesPerSecond }: DataFileOptions = {}): Promise<DataFile> {
    const opened = await openDirect(path).catch((cause: NodeJS.ErrnoException) => {
      throw failed(`${path} cannot be opened (${cause.code ?? cause.message})`, 'check its path and permissions', cause)
    })
    try {
      const status = await opened.file.stat()
      if (!status.isBlockDevice() && !status.isFile()) {
        throw failed(`${path} is neither a file nor a block device`, 'name the data image or device')
      }
      return new DataFile(path, opened, status, bytesPerSecond)
    } catch (error) {
      await opened.file.close().catch(() => undefined)
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
  async readAt(position: number, size: number, into: Buffer): Promise<Buffer> {
    const unit = this.#unitBytes
    const start = Math.floor(position / unit) * unit
    const end = Math.ceil((position + size) / unit) * unit
    const skipped = position - start
    let done = 0
    try {
      while (done < skipped + size) {
        const count = await this.#joined.read(into.subarray(done, end - start), start + done)
        done += count
        // What is left of a page is the end.
        if (count === 0 || count % unit !== 0) break
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

  /** One part: every byte is at its own offset. */
  async parts(offset: number, size: number): Promise<Part[]> {
    return [{ offset, size, position: offset }]
  }

  /** @throws what `readAt` throws */
  async read({ offset, size, position = offset }: Part, into: Buffer): Promise<Buffer> {
    return this.readAt(position, size, into)
  }

  /** Reads the first page, or what there is of it. @throws DM_READ_FAILED */
  async readPage(): Promise<void> {
    const buffer = readBuffers.take()
    // One that the kernel may still write to is not used again.
    await this.readAt(0, Math.min(PAGE_BYTES, this.sizeBytes), buffer)
    readBuffers.giveBack(buffer)
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

interface OpenFile {
  readonly file: FileHandle
  readonly isDirect: boolean
}

/** Around the page cache where that can be done. @throws what fs.open throws */
async function openDirect(path: string): Promise<OpenFile> {
  // O_NONBLOCK: a FIFO by mistake is not waited for.
  const flags = constants.O_RDONLY | constants.O_NONBLOCK
  const direct = await open(path, flags | constants.O_DIRECT).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'EINVAL') throw error
  })
  if (direct) {
    // A device can always do it, and may hang: it is read with a deadline only.
    if (!(await direct.stat()).isFile()) return { file: direct, isDirect: true }
    const buffer = readBuffers.take()
    // Some file systems say so only when they are read.
    const isDirect = await direct.read(buffer, 0, PAGE_BYTES, 0).then(
      () => true,
      (error: NodeJS.ErrnoException) => error.code !== 'EINVAL'
    )
    readBuffers.giveBack(buffer)
    if (isDirect) return { file: direct, isDirect }
    await direct.close()
  }
  return { file: await open(path, flags), isDirect: false }
}

function failed(what: string, remedy: string, cause?: unknown): DeltamapperError {
  return new DeltamapperError('DM_READ_FAILED', what, remedy, { cause })
}
