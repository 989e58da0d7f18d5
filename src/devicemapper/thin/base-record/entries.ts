/**
 * Mappings of which few follow one another, as bytes: what was written in no order has nothing that runs (runs.ts)
 * could be made of. Its pairs are taken as they are, as a leaf has them, and compared as they are.
 *
 * A byte 255, which no frame of runs begins with; the number of stretches (4 bytes); two columns as those of runs, with
 * a value for each stretch of virtual blocks that follow one another: blocks since the end of the last one, and length
 * in blocks. Then eight planes, the lowest byte of all pairs first: a byte 0 for a plane that is all zero, or a byte 1
 * and the bytes of the plane. A pair is what dm-thin has (pack_block_time in drivers/md/dm-thin-metadata.c): data block
 * times 2^24, and time.
 *
 * Such a frame is not compressed: what is left when the planes of zeros are gone has no order, and to look for one
 * takes longer than the walk.
 */
import { keyAt, type NodeShape } from '../../btree.ts'
import { fromPlanes, toPlanes } from './byte-planes.ts'
import { encodeColumn, readColumn } from './columns.ts'
import { MAX_BLOCK, MAX_FRAME_RUNS, type RecordedFrame } from './format.ts'
import { grown } from './growing-room.ts'

/** What a frame of entries begins with. */
export const ENTRIES_MARK = 255
const HEAD_BYTES = 5
const PLANES = 8
/** Pairs that are taken apart at once. */
const SQUARE = 4
/** Of so many mappings one is asked whether the next one follows it. */
const SAMPLED = 32

/** Collects the mappings of one frame. */
export class EntryEncoder {
  /** Mappings. */
  count = 0
  /** The first virtual block of the frame. */
  first = 0
  readonly #most: number
  /** Two words each, as in a leaf. */
  #pairs = new Uint32Array(0)
  /** The same memory. */
  #bytes = Buffer.alloc(0)
  /** What a leaf was in last, and the same memory: a view for each leaf would keep the garbage collector busy. */
  #lastWords: Uint32Array = new Uint32Array(0)
  #lastBytes: Buffer = Buffer.alloc(0)
  readonly #planes = new Planes()
  #gaps = new Float64Array(0)
  #lengths = new Float64Array(0)
  #stretches = 0
  #next = 0

  /** @param most how many mappings a frame takes, up to MAX_FRAME_RUNS */
  constructor(most: number) {
    this.#most = most
  }

  /** How many more mappings it takes. */
  get room(): number {
    return this.#most - this.count
  }

  /** About how many mappings there are whose data block does not follow the one before. */
  get jumps(): number {
    const pairs = this.#pairs
    let found = 0
    for (let i = 0; i + 1 < this.count; i += SAMPLED) {
      if (dataBlockAt(pairs, i + 1) !== dataBlockAt(pairs, i) + 1) found += SAMPLED
    }
    return found
  }

  /** Adds up to `room` mappings in a row. */
  add(start: number, length: number, data: number, time: number): void {
    this.#makeRoom(length)
    const pairs = this.#pairs
    this.#extend(start, length)
    for (let i = 0; i < length; i++) {
      const at = 2 * this.count++
      const block = data + i
      pairs[at] = ((block & 255) << 24) | time
      pairs[at + 1] = Math.floor(block / 256)
    }
  }

  /** Adds entries `[from, to)` of a leaf, no more than there is room for. */
  addEntries(words: Uint32Array, leaf: NodeShape, from: number, to: number): void {
    this.#makeRoom(to - from)
    for (let i = from; i < to;) {
      const start = keyAt(words, leaf, i)
      const length = inARow(words, leaf, i, to)
      this.#extend(start, length)
      i += length
    }
    if (words !== this.#lastWords) {
      this.#lastWords = words
      this.#lastBytes = Buffer.from(words.buffer, words.byteOffset, words.byteLength)
    }
    this.#lastBytes.copy(this.#bytes, 8 * this.count, 4 * (leaf.values + 2 * from), 4 * (leaf.values + 2 * to))
    this.count += to - from
  }

  /** Adds mappings of another frame: pairs `[from, from + length)`, of virtual blocks from `start` on. */
  addPairs(start: number, length: number, pairs: Uint32Array, from: number): void {
    this.#makeRoom(length)
    this.#extend(start, length)
    this.#pairs.set(pairs.subarray(2 * from, 2 * (from + length)), 2 * this.count)
    this.count += length
  }

  /** Writes the frame's bytes, from `begin` on. @param bytes with room for `frameBytes` @returns where they end */
  encode(bytes: Buffer, begin: number): number {
    const { count } = this
    bytes[begin] = ENTRIES_MARK
    bytes.writeUInt32LE(this.#stretches, begin + 1)
    let at = begin + HEAD_BYTES
    for (const column of [this.#gaps, this.#lengths]) at = encodeColumn(column, this.#stretches, bytes, at)
    this.#pairs.fill(0, 2 * count, 2 * (count + SQUARE))
    this.#planes.makeRoom(count)
    for (const odd of [0, 1] as const) {
      const any = toPlanes(this.#pairs, odd, count, this.#planes.words)
      for (let plane = 0; plane < PLANES / 2; plane++) {
        const isThere = ((any >>> (8 * plane)) & 255) !== 0
        bytes[at++] = isThere ? 1 : 0
        if (!isThere) continue
        bytes.set(this.#planes.bytes[plane].subarray(0, count), at)
        at += count
      }
    }
    return at
  }

  clear(): void {
    this.count = this.first = this.#stretches = this.#next = 0
  }

  /** The next mappings are of these virtual blocks. */
  #extend(start: number, length: number): void {
    const isFirst = this.#stretches === 0
    if (isFirst) this.first = start
    if (isFirst || start !== this.#next) {
      this.#gaps = grown(this.#gaps, this.#stretches + 1)
      this.#lengths = grown(this.#lengths, this.#stretches + 1)
      this.#gaps[this.#stretches] = start - this.#next
      this.#lengths[this.#stretches++] = 0
    }
    this.#lengths[this.#stretches - 1] += length
    this.#next = start + length
  }

  /** For `count` more mappings. */
  #makeRoom(count: number): void {
    const pairs = grown(this.#pairs, 2 * (this.count + count + SQUARE))
    if (pairs === this.#pairs) return
    this.#pairs = pairs
    this.#bytes = Buffer.from(pairs.buffer)
  }
}

/** Makes stretches of bytes, in memory of its own. */
export class EntryDecoder {
  /** Starts, lengths and first pairs. */
  #columns = Array.from({ length: 3 }, () => new Float64Array(0))
  readonly #times = new Uint32Array(0)
  #pairs = new Uint32Array(0)
  readonly #planes = new Planes()

  /** The stretches, until the next are decoded. @throws Error for bytes that no encoder of ours writes */
  decode(bytes: Uint8Array, count: number): RecordedFrame {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
    const stretches = bytes.length < HEAD_BYTES ? Infinity : view.getUint32(1, true)
    if (count > MAX_FRAME_RUNS || stretches > count) {
      throw new Error(`${bytes.length} bytes cannot hold ${count} mappings in ${stretches} stretches`)
    }
    this.#columns = this.#columns.map((each) => grown(each, stretches))
    const [starts, lengths, firsts] = this.#columns
    let at = readColumn(bytes, HEAD_BYTES, stretches, starts)
    at = readColumn(bytes, at, stretches, lengths)
    let [block, filled] = [0, 0]
    for (let s = 0; s < stretches; s++) {
      block += starts[s]
      const size = lengths[s]
      if (!(size > 0 && filled + size <= count && block + size <= MAX_BLOCK)) {
        throw new Error(`stretch ${s} has ${size} blocks from ${block} on`)
      }
      starts[s] = block
      firsts[s] = filled
      block += size
      filled += size
    }
    if (filled !== count) throw new Error(`its stretches hold ${filled} of ${count} mappings`)
    const anyLow = this.#putTogether(bytes, at, count)
    const pairs = { words: this.#pairs, youngest: youngest(this.#pairs, count, anyLow) }
    return { count: stretches, runs: count, starts, lengths, data: firsts, times: this.#times, pairs }
  }

  /** Reads the pairs from their planes. @returns all of the low words, one bit where any has one */
  #putTogether(bytes: Uint8Array, begin: number, count: number): number {
    let at = begin
    let anyLow = 0
    this.#pairs = grown(this.#pairs, 2 * (count + SQUARE))
    this.#planes.makeRoom(count)
    for (const odd of [0, 1] as const) {
      for (const plane of this.#planes.bytes) {
        const isThere = bytes[at++]
        if (!(isThere <= 1) || at + isThere * count > bytes.length) throw new Error('a plane is cut off')
        plane.fill(0, isThere * count, count + SQUARE)
        if (isThere === 0) continue
        plane.set(bytes.subarray(at, at + count))
        at += count
      }
      const any = fromPlanes(this.#planes.words, count, this.#pairs, odd)
      if (odd === 0) anyLow = any
    }
    if (at !== bytes.length) throw new Error(`${bytes.length - at} bytes are there in place of none`)
    return anyLow
  }
}

/** Room for the four planes of one word of each pair, in the order of bytes and four at a time. */
class Planes {
  words = Array.from({ length: PLANES / 2 }, () => new Uint32Array(0))
  bytes: readonly Uint8Array[] = []

  /** For `count` bytes in each. */
  makeRoom(count: number): void {
    this.words = this.words.map((each) => grown(each, Math.ceil(count / SQUARE) + 1))
    this.bytes = this.words.map(({ buffer }) => new Uint8Array(buffer))
  }
}

/** How many entries from the i-th on, below `to`, are of virtual blocks that follow one another. */
export function inARow(words: Uint32Array, leaf: NodeShape, i: number, to: number): number {
  const start = keyAt(words, leaf, i)
  // Mostly all of them.
  if (keyAt(words, leaf, to - 1) - start === to - 1 - i) return to - i
  let length = 1
  while (i + length < to && keyAt(words, leaf, i + length) === start + length) length++
  return length
}

/** The data block of a pair. */
export function dataBlockAt(pairs: Uint32Array, i: number): number {
  return pairs[2 * i + 1] * 256 + (pairs[2 * i] >>> 24)
}

/** The time of a pair. */
export function timeAt(pairs: Uint32Array, i: number): number {
  return pairs[2 * i] & 0xffffff
}

/** The highest time of the first `count` pairs. @param anyLow all of their low words, one bit where any has one */
function youngest(pairs: Uint32Array, count: number, anyLow: number): number {
  let most = 0
  if ((anyLow & 0xffffff) === 0) return most
  for (let i = 0; i < count; i++) {
    const time = pairs[2 * i] & 0xffffff
    if (time > most) most = time
  }
  return most
}
