/**
 * Writes a base record, in bounded memory, and durably before it is reported.
 *
 * The file gets its name last, once all of it is on disk: a record found by its name is complete.
 */
import { randomUUID } from 'node:crypto'
import { open, rename, rm, type FileHandle } from 'node:fs/promises'
import { dirname } from 'node:path'
import { constants, zstdCompressSync } from 'node:zlib'
import { type BaseRecordHeader, encodePreamble, FRAME_BYTES, frameChecksum } from './format.ts'
import { RunEncoder } from './runs.ts'

/** Faster than the walk; a slower level would find little more in runs. */
const COMPRESSION = { params: { [constants.ZSTD_c_compressionLevel]: 1 } }

export class BaseRecordWriter {
  readonly #path: string
  readonly #partPath: string
  readonly #file: FileHandle
  readonly #expected: number
  readonly #seed: number
  readonly #encoder = new RunEncoder()
  /** Finished frames that are still to be written. */
  #waiting: Buffer[] = []
  #frames = 0
  #mappedBlocks = 0
  #bytes = 0
  /** The run that may still grow. */
  #start = 0
  #length = 0
  #data = 0
  #time = 0

  private constructor(path: string, partPath: string, file: FileHandle, header: BaseRecordHeader) {
    this.#path = path
    this.#partPath = partPath
    this.#file = file
    this.#expected = header.device.mappedBlocks
    const preamble = encodePreamble(header)
    this.#seed = preamble.readUInt32LE(24)
    this.#waiting.push(preamble)
  }

  /**
   * Begins a record beside `path`, under a name of its own that ends in `.part` until it is finished. @throws what open
   * throws
   */
  static async begin(path: string, header: BaseRecordHeader): Promise<BaseRecordWriter> {
    const partPath = `${path}.${randomUUID()}.part`
    return new BaseRecordWriter(path, partPath, await open(partPath, 'wx', 0o600), header)
  }

  /** Bytes of the file so far. */
  get bytes(): number {
    return this.#bytes
  }

  /** Adds mappings behind all those added before. */
  add(start: number, length: number, data: number, time: number): void {
    const isNext = start === this.#start + this.#length && data === this.#data + this.#length && time === this.#time
    if (isNext && this.#length > 0) {
      this.#length += length
      return
    }
    this.#closeRun()
    this.#start = start
    this.#length = length
    this.#data = data
    this.#time = time
  }

  /** Writes the full frames. Await it now and then: until then, mappings are held in memory. */
  async drain(): Promise<void> {
    const waiting = this.#waiting
    if (waiting.length === 0) return
    this.#waiting = []
    for (const each of waiting) this.#bytes += each.length
    await this.#file.appendFile(Buffer.concat(waiting))
  }

  /**
   * Ends the record and gives it its name, once all of it is on disk.
   *
   * @returns false, with nothing left, if it has not as many blocks as its header says
   */
  async finish(): Promise<boolean> {
    this.#closeRun()
    this.#closeFrame()
    if (this.#mappedBlocks !== this.#expected) {
      await this.abandon()
      return false
    }
    this.#waiting.push(this.#frame(Buffer.alloc(0), 0, 0, this.#mappedBlocks))
    try {
      await this.drain()
      await this.#file.sync()
      await this.#file.close()
      await rename(this.#partPath, this.#path)
      await syncFolder(dirname(this.#path))
    } catch (error) {
      await this.abandon()
      throw error
    }
    return true
  }

  /** Leaves nothing behind. */
  async abandon(): Promise<void> {
    await this.#file.close().catch(() => undefined)
    await rm(this.#partPath, { force: true })
  }

  #closeRun(): void {
    if (this.#length === 0) return
    if (this.#encoder.isFull) this.#closeFrame()
    this.#encoder.add(this.#start, this.#length, this.#data, this.#time)
    this.#mappedBlocks += this.#length
    this.#length = 0
  }

  #closeFrame(): void {
    const { count, first } = this.#encoder
    if (count === 0) return
    const raw = this.#encoder.encoded()
    this.#waiting.push(this.#frame(zstdCompressSync(raw, COMPRESSION), raw.length, count, first))
    this.#encoder.clear()
  }

  #frame(runs: Buffer, rawBytes: number, count: number, first: number): Buffer {
    const head = Buffer.alloc(FRAME_BYTES)
    head.writeUInt32LE(runs.length, 0)
    head.writeUInt32LE(rawBytes, 4)
    head.writeUInt32LE(count, 8)
    head.writeUInt32LE(this.#frames++, 12)
    head.writeBigUInt64LE(BigInt(first), 16)
    head.writeUInt32LE(frameChecksum(head, runs, this.#seed), FRAME_BYTES - 4)
    return Buffer.concat([head, runs])
  }
}

/** Makes a name in a folder durable. */
async function syncFolder(path: string): Promise<void> {
  const folder = await open(path, 'r')
  try {
    await folder.sync()
  } finally {
    await folder.close()
  }
}
