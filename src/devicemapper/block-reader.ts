/**
 * Reads metadata blocks, many at a time.
 *
 * A walk knows which blocks it needs next, so it asks for a *window* of them at once. The window is sorted, and
 * neighbours are read in one request (bridging small gaps is cheaper than another request). Every block's checksum and
 * own block number are verified before use. A block that was freed and used again is intact in itself; only its number
 * shows it.
 *
 * Devices are read with O_DIRECT (metadata-medium.ts), into page-aligned memory. Files are read in place; every few
 * windows the event loop has its turn.
 */
import { setImmediate } from 'node:timers/promises'
import { DeltamapperError } from '../errors.ts'
import { checksumSalt, impliedSalt } from './checksum.ts'
import { Unanswered } from './device-reads.ts'
import { type MediumOptions, type MetadataMedium, openMedium, type OpenMedium } from './metadata-medium.ts'
import { pageAligned } from './page-aligned.ts'
import { type FailedRun, ReadRuns } from './read-runs.ts'
import type { DeviceNumber } from './target-words.ts'
import { METADATA_BLOCK_BYTES } from '../units.ts'

/** Blocks a single read request may span: 256 KiB, the point from which larger requests no longer gain. */
const MAX_RUN_BLOCKS = 64
/** Unwanted blocks that are worth reading to save a request; the kernel's own tools bridge as many. */
const MAX_BRIDGED_BLOCKS = 8
/** The most blocks a caller may ask for in one window. */
export const WINDOW_BLOCKS = 128
/** A request for no more than these gets a small window. */
export const SMALL_WINDOW_BLOCKS = 16
/** Memory is allocated in pieces of this size (page-aligned.ts). */
const BYTES_ALLOCATED = 8 * 2 ** 20
/** Bytes of unused windows of a size that are kept for the next reader; the rest of a burst goes back to the system. */
const SPARE_BYTES = 16 * 2 ** 20

/** After so many loads from the page cache, the event loop has a turn, for messages, signals and timers. */
const LOADS_PER_TURN = 8

/** The cost of reading so far; for logs, metrics and tests. */
export interface ReadStatistics {
  /** Metadata blocks requested (B-tree nodes, superblocks); a block that is in a window twice counts once. */
  nodesRead: number
  /** Bytes transferred, bridged gaps included. */
  bytesRead: number
  /** Read requests issued to the kernel. */
  readCalls: number
}

/** Verified blocks, side by side in page-aligned memory. */
export class BlockWindow {
  readonly bytes: Buffer
  /** The same memory, 4 bytes at a time. */
  readonly words: Uint32Array
  /**
   * The same, 8 bytes at a time: for comparing, not for counting. Of those that are not negative, the order of their
   * bits is their own (IEEE 754), so that one comparison does for 8 bytes. Equal ones may differ in bits only if they
   * are 0.
   */
  readonly doubles: Float64Array
  /** `slots[i]` is the place of the i-th requested block: byte `slots[i] * 4096`. */
  readonly slots: Uint32Array
  /** Where its blocks are read from. */
  readonly runs: ReadRuns
  /** A request was given up while the kernel had it: the kernel may still write into this memory at any time. */
  isLost = false
  /**
   * The bytes that each slot's checksum covers; made once, because making a view costs as much as a quarter of the
   * checksum.
   */
  readonly #covered: Buffer[] = []

  /** @param memory page-aligned, with room for wanted and bridged blocks: twice the most that may be requested */
  constructor(memory: Buffer) {
    this.slots = new Uint32Array(memory.length / METADATA_BLOCK_BYTES / 2)
    this.runs = new ReadRuns(this.slots.length)
    this.bytes = memory
    this.words = new Uint32Array(memory.buffer, memory.byteOffset, memory.length / 4)
    this.doubles = new Float64Array(memory.buffer, memory.byteOffset, memory.length / 8)
  }

  /** The i-th requested block, as bytes. */
  block(i: number): Buffer {
    const start = this.slots[i] * METADATA_BLOCK_BYTES
    return this.bytes.subarray(start, start + METADATA_BLOCK_BYTES)
  }

  /** Index in `words` of the i-th requested block's first word. */
  firstWord(i: number): number {
    return (this.slots[i] * METADATA_BLOCK_BYTES) / 4
  }

  /** The kind of the i-th requested block, by its checksum (see checksum.ts). */
  salt(i: number): number {
    const slot = this.slots[i]
    const start = slot * METADATA_BLOCK_BYTES
    this.#covered[slot] ??= this.bytes.subarray(start + 4, start + METADATA_BLOCK_BYTES)
    return impliedSalt(this.words[this.firstWord(i)], this.#covered[slot])
  }
}

/** Windows of one size. After decoding one, hand it back for the next reader. */
class WindowPool {
  readonly #bytes: number
  readonly #spare: BlockWindow[] = []
  /** Memory for windows that have not been needed yet. */
  #fresh: Buffer[] = []

  /** @param blocks that may be requested in one window */
  constructor(blocks: number) {
    this.#bytes = 2 * blocks * METADATA_BLOCK_BYTES
  }

  take(): BlockWindow {
    const spare = this.#spare.pop()
    if (spare) return spare
    if (this.#fresh.length === 0) {
      const piece = pageAligned(BYTES_ALLOCATED)
      const count = BYTES_ALLOCATED / this.#bytes
      this.#fresh = Array.from({ length: count }, (_, i) => piece.subarray(i * this.#bytes, (i + 1) * this.#bytes))
    }
    return new BlockWindow(this.#fresh.pop()!)
  }

  forget(): void {
    this.#spare.length = this.#fresh.length = 0
  }

  giveBack(window: BlockWindow): void {
    if (this.#spare.length < SPARE_BYTES / this.#bytes) this.#spare.push(window)
  }
}

const largeWindows = new WindowPool(WINDOW_BLOCKS)
const smallWindows = new WindowPool(SMALL_WINDOW_BLOCKS)

/** Gives the memory of unused windows back to the system, at the next garbage collection. */
export function forgetSpareWindows(): void {
  largeWindows.forget()
  smallWindows.forget()
}

/** For so many blocks. */
function windowsFor(blocks: number): WindowPool {
  return blocks <= SMALL_WINDOW_BLOCKS ? smallWindows : largeWindows
}

/** How metadata is read. */
export interface ReadOptions extends MediumOptions {
  /**
   * The block device that the path must lead to. A name can go to another device before it is opened; an open device
   * keeps its number, because nothing can remove it.
   */
  device?: DeviceNumber | undefined
  /** What opens the path; by default, as what it is on this machine. */
  open?: OpenMedium | undefined
}

export class BlockReader {
  readonly path: string
  /** Whole metadata blocks that the file or device holds. */
  readonly blocks: number
  /** Undefined for a file. */
  readonly device: DeviceNumber | undefined
  readonly statistics: ReadStatistics = { nodesRead: 0, bytesRead: 0, readCalls: 0 }
  readonly #medium: MetadataMedium
  #loads = 0

  private constructor(path: string, medium: MetadataMedium) {
    this.path = path
    this.#medium = medium
    this.blocks = Math.floor(medium.sizeBytes / METADATA_BLOCK_BYTES)
    this.device = medium.device
  }

  /** The pool may write to a device while it is read; a file does not change. */
  get isDevice(): boolean {
    return this.device !== undefined
  }

  /** Around the page cache: requests take time, and many should be under way at once. */
  get isDirect(): boolean {
    return this.#medium.isDirect
  }

  /** As long as it is open. */
  get descriptor(): number {
    return this.#medium.descriptor
  }

  /**
   * Opens a metadata file or block device for reading.
   *
   * @throws DM_READ_FAILED when it cannot be opened, or is neither a file nor a block device; DM_SNAPSHOT_CHANGED when
   *   it is another device than `device`
   */
  static async open(path: string, { device, open = openMedium, ...options }: ReadOptions = {}): Promise<BlockReader> {
    const medium = await open(path, options)
    try {
      if (device) checkNumber(path, medium.device, device)
      return new BlockReader(path, medium)
    } catch (error) {
      await medium.close().catch(() => undefined)
      throw error
    }
  }

  /**
   * Reads and verifies blocks. Hand the window back with `release` after using its content.
   *
   * @param blocks block numbers, `count` of them (at most WINDOW_BLOCKS), in any order; the same one may stand there
   *   twice
   * @param salt which kind of block each must be
   * @throws DM_METADATA_DAMAGED naming the first damaged block; DM_READ_FAILED when the device does not deliver
   */
  async load(blocks: ArrayLike<number>, count: number, salt: number): Promise<BlockWindow> {
    const window = await this.loadUnverified(blocks, count)
    try {
      for (let i = 0; i < count; i++) this.#verify(window, i, blocks[i], salt)
      return window
    } catch (error) {
      this.release(window)
      throw error
    }
  }

  /**
   * The same of blocks that have no checksum and no number of their own (dm-snapshot's), as they come.
   *
   * @throws DM_READ_FAILED
   */
  async loadUnverified(blocks: ArrayLike<number>, count: number): Promise<BlockWindow> {
    const window = windowsFor(count).take()
    try {
      await this.#fill(window, blocks, count)
      return window
    } catch (error) {
      this.release(window)
      throw error
    }
  }

  release(window: BlockWindow): void {
    if (!window.isLost) windowsFor(window.slots.length).giveBack(window)
  }

  /**
   * Reads and verifies one block, hands it to `use`, and returns what that returns. The window is only valid inside
   * `use`.
   */
  async read<T>(block: number, salt: number, use: (window: BlockWindow) => T, signal?: AbortSignal): Promise<T> {
    signal?.throwIfAborted()
    const window = await this.load([block], 1, salt)
    try {
      return use(window)
    } finally {
      this.release(window)
    }
  }

  /**
   * One block, unverified: for superblocks, whose kind is unknown before they are read. A copy that the caller may
   * keep.
   */
  async readRaw(block: number): Promise<Buffer> {
    const window = smallWindows.take()
    try {
      await this.#fill(window, [block], 1)
      return Buffer.from(window.block(0))
    } finally {
      this.release(window)
    }
  }

  /** The first blocks, unverified: of a device that holds no metadata. @param count WINDOW_BLOCKS at most */
  async readStart(count: number): Promise<Buffer> {
    const window = windowsFor(count).take()
    try {
      const blocks = Array.from({ length: count }, (_, block) => block)
      await this.#fill(window, blocks, count)
      return Buffer.concat(blocks.map((block) => window.block(block)))
    } finally {
      this.release(window)
    }
  }

  async close(): Promise<void> {
    await this.#medium.close()
  }

  #verify(window: BlockWindow, i: number, block: number, salt: number): void {
    if (window.salt(i) !== salt) throw damaged(this.path, block, 'its checksum is wrong')
    const word = window.firstWord(i) + ownNumberWord(salt)
    const own = window.words[word] + window.words[word + 1] * 2 ** 32
    if (own !== block) throw damaged(this.path, block, `it says that it is block ${own}`)
  }

  /** A copy that was cut off is met more often than a pointer that is wrong. */
  #beyondEnd(block: number): DeltamapperError {
    const what = `it lies beyond the end of the metadata (${this.blocks} blocks)`
    if (this.isDevice) return damaged(this.path, block, what)
    return damaged(
      this.path,
      block,
      what,
      'if this is a copy, it was cut off: copy the whole metadata device again; otherwise take a full backup, and run thin_check (era_check) on it'
    )
  }

  /**
   * Reads the blocks into the window, in as few requests as their neighbourhood allows. Those around the page cache go
   * to the kernel together.
   */
  async #fill(window: BlockWindow, blocks: ArrayLike<number>, count: number): Promise<void> {
    // Block number and place in the request as one number each: sorting numbers takes no comparison function.
    const order = new Float64Array(count)
    for (let i = 0; i < count; i++) {
      if (!(blocks[i] < this.blocks)) {
        throw this.#beyondEnd(blocks[i])
      }
      order[i] = blocks[i] * WINDOW_BLOCKS + i
    }
    order.sort()

    const { runs } = window
    runs.clear()
    let used = 0
    for (let i = 0; i < count;) {
      const start = i
      const first = Math.floor(order[i] / WINDOW_BLOCKS)
      const firstSlot = used
      let last = first
      for (; i < count; i++) {
        const block = Math.floor(order[i] / WINDOW_BLOCKS)
        const gap = block - last - 1
        const length = block - first + 1
        // A gap may be bridged only while every wanted block keeps its slot.
        const fits = firstSlot + length + (count - i - 1) <= 2 * window.slots.length
        if (block > last && (gap > MAX_BRIDGED_BLOCKS || length > MAX_RUN_BLOCKS || !fits)) break
        if (block > last || i === start) this.statistics.nodesRead++
        window.slots[order[i] % WINDOW_BLOCKS] = firstSlot + length - 1
        last = block
      }
      const length = last - first + 1
      used = firstSlot + length
      runs.add(firstSlot * METADATA_BLOCK_BYTES, length * METADATA_BLOCK_BYTES, first * METADATA_BLOCK_BYTES)
    }
    this.statistics.readCalls += runs.count
    this.statistics.bytesRead += runs.bytes
    const failed = this.isDirect ? await this.#medium.readRuns(window.bytes, runs) : this.#readCached(window)
    if (failed) {
      if (failed.outcome instanceof Unanswered && failed.outcome.sent) window.isLost = true
      throw this.#undelivered(runs, failed)
    }
    if (!this.isDirect && ++this.#loads % LOADS_PER_TURN === 0) await setImmediate()
  }

  #readCached({ bytes, runs: { count, starts, lengths, positions } }: BlockWindow): FailedRun | undefined {
    for (let run = 0; run < count; run++) {
      let outcome: number | Error
      try {
        outcome = this.#medium.readNow(bytes, starts[run], lengths[run], positions[run])
      } catch (error) {
        outcome = error as Error
      }
      if (outcome !== lengths[run]) return { run, outcome }
    }
    return undefined
  }

  #undelivered({ positions, lengths }: ReadRuns, { run, outcome }: FailedRun): DeltamapperError {
    const [first, bytes] = [positions[run] / METADATA_BLOCK_BYTES, lengths[run]]
    const last = first + bytes / METADATA_BLOCK_BYTES - 1
    const why = typeof outcome === 'number' ? `only ${outcome} of ${bytes} bytes came back` : outcome.message
    return new DeltamapperError(
      'DM_READ_FAILED',
      `blocks ${first} to ${last} of ${this.path} could not be read: ${why}`,
      outcome instanceof Unanswered
        ? 'see what the device below waits for (suspended? a dead path?); ask again'
        : 'look into the kernel log for errors of the device below',
      { cause: outcome }
    )
  }
}

/** @throws DM_SNAPSHOT_CHANGED */
function checkNumber(path: string, opened: DeviceNumber | undefined, { major, minor }: DeviceNumber): void {
  if (opened?.major === major && opened.minor === minor) return
  throw new DeltamapperError(
    'DM_SNAPSHOT_CHANGED',
    `${path} is not block device ${major}:${minor}, which it was when it was looked up`,
    'ask again from the beginning'
  )
}

/**
 * Where a block keeps its own number, in words: after checksum and flags; in array blocks, at the end of their header.
 */
function ownNumberWord(salt: number): number {
  return salt === checksumSalt.arrayBlock ? 4 : 2
}

/** The error for a block that the kernel cannot have written there. */
export function damaged(
  path: string,
  block: number,
  what: string,
  remedy = 'take a full backup, and run thin_check (era_check) on the metadata'
): DeltamapperError {
  return new DeltamapperError('DM_METADATA_DAMAGED', `metadata block ${block} of ${path} is damaged: ${what}`, remedy)
}
