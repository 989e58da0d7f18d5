/**
 * The blocks written in some eras, in order: the bitsets of those eras and the era array, read side by side.
 *
 *      blocks       0                 130304              260608
 *      writeset 7   ├────┼────┼────┼────┼────┼────┼────┼────┼──      a bitset block has 32576 bits
 *      writeset 8   ├────┼────┼────┼────┼────┼────┼────┼────┼──
 *      era array    ├┼┼┼┼┼┼┼┼┼┼┼┼┼┼┼┼┼┼┼┼┼┼┼┼┼┼┼┼┼┼┼┼┼┼┼┼┼┼┼┼┼┼┼──      an array block has 1018 eras, one 32nd of that
 *                   └──── stretch ────┘
 *
 * One stretch of the device at a time becomes a bitmap, which leaves as extents. Memory is that of a stretch and a few
 * windows of blocks, for any size of the device, plus 2 KiB at most for each writeset.
 */
import { arrayBlockCapacity, arrayElements, ArrayIndex } from '../array.ts'
import { type BlockReader, type BlockWindow, damaged, WINDOW_BLOCKS } from '../block-reader.ts'
import { type BitmapPart, addRuns } from '../bitmap-runs.ts'
import { checksumSalt } from '../checksum.ts'
import { type ExtentBatch, ExtentBuilder } from '../extents.ts'
import type { Writeset } from './writeset.ts'

const BITS_PER_WORD = 64
/** Bits in a full block of a bitset: 32576. */
const BITSET_BLOCK_BITS = arrayBlockCapacity(8) * BITS_PER_WORD
/** Eras in a full block of the era array: 1018. */
const ERA_BLOCK_BLOCKS = arrayBlockCapacity(4)
/**
 * A stretch, in bitset blocks: with the era array as many as fill one window of its blocks; without it, a longer one
 * reads more at once.
 */
const STRETCH_WITH_ARRAY = (WINDOW_BLOCKS * ERA_BLOCK_BLOCKS) / BITSET_BLOCK_BITS
const STRETCH_OF_BITSETS = 16
/** Windows being read while another is processed, if reading takes time: this keeps device and processor busy. */
const WINDOWS_AHEAD = 3

export interface WrittenBlocks {
  reader: BlockReader
  /** The eras' own bitsets. */
  writesets: readonly Writeset[]
  /** The era array, unless the bitsets are known to have everything. */
  eraArray: EraArray | undefined
  /** Size of a block in bytes. */
  blockBytes: number
  /** Size of the volume in bytes: extents end there. */
  sizeBytes: number
  /** First block of interest; Infinity for none. */
  firstBlock: number
  /**
   * From this block on everything counts as written, because nobody can have a copy of it. Infinity for no such block.
   */
  baseEndBlock: number
  /**
   * Called when the array has a block of an era after `untilEra`. Such a block counts, because it may hide an earlier
   * write.
   */
  onLater: () => void
  signal?: AbortSignal | undefined
}

export interface EraArray {
  readonly root: number
  /** How many blocks it has an era for. */
  readonly blocks: number
  /** Blocks of this era and later ones count. Above 0: era 0 stands for never. */
  readonly sinceEra: number
  /** The last era of interest; Infinity for all. */
  readonly untilEra: number
  /** The newest era that it can contain; a later one is damage. */
  readonly newestEra: number
}

/**
 * Yields the written blocks, merged and clamped. The last extent of a batch is closed: nothing that follows touches it.
 */
export async function* writtenExtents(written: WrittenBlocks): AsyncGenerator<ExtentBatch> {
  const { blockBytes, sizeBytes, firstBlock, baseEndBlock } = written
  const extents = new ExtentBuilder(blockBytes, sizeBytes)
  const sizeBlocks = Math.ceil(sizeBytes / blockBytes)
  const end = Math.min(sizeBlocks, baseEndBlock)
  const reading = new StretchReading(written, firstBlock, end)
  try {
    for (let stretch; (stretch = await reading.next()) !== undefined;) {
      addRuns(extents, stretch)
      stretch.bitmap.fill(0)
      const batch = extents.take()
      if (batch) yield batch
    }
    extents.addRun(Math.max(firstBlock, end), sizeBlocks)
    const last = extents.takeLast()
    if (last) yield last
  } finally {
    await reading.end()
  }
}

/** A complete stretch. */
type Stretch = BitmapPart

/** Blocks to be read together, in ascending order of the device's blocks that they describe. All are of one stretch. */
interface Load {
  readonly stretch: Omit<Stretch, 'bitmap'>
  readonly blocks: number[]
  /** For each block, its array and its index in that array. */
  readonly arrays: ArrayIndex[]
  readonly indexes: number[]
  /** Nothing more of this stretch comes after it. */
  isLast: boolean
}

class StretchReading {
  readonly #written: WrittenBlocks
  readonly #bitsets: readonly { readonly writeset: Writeset; readonly index: ArrayIndex }[]
  readonly #eras: ArrayIndex | undefined
  readonly #stretchBlocks: number
  readonly #bitmap: Uint32Array
  readonly #loads: AsyncGenerator<Load>
  /** A bit for each metadata block that was met in one of the arrays. */
  readonly #met: Uint8Array
  /** Windows being read, the next one first. */
  readonly #ahead: { readonly load: Load; readonly window: Promise<BlockWindow> }[] = []

  /** @param first the first block of interest; `end` the first block beyond interest */
  constructor(written: WrittenBlocks, first: number, end: number) {
    const { reader, writesets, eraArray } = written
    this.#written = written
    this.#met = new Uint8Array(Math.ceil(reader.blocks / 8))
    this.#bitsets = writesets.map((writeset) => {
      const shape = { root: writeset.root, length: Math.ceil(writeset.bits / BITS_PER_WORD), valueSize: 8 } as const
      return { writeset, index: new ArrayIndex(reader, shape) }
    })
    if (eraArray) {
      this.#eras = new ArrayIndex(reader, { root: eraArray.root, length: eraArray.blocks, valueSize: 4 })
    }
    this.#stretchBlocks = (eraArray ? STRETCH_WITH_ARRAY : STRETCH_OF_BITSETS) * BITSET_BLOCK_BITS
    this.#bitmap = new Uint32Array(this.#stretchBlocks / 32)
    this.#loads = this.#plan(first, end)
  }

  /** The next stretch of which anything was read. Clear its bitmap before asking for the next. */
  async next(): Promise<Stretch | undefined> {
    for (;;) {
      const { reader, signal } = this.#written
      while (this.#ahead.length < (reader.isDirect ? WINDOWS_AHEAD : 1)) {
        signal?.throwIfAborted()
        const planned = await this.#loads.next()
        if (planned.done) break
        const load = planned.value
        const window = reader.load(load.blocks, load.blocks.length, checksumSalt.arrayBlock)
        // The consumer of the window gets a failure; until there is one, the rejection is nobody's.
        window.catch(ignore)
        this.#ahead.push({ load, window })
      }
      const next = this.#ahead.shift()
      if (!next) return undefined
      const window = await next.window
      try {
        this.#takeIn(window, next.load)
      } finally {
        reader.release(window)
      }
      if (next.load.isLast) return { bitmap: this.#bitmap, ...next.load.stretch }
    }
  }

  /** Waits for running reads, so that the file may be closed. */
  async end(): Promise<void> {
    for (const { window } of this.#ahead) await window.then((each) => this.#written.reader.release(each), ignore)
  }

  async *#plan(first: number, end: number): AsyncGenerator<Load> {
    const length = this.#stretchBlocks
    for (let begin = Math.floor(first / length) * length; begin < end; begin += length) {
      const stretch = { begin, low: Math.max(begin, first), high: Math.min(begin + length, end) }
      let load: Load | undefined
      for (const { array, from, to } of this.#wantedFor(stretch)) {
        for (let index = from; index < to; index++) {
          if (load?.blocks.length === WINDOW_BLOCKS) {
            yield load
            load = undefined
          }
          load ??= { stretch, blocks: [], arrays: [], indexes: [], isLast: false }
          // (Usually known; awaiting a known value would dominate this loop.)
          const block = array.known(index) ?? (await array.blockOf(index, this.#written.signal))
          this.#checkFirst(block)
          load.blocks.push(block)
          load.arrays.push(array)
          load.indexes.push(index)
        }
      }
      if (load) yield Object.assign(load, { isLast: true })
    }
  }

  /**
   * No block is in two places, of one array or of two: the kernel shares blocks only between live root and metadata
   * snapshot, and we read one of these. This check also bounds the reading by the real size of the metadata.
   */
  #checkFirst(block: number): void {
    const bit = 1 << (block & 7)
    if ((this.#met[block >>> 3] & bit) !== 0) {
      throw damaged(this.#written.reader.path, block, 'it stands in two places of the bitsets and the era array')
    }
    this.#met[block >>> 3] |= bit
  }

  /** The blocks `[from, to)` of each array that describe a stretch. */
  #wantedFor({ low, high }: Omit<Stretch, 'bitmap'>): { array: ArrayIndex; from: number; to: number }[] {
    const part = (array: ArrayIndex, length: number, blockLength: number) => ({
      array,
      from: Math.floor(low / blockLength),
      to: Math.ceil(Math.min(high, length) / blockLength)
    })
    const wanted = this.#bitsets.map(({ writeset, index }) => part(index, writeset.bits, BITSET_BLOCK_BITS))
    const { eraArray } = this.#written
    if (this.#eras && eraArray) wanted.push(part(this.#eras, eraArray.blocks, ERA_BLOCK_BLOCKS))
    return wanted
  }

  #takeIn(window: BlockWindow, { stretch, blocks, arrays, indexes }: Load): void {
    const { reader, eraArray } = this.#written
    for (let i = 0; i < blocks.length; i++) {
      const { shape } = arrays[i]
      const word = arrayElements(window, i, shape, indexes[i], reader, blocks[i])
      const elements = Math.min(
        arrayBlockCapacity(shape.valueSize),
        shape.length - indexes[i] * arrayBlockCapacity(shape.valueSize)
      )
      if (shape.valueSize === 8) {
        this.#addBits(window.words, word, 2 * elements, (indexes[i] * BITSET_BLOCK_BITS - stretch.begin) / 32)
      } else if (eraArray) {
        this.#addEras(window.words, word, elements, indexes[i] * ERA_BLOCK_BLOCKS - stretch.begin, eraArray, blocks[i])
      }
    }
  }

  #addBits(words: Uint32Array, from: number, count: number, to: number): void {
    const bitmap = this.#bitmap
    for (let i = 0; i < count; i++) bitmap[to + i] |= words[from + i]
  }

  /** @param to where in the bitmap the first of them is; `block`: the array block they stand in */
  #addEras(words: Uint32Array, from: number, count: number, to: number, eras: EraArray, block: number): void {
    const bitmap = this.#bitmap
    const { sinceEra, untilEra, newestEra } = eras
    const lastUsual = Math.min(untilEra, newestEra)
    let later = 0
    // One word of the bitmap at a time, and no branch that depends on an era, because a processor cannot predict these.
    const end = from + count
    for (let at = from, bit = to; at < end;) {
      const shift = bit & 31
      const length = Math.min(32 - shift, end - at)
      let word = 0
      for (let i = 0; i < length; i++) {
        const era = words[at + i]
        word |= Number(era >= sinceEra) << i
        later |= Number(era > lastUsual)
      }
      bitmap[bit >>> 5] |= word << shift
      at += length
      bit += length
    }
    if (later === 0) return
    const impossible = words.subarray(from, end).find((era) => era > newestEra)
    if (impossible !== undefined) {
      const what = `it has an entry of era ${impossible}, and ${newestEra} is the newest that it can have`
      throw damaged(this.#written.reader.path, block, what)
    }
    this.#written.onLater()
  }
}

function ignore(): void {}
