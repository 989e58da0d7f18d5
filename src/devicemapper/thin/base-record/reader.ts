/**
 * Reads a base record: frame after frame, each checked before it is used.
 */
import { crc32c } from '@node-rs/crc32'
import { constants } from 'node:fs'
import { open, type FileHandle } from 'node:fs/promises'
import { promisify } from 'node:util'
import { zstdDecompress } from 'node:zlib'
import { DeltamapperError } from '../../../errors.ts'
import { systemRemedy } from '../../../system-errors.ts'
import {
  type BaseRecordHeader,
  damagedRecord,
  decodePreamble,
  FRAME_BYTES,
  frameChecksum,
  MAX_BLOCK,
  MAX_FRAME_RUNS_BYTES,
  MAX_HEADER_BYTES,
  PREAMBLE_BYTES,
  type RecordedFrame,
  STORED_SINCE,
  VERSION
} from './format.ts'
import { ENTRIES_MARK, EntryDecoder } from './entries.ts'
import { PACKED_MARK, PairDecoder } from './packed-pairs.ts'
import { RunDecoder } from './runs.ts'

const decompress = promisify(zstdDecompress)

/** The header of a frame. */
interface FrameHead {
  readonly bytes: Buffer
  readonly compressedBytes: number
  readonly rawBytes: number
  readonly count: number
  /** First virtual block; in the last frame, blocks mapped in all. */
  readonly first: number
  /** Where the compressed runs begin in the file. */
  readonly at: number
}

/** A frame as it was read. */
interface FrameRead {
  readonly head: FrameHead
  /** Undefined in the last frame. */
  readonly raw: Buffer | undefined
}

export class BaseRecordReader {
  readonly path: string
  readonly header: BaseRecordHeader
  /** Bytes of the file. */
  readonly bytes: number
  readonly #file: FileHandle
  readonly #seed: number
  /** Where the frames begin. */
  readonly #begin: number
  #offset: number
  #frames = 0
  /** Virtual block behind the last run read. */
  #end = 0
  #mappedBlocks = 0
  /** Frames were skipped, so that blocks cannot be counted. */
  #skipped = false
  #ended = false
  readonly #runs = new RunDecoder()
  readonly #entries = new EntryDecoder()
  readonly #pairs = new PairDecoder()
  /** Some frames are not compressed. */
  readonly #storesFrames: boolean
  /**
   * For the bytes of a frame that is in use, and of the one that is read meanwhile: new memory for each would keep the
   * garbage collector busy.
   */
  #memory: [Buffer<ArrayBuffer>, Buffer<ArrayBuffer>] = [Buffer.alloc(0), Buffer.alloc(0)]
  /** The frame at `#offset`, which is read and decompressed beside whoever uses the one before. */
  #ahead: Promise<FrameRead> | undefined

  private constructor(
    path: string,
    file: FileHandle,
    bytes: number,
    { header, version, seed, begin }: { header: BaseRecordHeader; version: number; seed: number; begin: number }
  ) {
    this.#storesFrames = version >= STORED_SINCE
    this.path = path
    this.header = header
    this.bytes = bytes
    this.#file = file
    this.#seed = seed
    this.#begin = this.#offset = begin
  }

  /** @throws DM_BASE_RECORD_FOREIGN for any other file, DM_BASE_RECORD_DAMAGED, DM_READ_FAILED */
  static async open(path: string): Promise<BaseRecordReader> {
    // O_NONBLOCK: nobody waits for the writer of a FIFO.
    const file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK).catch((error: unknown) => {
      throw unreadable(path, error)
    })
    try {
      const status = await file.stat()
      if (!status.isFile()) throw foreign(path)
      const { size } = status
      const preamble = decodePreamble(await readAt(file, path, 0, PREAMBLE_BYTES))
      if (!preamble) throw foreign(path)
      const { version, headerBytes, checksum } = preamble
      if (version < 1 || version > VERSION) throw newer(path, version)
      if (headerBytes > MAX_HEADER_BYTES) throw damagedRecord(path, `its header is of ${headerBytes} bytes`)
      const json = await readAt(file, path, PREAMBLE_BYTES, headerBytes)
      if (json.length < headerBytes) throw damagedRecord(path, 'it ends within its header')
      if (crc32c(json) !== checksum) throw damagedRecord(path, 'the checksum of its header is wrong')
      const begin = PREAMBLE_BYTES + headerBytes
      // Walker threads load this file, and need the schema's library only for records.
      const { parseHeader } = await import('./header.ts')
      const header = parseHeader(path, json)
      return new BaseRecordReader(path, file, size, { header, version, seed: checksum, begin })
    } catch (error) {
      await file.close()
      throw error
    }
  }

  /**
   * Begins (again) with the frame in which a virtual block would be. The runs of those before are not checked.
   *
   * @throws DM_BASE_RECORD_DAMAGED, DM_READ_FAILED
   */
  async startAt(block: number): Promise<void> {
    await this.#forgetAhead()
    this.#offset = this.#begin
    this.#frames = this.#end = this.#mappedBlocks = 0
    this.#skipped = this.#ended = false
    if (block === 0) return
    for (;;) {
      const head = await this.#head(this.#offset, this.#frames)
      if (head.compressedBytes === 0) return
      const next = await this.#head(head.at + head.compressedBytes, this.#frames + 1)
      if (next.compressedBytes === 0 || next.first > block) return
      this.#offset = next.at - FRAME_BYTES
      this.#frames++
      this.#skipped = true
    }
  }

  /**
   * The next frame, all of it behind those before; undefined at the end. It is valid until this is called again.
   *
   * @throws DM_BASE_RECORD_DAMAGED, DM_READ_FAILED
   */
  async next(): Promise<RecordedFrame | undefined> {
    if (this.#ended) return undefined
    const { head, raw } = await (this.#ahead ?? this.#read(this.#offset, this.#frames))
    this.#ahead = undefined
    if (raw === undefined) return this.#checkEnd(head)
    const frame = this.#decode(head, raw)
    const { starts, lengths, count } = frame
    const first = starts[0]
    if (count === 0 || first !== head.first || first < this.#end) {
      throw damagedRecord(this.path, `frame ${this.#frames} begins at block ${first}`)
    }
    this.#end = starts[count - 1] + lengths[count - 1]
    for (let i = 0; i < count; i++) this.#mappedBlocks += lengths[i]
    this.#offset = head.at + head.compressedBytes
    this.#frames++
    this.#ahead = this.#read(this.#offset, this.#frames)
    // Whoever asks for it gets the failure.
    this.#ahead.catch(() => undefined)
    return frame
  }

  async close(): Promise<void> {
    await this.#forgetAhead()
    await this.#file.close()
  }

  async #forgetAhead(): Promise<void> {
    const ahead = this.#ahead
    this.#ahead = undefined
    await ahead?.catch(() => undefined)
  }

  /** @throws DM_BASE_RECORD_DAMAGED, DM_READ_FAILED */
  async #read(offset: number, frame: number): Promise<FrameRead> {
    const head = await this.#head(offset, frame)
    if (head.compressedBytes === 0) {
      this.#checkSum(head, Buffer.alloc(0), frame)
      return { head, raw: undefined }
    }
    const [used, unused] = this.#memory
    const room = head.compressedBytes <= unused.length ? unused : Buffer.allocUnsafeSlow(head.compressedBytes)
    this.#memory = [room, used]
    const compressed = await readAt(this.#file, this.path, head.at, head.compressedBytes, room)
    if (compressed.length < head.compressedBytes) throw damagedRecord(this.path, 'it ends within a frame')
    this.#checkSum(head, compressed, frame)
    if (this.#storesFrames && head.compressedBytes === head.rawBytes) return { head, raw: compressed }
    const size = { maxOutputLength: MAX_FRAME_RUNS_BYTES, chunkSize: Math.max(64, head.rawBytes) }
    const raw = await decompress(compressed, size).catch((error: unknown) => {
      throw damagedRecord(this.path, error instanceof Error ? error.message : String(error), error)
    })
    return { head, raw }
  }

  /** @throws DM_BASE_RECORD_DAMAGED */
  #decode({ rawBytes, count }: FrameHead, raw: Buffer): RecordedFrame {
    try {
      if (raw.length !== rawBytes) throw new Error(`${raw.length} bytes of runs, where ${rawBytes} are due`)
      if (raw[0] === PACKED_MARK) return this.#pairs.decode(raw, count)
      return (raw[0] === ENTRIES_MARK ? this.#entries : this.#runs).decode(raw, count)
    } catch (error) {
      throw damagedRecord(this.path, error instanceof Error ? error.message : String(error), error)
    }
  }

  /** @throws DM_BASE_RECORD_DAMAGED when something is missing, or follows */
  #checkEnd(head: FrameHead): undefined {
    if (head.at !== this.bytes) throw damagedRecord(this.path, 'something follows its end')
    const { mappedBlocks } = this.header.device
    const isWhole = head.first === mappedBlocks && (this.#skipped || this.#mappedBlocks === mappedBlocks)
    if (!isWhole) throw damagedRecord(this.path, `it has ${this.#mappedBlocks} of ${mappedBlocks} blocks`)
    this.#ended = true
    return undefined
  }

  #checkSum({ bytes }: FrameHead, compressed: Buffer, frame: number): void {
    if (bytes.readUInt32LE(FRAME_BYTES - 4) === frameChecksum(bytes, compressed, this.#seed)) return
    throw damagedRecord(this.path, `the checksum of frame ${frame} is wrong`)
  }

  async #head(offset: number, frame: number): Promise<FrameHead> {
    const bytes = await readAt(this.#file, this.path, offset, FRAME_BYTES)
    if (bytes.length < FRAME_BYTES) throw damagedRecord(this.path, 'it ends before its last frame')
    const head = {
      bytes,
      compressedBytes: bytes.readUInt32LE(0),
      rawBytes: bytes.readUInt32LE(4),
      count: bytes.readUInt32LE(8),
      first: Number(bytes.readBigUInt64LE(16)),
      at: offset + FRAME_BYTES
    }
    const isPossible =
      bytes.readUInt32LE(12) === frame &&
      head.compressedBytes <= 2 * MAX_FRAME_RUNS_BYTES &&
      head.rawBytes <= MAX_FRAME_RUNS_BYTES &&
      head.first <= MAX_BLOCK
    if (!isPossible) throw damagedRecord(this.path, `frame ${frame} is none`)
    return head
  }
}

/**
 * Reads a record to its end, which shows that it is whole.
 *
 * @returns what it stands for, and its size in bytes
 * @throws DM_BASE_RECORD_FOREIGN, DM_BASE_RECORD_DAMAGED, DM_READ_FAILED
 */
export async function readWholeRecord(path: string): Promise<Pick<BaseRecordReader, 'header' | 'bytes'>> {
  const reader = await BaseRecordReader.open(path)
  try {
    while (await reader.next());
    return { header: reader.header, bytes: reader.bytes }
  } finally {
    await reader.close()
  }
}

/** Up to `length` bytes, in `buffer`; less only where the file ends. @throws DM_READ_FAILED */
async function readAt(
  file: FileHandle,
  path: string,
  position: number,
  length: number,
  buffer = Buffer.allocUnsafe(length)
): Promise<Buffer> {
  let filled = 0
  while (filled < length) {
    const { bytesRead } = await file
      .read(buffer, filled, length - filled, position + filled)
      .catch((error: unknown) => {
        throw unreadable(path, error)
      })
    if (bytesRead === 0) break
    filled += bytesRead
  }
  return buffer.subarray(0, filled)
}

function unreadable(path: string, cause: unknown): DeltamapperError {
  const what = cause instanceof Error ? cause.message : String(cause)
  return new DeltamapperError(
    'DM_READ_FAILED',
    `the base record ${path} cannot be read: ${what}`,
    systemRemedy(cause) ?? 'name a file that `deltamapper base save` has written',
    {
      cause
    }
  )
}

function foreign(path: string): DeltamapperError {
  return new DeltamapperError(
    'DM_BASE_RECORD_FOREIGN',
    `${path} is no base record`,
    'name a file that `deltamapper base save` has written'
  )
}

function newer(path: string, version: number): DeltamapperError {
  return new DeltamapperError(
    'DM_BASE_RECORD_FOREIGN',
    `${path} is a base record of version ${version}, which this version does not know`,
    'update deltamapper'
  )
}
