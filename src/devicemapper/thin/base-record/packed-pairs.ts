/**
 * Mappings of which few follow one another, as bytes: what was written in no order has nothing that runs (runs.ts)
 * could be made of. Each pair is packed into as many bits as the data blocks and times of its frame need. That is one
 * word in most pools: one pass from the leaf to the file, and one comparison with a leaf.
 *
 *      0   1  254, which no frame of runs begins with
 *      1   1  bits of a data block, d: 1 to 40
 *      2   1  bits of a time, t: 0 to 24
 *      3   1  0
 *      4   4  number of stretches
 *      8  4n  for each of n pairs, the lowest 32 bits of time · 2^d + data block
 *          …  what is above them: as many planes of n bytes as d + t has bytes above 32, the lowest byte first
 *          …  two columns as those of runs, with a value for each stretch of virtual blocks that follow one another:
 *             blocks since the end of the last one, and length in blocks less one
 *
 * Such a frame is not compressed: there is hardly an order in it, and to look for one takes longer than the walk.
 */
import { keyAt, type NodeShape, runEnd } from '../../btree.ts'
import { encodeColumn, readColumn } from './columns.ts'
import { MAX_FRAME_RUNS, type RecordedFrame } from './format.ts'
import { grown } from './growing-room.ts'
import { dataBlockAt, type RecordedPairs } from './recorded-pairs.ts'
import { readStretches } from './stretches.ts'

/** What a frame of packed pairs begins with. */
export const PACKED_MARK = 254
const HEAD_BYTES = 8
const WORD_BITS = 32
const MAX_DATA_BITS = 40
const MAX_TIME_BITS = 24
const TIME_MASK = 0xffffff
/** Of so many mappings one is asked whether the next one follows it. */
const SAMPLED = 32
/** Mappings of a run that are packed at once. */
const CHUNK = 256

/** Bits of an unsigned word. */
function bitsOf(word: number): number {
  return WORD_BITS - Math.clz32(word)
}

/** Bits that data blocks need. @param low all first words of their pairs, one bit where any has one; likewise `high` */
function dataBitsOf(low: number, high: number): number {
  const top = high >>> 24
  return top > 0 ? WORD_BITS + bitsOf(top) : Math.max(1, bitsOf((low >>> 24) | (high << 8)))
}

/** The highest of some words. */
function highest(words: Uint32Array, count: number): number {
  // Compared as integers with a sign, which have the order of the words once the highest bit is turned over.
  const sign = 2 ** 31
  let most = 0 ^ sign
  for (let i = 0; i < count; i++) {
    const word = words[i] ^ sign
    if (word > most) most = word
  }
  return (most ^ sign) >>> 0
}

/** Pairs in as few bits as they need. */
class PackedPairs implements RecordedPairs {
  /** The lowest 32 bits of each, and what is above them where there is more. */
  low: Uint32Array = new Uint32Array(0)
  high: Uint32Array = new Uint32Array(0)
  dataBits = 1
  timeBits = 0
  youngest = 0

  /** Whether a word has room for a pair. */
  get isNarrow(): boolean {
    return this.dataBits + this.timeBits <= WORD_BITS
  }

  lowWord(i: number): number {
    const { dataBits } = this
    const low = this.low[i]
    const high = this.isNarrow ? 0 : this.high[i]
    if (dataBits >= WORD_BITS) return ((low << 24) | (high >>> (dataBits - WORD_BITS))) >>> 0
    return (
      ((((low << (WORD_BITS - dataBits)) >>> (WORD_BITS - dataBits)) << 24) |
        (low >>> dataBits) |
        (high << (WORD_BITS - dataBits))) >>>
      0
    )
  }

  highWord(i: number): number {
    const { dataBits } = this
    if (dataBits < WORD_BITS) return ((this.low[i] << (WORD_BITS - dataBits)) >>> (WORD_BITS - dataBits)) >>> 8
    const top = dataBits === WORD_BITS ? 0 : this.high[i] & (2 ** (dataBits - WORD_BITS) - 1)
    return ((this.low[i] >>> 8) | (top << 24)) >>> 0
  }

  /** Sets the i-th pair, which needs no more bits than there are. */
  set(i: number, lowWord: number, highWord: number): void {
    const { dataBits } = this
    const time = lowWord & TIME_MASK
    const data = (lowWord >>> 24) | (highWord << 8)
    if (dataBits < WORD_BITS) {
      this.low[i] = data | (time << dataBits)
      if (!this.isNarrow) this.high[i] = time >>> (WORD_BITS - dataBits)
      return
    }
    this.low[i] = data
    if (!this.isNarrow) this.high[i] = (highWord >>> 24) | (time << (dataBits - WORD_BITS))
  }

  /** Whether pairs of these words need no more bits than there are. @param low as `dataBitsOf` takes it */
  fits(low: number, high: number): boolean {
    return dataBitsOf(low, high) <= this.dataBits && bitsOf(low & TIME_MASK) <= this.timeBits
  }

  isSame(i: number, count: number, _: Buffer, words: Uint32Array, word: number): boolean {
    const { low, dataBits } = this
    let [anyLow, anyHigh] = [0, 0]
    if (this.isNarrow) {
      for (let pair = i, w = word, end = i + count; pair < end; pair++, w += 2) {
        const a = words[w]
        const b = words[w + 1]
        if (((a >>> 24) | (b << 8) | ((a & TIME_MASK) << dataBits)) !== (low[pair] | 0)) return false
        anyLow |= a
        anyHigh |= b
      }
      // A pair that needs more bits may be packed into the same word.
      return this.fits(anyLow, anyHigh)
    }
    for (let pair = i, w = word, end = i + count; pair < end; pair++, w += 2) {
      if (words[w] !== this.lowWord(pair) || words[w + 1] !== this.highWord(pair)) return false
    }
    return true
  }
}

/** Collects the mappings of one frame. */
export class PairEncoder {
  /** Mappings. */
  count = 0
  /** The first virtual block of the frame. */
  first = 0
  #most = MAX_FRAME_RUNS
  readonly #pairs = new PackedPairs()
  readonly #chunk = new Uint32Array(2 * CHUNK)
  #gaps = new Float64Array(0)
  #lengths = new Float64Array(0)
  #stretches = 0
  #next = 0

  /** Begins anew. @param most how many mappings a frame takes, up to MAX_FRAME_RUNS */
  begin(most: number): void {
    this.#most = most
    this.clear()
  }

  /** How many more mappings it takes. */
  get room(): number {
    return this.#most - this.count
  }

  /** About how many runs there would be: mappings that do not follow the one before, in the volume or in the pool. */
  get jumps(): number {
    let found = 0
    for (let i = 0; i + 1 < this.count; i += SAMPLED) {
      if (dataBlockAt(this.#pairs, i + 1) !== dataBlockAt(this.#pairs, i) + 1) found += SAMPLED
    }
    return Math.max(found, this.#stretches)
  }

  /** Adds up to `room` mappings in a row. */
  add(start: number, length: number, data: number, time: number): void {
    this.#extend(start, length)
    const words = this.#chunk
    for (let done = 0; done < length;) {
      const count = Math.min(CHUNK, length - done)
      for (let i = 0; i < count; i++, done++) {
        words[2 * i] = (((data + done) & 255) << 24) | time
        words[2 * i + 1] = Math.floor((data + done) / 256)
      }
      this.#pack(words, 0, count)
    }
  }

  /** Adds entries `[from, to)` of a leaf, no more than there is room for. */
  addEntries(words: Uint32Array, leaf: NodeShape, from: number, to: number): void {
    for (let i = from; i < to;) {
      const end = runEnd(words, leaf, i, to)
      this.#extend(keyAt(words, leaf, i), end - i)
      i = end
    }
    this.#pack(words, leaf.values + 2 * from, to - from)
  }

  /** Adds mappings of another frame: pairs `[from, from + length)`, of virtual blocks from `start` on. */
  addPairs(start: number, length: number, pairs: RecordedPairs, from: number): void {
    this.#extend(start, length)
    const words = this.#chunk
    for (let done = 0; done < length;) {
      const count = Math.min(CHUNK, length - done)
      for (let i = 0; i < count; i++, done++) {
        words[2 * i] = pairs.lowWord(from + done)
        words[2 * i + 1] = pairs.highWord(from + done)
      }
      this.#pack(words, 0, count)
    }
  }

  /** Writes the frame's bytes, from `begin` on. @param bytes with room for `frameBytes` @returns where they end */
  encode(bytes: Buffer, begin: number): number {
    const { count } = this
    const { low, high, dataBits, timeBits } = this.#pairs
    bytes.set([PACKED_MARK, dataBits, timeBits, 0], begin)
    bytes.writeUInt32LE(this.#stretches, begin + 4)
    let at = begin + HEAD_BYTES
    bytes.set(new Uint8Array(low.buffer, low.byteOffset, 4 * count), at)
    at += 4 * count
    for (let bits = WORD_BITS; bits < dataBits + timeBits; bits += 8, at += count) {
      for (let i = 0, shift = bits - WORD_BITS; i < count; i++) bytes[at + i] = high[i] >>> shift
    }
    at = encodeColumn(this.#gaps, this.#stretches, bytes, at)
    for (let s = 0; s < this.#stretches; s++) this.#lengths[s]--
    return encodeColumn(this.#lengths, this.#stretches, bytes, at)
  }

  clear(): void {
    this.count = this.first = this.#stretches = this.#next = 0
    this.#pairs.dataBits = 1
    this.#pairs.timeBits = 0
  }

  /** The next mappings are of these virtual blocks. */
  #extend(start: number, length: number): void {
    const last = this.#stretches - 1
    if (start === this.#next && last >= 0) this.#lengths[last] += length
    else {
      if (last < 0) this.first = start
      if (last + 1 === this.#gaps.length) {
        this.#gaps = grown(this.#gaps, last + 2)
        this.#lengths = grown(this.#lengths, last + 2)
      }
      this.#gaps[last + 1] = start - this.#next
      this.#lengths[last + 1] = length
      this.#stretches++
    }
    this.#next = start + length
  }

  /** Adds `count` pairs, whose words begin at `word`. */
  #pack(words: Uint32Array, word: number, count: number): void {
    const pairs = this.#pairs
    const begin = this.count
    this.count += count
    pairs.low = grown(pairs.low, this.count)
    const { low, dataBits } = pairs
    let [anyLow, anyHigh] = [0, 0]
    for (let i = begin, w = word; i < this.count; i++, w += 2) {
      const a = words[w]
      const b = words[w + 1]
      low[i] = (a >>> 24) | (b << 8) | ((a & TIME_MASK) << dataBits)
      anyLow |= a
      anyHigh |= b
    }
    const fits = pairs.fits(anyLow, anyHigh)
    if (fits && pairs.isNarrow) return
    if (!fits) this.#widen(begin, anyLow, anyHigh)
    if (!pairs.isNarrow) pairs.high = grown(pairs.high, this.count)
    for (let i = begin, w = word; i < this.count; i++, w += 2) pairs.set(i, words[w], words[w + 1])
  }

  /** Makes the first `count` pairs wide enough for others. @param anyLow as `dataBitsOf` takes it */
  #widen(count: number, anyLow: number, anyHigh: number): void {
    const pairs = this.#pairs
    const wide = new PackedPairs()
    wide.dataBits = Math.max(pairs.dataBits, dataBitsOf(anyLow, anyHigh))
    wide.timeBits = Math.max(pairs.timeBits, bitsOf(anyLow & TIME_MASK))
    // Each pair is set where it was, once it was read.
    wide.low = pairs.low
    wide.high = wide.isNarrow ? pairs.high : grown(pairs.high, count)
    for (let i = 0; i < count; i++) wide.set(i, pairs.lowWord(i), pairs.highWord(i))
    pairs.high = wide.high
    pairs.dataBits = wide.dataBits
    pairs.timeBits = wide.timeBits
  }
}

/** Makes stretches of bytes, in memory of its own; the pairs themselves stay where they are. */
export class PairDecoder {
  /** Starts, lengths and first pairs. */
  #columns = Array.from({ length: 3 }, () => new Float64Array(0))
  readonly #times = new Uint32Array(0)
  readonly #pairs = new PackedPairs()

  /**
   * @returns the stretches, until the next are decoded or the bytes change
   * @throws Error for bytes that no encoder of ours writes
   */
  decode(bytes: Buffer, count: number): RecordedFrame {
    const pairs = this.#pairs
    const dataBits = (pairs.dataBits = bytes[1])
    const timeBits = (pairs.timeBits = bytes[2])
    const stretches = bytes.length < HEAD_BYTES ? Infinity : bytes.readUInt32LE(4)
    const isPossible = dataBits >= 1 && dataBits <= MAX_DATA_BITS && timeBits <= MAX_TIME_BITS && bytes[3] === 0
    if (!isPossible || count > MAX_FRAME_RUNS || stretches > count) {
      throw new Error(`${bytes.length} bytes cannot hold ${count} mappings in ${stretches} stretches`)
    }
    const end = this.#readPairs(bytes, count)
    this.#columns = this.#columns.map((each) => grown(each, stretches))
    const [starts, lengths, firsts] = this.#columns
    const lengthsAt = readColumn(bytes, end, stretches, starts)
    const left = bytes.length - readColumn(bytes, lengthsAt, stretches, lengths)
    if (left !== 0) throw new Error(`${left} bytes are there in place of none`)
    for (let s = 0; s < stretches; s++) lengths[s]++
    readStretches(stretches, count, starts, lengths, firsts)
    return { count: stretches, runs: count, starts, lengths, data: firsts, times: this.#times, pairs }
  }

  /** @returns where they end */
  #readPairs(bytes: Buffer, count: number): number {
    const pairs = this.#pairs
    const bits = pairs.dataBits + pairs.timeBits
    const planes = Math.max(0, Math.ceil((bits - WORD_BITS) / 8))
    let at = HEAD_BYTES + 4 * count
    if (at + planes * count > bytes.length) throw new Error('the pairs are cut off')
    pairs.low = new Uint32Array(bytes.buffer, bytes.byteOffset + HEAD_BYTES, count)
    if (planes > 0) pairs.high = grown(pairs.high, count)
    pairs.high.fill(0, 0, planes > 0 ? count : 0)
    for (let plane = 0; plane < planes; plane++, at += count) {
      for (let i = 0; i < count; i++) pairs.high[i] |= bytes[at + i] << (8 * plane)
    }
    pairs.youngest = this.#checkBits(count, bits)
    return at
  }

  /** @returns the highest time @throws Error where a pair has more bits than it may */
  #checkBits(count: number, bits: number): number {
    const pairs = this.#pairs
    const top = pairs.isNarrow ? pairs.low : pairs.high
    const topBits = pairs.isNarrow ? bits : bits - WORD_BITS
    const most = highest(top, count)
    if (bitsOf(most) > topBits) throw new Error(`a pair has more than ${bits} bits`)
    if (pairs.isNarrow) return pairs.timeBits === 0 ? 0 : most >>> pairs.dataBits
    if (pairs.dataBits >= WORD_BITS) return most >>> (pairs.dataBits - WORD_BITS)
    let youngest = 0
    for (let i = 0; i < count; i++) youngest = Math.max(youngest, pairs.lowWord(i) & TIME_MASK)
    return youngest
  }
}
