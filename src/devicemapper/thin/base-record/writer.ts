/**
 * Writes a base record, in bounded memory, and durably before it is reported.
 *
 * The file gets its name last, once all of it is on disk: a record found by its name is complete.
 */
import { randomUUID } from 'node:crypto'
import { open, rename, rm, type FileHandle } from 'node:fs/promises'
import { dirname } from 'node:path'
import { keyAt, type NodeShape, runEnd } from '../../btree.ts'
import {
  type BaseRecordHeader,
  encodePreamble,
  FRAME_BYTES,
  frameBytes,
  frameChecksum,
  MAX_FRAME_RUNS
} from './format.ts'
import { FrameCompressor } from './frame-compressor.ts'
import { type FrameRoom, giveBackFrameRoom, newFrameRoom, takeFrameRoom } from './frame-room.ts'
import { dataBlockAt, type RecordedPairs, timeAt } from './recorded-pairs.ts'
import { syncFolder } from '../../../sync-folder.ts'

/** Frames that are compressed or written beside the walk; more make it wait. */
const MOST_UNDER_WAY = 4
/** A run takes as long as so many pairs. */
const RUN_COSTS = 8
/** Bytes that are written before they are made durable, beside the walk: the end has less to wait for. */
const SYNC_BYTES = 2 ** 21

/** What the header of a frame says. */
interface FrameFacts {
  /** Its number in the file, from 0. */
  readonly number: number
  /** Bytes of the runs, and number of runs. */
  readonly rawBytes: number
  readonly count: number
  readonly first: number
}

export class BaseRecordWriter {
  readonly #path: string
  readonly #partPath: string
  readonly #file: FileHandle
  readonly #expected: number
  readonly #seed: number
  readonly #compressor = new FrameCompressor()
  /** Its own until it is written. */
  #room: FrameRoom
  /** Whether the frame that is being filled is of pairs. */
  #isScattered = false
  /** Blocks in the frame of runs that is being filled. */
  #frameBlocks = 0
  /** Frames under way, in the order of the file: each is done once those before it are. */
  readonly #underWay: Promise<void>[] = []
  #failure: unknown
  /** What makes durable what was written some time ago. */
  #syncing: Promise<void> | undefined
  #unsynced = 0
  #frames = 0
  #mappedBlocks = 0
  #bytes = 0
  /** The run that may still grow. */
  #start = 0
  #length = 0
  #data = 0
  #time = 0

  private constructor(path: string, partPath: string, file: FileHandle, header: BaseRecordHeader, most: number) {
    this.#room = takeFrameRoom(most)
    this.#path = path
    this.#partPath = partPath
    this.#file = file
    this.#expected = header.device.mappedBlocks
    const preamble = encodePreamble(header)
    this.#seed = preamble.readUInt32LE(24)
    this.#begin(Promise.resolve(preamble))
  }

  /**
   * Begins a record beside `path`, under a name of its own that ends in `.part` until it is finished.
   *
   * @param most runs, or mappings, in a frame: 1 to MAX_FRAME_RUNS
   * @throws what open throws
   */
  static async begin(path: string, header: BaseRecordHeader, most = MAX_FRAME_RUNS): Promise<BaseRecordWriter> {
    const partPath = `${path}.${randomUUID()}.part`
    return new BaseRecordWriter(path, partPath, await open(partPath, 'wx', 0o600), header, most)
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

  /** Adds entries `[from, to)` of a leaf of the mapping tree, the same way. */
  addEntries(words: Uint32Array, leaf: NodeShape, from: number, to: number): void {
    for (let i = from; i < to;) {
      if (!this.#takesPairs()) {
        i = this.#addRuns(words, leaf, i, to)
        continue
      }
      const { pairs } = this.#room
      const end = Math.min(to, i + pairs.room)
      pairs.addEntries(words, leaf, i, end)
      this.#addedPairs(end - i)
      i = end
    }
  }

  /** Adds mappings of another record: virtual blocks from `start` on, with its pairs from `first` on. */
  addPairs(start: number, length: number, recorded: RecordedPairs, first: number): void {
    for (let i = 0; i < length;) {
      if (!this.#takesPairs()) {
        this.add(start + i, 1, dataBlockAt(recorded, first + i), timeAt(recorded, first + i))
        i++
        continue
      }
      const { pairs } = this.#room
      const taken = Math.min(length - i, pairs.room)
      pairs.addPairs(start + i, taken, recorded, first + i)
      this.#addedPairs(taken)
      i += taken
    }
  }

  /** Whether the frame that is being filled is of pairs. */
  #takesPairs(): boolean {
    // The run before them may be what fills it.
    this.#addScattered()
    return this.#isScattered
  }

  #addedPairs(count: number): void {
    this.#mappedBlocks += count
    if (this.#room.pairs.room === 0) this.#closeFrame()
  }

  /** @returns the index of the first entry that is not added yet: the frame of runs is full */
  #addRuns(words: Uint32Array, leaf: NodeShape, from: number, to: number): number {
    let i = from
    // Virtual blocks follow one another up to here, mostly in all of the leaf.
    let row = from
    while (i < to) {
      if (i === row) row = runEnd(words, leaf, i, to)
      let v = leaf.values + 2 * i
      const block = keyAt(words, leaf, i)
      // data block << 24 | time (dm-thin-metadata.c, pack_block_time)
      const data = words[v + 1] * 256 + (words[v] >>> 24)
      const time = words[v] & 0xffffff
      const end = this.#start + this.#length
      if (this.#length === 0 || block !== end || data !== this.#data + this.#length || time !== this.#time) {
        this.#closeRun()
        if (this.#isScattered) return i
        this.#start = block
        this.#data = data
        this.#time = time
      }
      // How far it goes: words are compared with those that would follow, as integers of 32 bits.
      let low = words[v] | 0
      let high = words[v + 1] | 0
      const first = i
      do {
        i++
        v += 2
        low = (low + 0x1000000) | 0
        if (low >>> 24 === 0) high = (high + 1) | 0
      } while (i < row && (words[v] | 0) === low && (words[v + 1] | 0) === high)
      this.#length += i - first
    }
    return to
  }

  /**
   * Waits until few frames are under way: they are compressed and written beside the walk. Await it now and then: until
   * then, mappings are held in memory.
   *
   * @throws what writing an earlier frame has thrown
   */
  async drain(most = MOST_UNDER_WAY): Promise<void> {
    while (this.#underWay.length > most) await this.#underWay[0]
    if (this.#failure !== undefined) throw this.#failure as Error
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
    const last = Buffer.alloc(FRAME_BYTES)
    this.#seal(last, { number: this.#frames, rawBytes: 0, count: 0, first: this.#mappedBlocks })
    this.#begin(Promise.resolve(last))
    try {
      await this.drain(0)
      this.#compressor.close()
      await this.#syncing
      if (this.#failure !== undefined) throw this.#failure as Error
      await this.#file.sync()
      await this.#file.close()
      await rename(this.#partPath, this.#path)
      await syncFolder(dirname(this.#path))
      this.#leaveRoom()
    } catch (error) {
      await this.abandon()
      throw error
    }
    return true
  }

  /** Leaves nothing behind. */
  async abandon(): Promise<void> {
    while (this.#underWay.length > 0) await this.#underWay[0]
    await this.#syncing
    this.#compressor.close()
    await this.#file.close().catch(() => undefined)
    await rm(this.#partPath, { force: true })
    this.#leaveRoom()
  }

  /** What is added from now on does no harm to the next record. */
  #leaveRoom(): void {
    giveBackFrameRoom(this.#room)
    this.#room = newFrameRoom()
  }

  /** The run does not grow any more. */
  #closeRun(): void {
    this.#addScattered()
    if (this.#length === 0) return
    const { runs } = this.#room
    runs.add(this.#start, this.#length, this.#data, this.#time)
    this.#mappedBlocks += this.#length
    this.#frameBlocks += this.#length
    this.#length = 0
    if (runs.isFull) this.#closeFrame()
  }

  /**
   * Adds the run to the frame of pairs. What does not go into that may become a run of the next frame, and still grow.
   */
  #addScattered(): void {
    while (this.#isScattered && this.#length > 0) {
      const { pairs } = this.#room
      const taken = Math.min(this.#length, pairs.room)
      pairs.add(this.#start, taken, this.#data, this.#time)
      this.#start += taken
      this.#data += taken
      this.#length -= taken
      this.#addedPairs(taken)
    }
  }

  #closeFrame(): void {
    const { runs, pairs, buffers } = this.#room
    const encoder = this.#isScattered ? pairs : runs
    const { count, first } = encoder
    if (count === 0) return
    // Buffers are used again: new ones would keep the garbage collector busy.
    const needed = FRAME_BYTES + frameBytes(count)
    const free = buffers.pop()
    const buffer = free !== undefined && free.length >= needed ? free : Buffer.allocUnsafeSlow(needed)
    const bytes = buffer.subarray(0, encoder.encode(buffer, FRAME_BYTES))
    const facts: FrameFacts = { number: this.#frames++, rawBytes: bytes.length - FRAME_BYTES, count, first }
    this.#begin(this.#isScattered ? Promise.resolve(this.#seal(bytes, facts)) : this.#compressed(bytes, facts), buffer)
    // The next frame is mostly like this one.
    this.#isScattered = this.#isScattered ? RUN_COSTS * pairs.jumps > count : this.#frameBlocks < RUN_COSTS * count
    this.#frameBlocks = 0
    encoder.clear()
  }

  async #compressed(bytes: Buffer, facts: FrameFacts): Promise<Buffer> {
    const runs = await this.#compressor.compress(bytes.subarray(FRAME_BYTES))
    // What is as long as the runs would be taken for them.
    if (runs.length >= facts.rawBytes) return this.#seal(bytes, facts)
    return this.#seal(Buffer.concat([bytes.subarray(0, FRAME_BYTES), runs]), facts)
  }

  /**
   * Writes what is being made, behind all that was begun before.
   *
   * @param buffer to be used again afterwards
   */
  #begin(made: Promise<Buffer>, buffer?: Buffer): void {
    const before = this.#underWay.at(-1)
    const { buffers } = this.#room
    const run = async () => {
      await before
      try {
        const bytes = await made
        if (this.#failure === undefined) await this.#file.appendFile(bytes)
        this.#bytes += bytes.length
        this.#syncSome(bytes.length)
      } catch (error) {
        this.#failure ??= error
      } finally {
        if (buffer) buffers.push(buffer)
        void this.#underWay.shift()
      }
    }
    // Whoever comes to it takes note of the failure.
    made.catch(() => undefined)
    this.#underWay.push(run())
  }

  /** Notes that so many bytes were written. */
  #syncSome(bytes: number): void {
    this.#unsynced += bytes
    if (this.#unsynced < SYNC_BYTES || this.#syncing) return
    this.#unsynced = 0
    this.#syncing = this.#file
      .datasync()
      .catch((error: unknown) => {
        this.#failure ??= error
      })
      .finally(() => {
        this.#syncing = undefined
      })
  }

  /** Writes a frame's header before what it holds. */
  #seal(frame: Buffer, { number, rawBytes, count, first }: FrameFacts): Buffer {
    const runs = frame.subarray(FRAME_BYTES)
    frame.writeUInt32LE(runs.length, 0)
    frame.writeUInt32LE(rawBytes, 4)
    frame.writeUInt32LE(count, 8)
    frame.writeUInt32LE(number, 12)
    frame.writeBigUInt64LE(BigInt(first), 16)
    frame.writeUInt32LE(frameChecksum(frame, runs, this.#seed), FRAME_BYTES - 4)
    return frame
  }
}
