/**
 * Mappings of which few follow one another, as version 3 has them; later ones have packed pairs (packed-pairs.ts).
 *
 * A byte 255, which no frame of runs begins with; the number of stretches (4 bytes); two columns as those of runs, with
 * a value for each stretch of virtual blocks that follow one another: blocks since the end of the last one, and length
 * in blocks. Then eight planes, the lowest byte of all pairs first: a byte 0 for a plane that is all zero, or a byte 1
 * and the bytes of the plane. A pair is what dm-thin has (pack_block_time in drivers/md/dm-thin-metadata.c): data block
 * times 2^24, and time.
 */
import { fromPlanes } from './byte-planes.ts'
import { readColumn } from './columns.ts'
import { MAX_FRAME_RUNS, type RecordedFrame } from './format.ts'
import { grown } from './growing-room.ts'
import type { RecordedPairs } from './recorded-pairs.ts'
import { readStretches } from './stretches.ts'

/** What a frame of entries begins with. */
export const ENTRIES_MARK = 255
const HEAD_BYTES = 5
const PLANES = 8
/** Pairs that are put together at once. */
const SQUARE = 4

/** Pairs as a leaf has them. */
class WholePairs implements RecordedPairs {
  readonly youngest: number
  readonly #words: Uint32Array
  /** The same memory. */
  readonly #bytes: Buffer

  constructor(words: Uint32Array, youngest: number) {
    this.#words = words
    this.#bytes = Buffer.from(words.buffer)
    this.youngest = youngest
  }

  lowWord(i: number): number {
    return this.#words[2 * i]
  }

  highWord(i: number): number {
    return this.#words[2 * i + 1]
  }

  isSame(i: number, count: number, bytes: Buffer, _: Uint32Array, word: number): boolean {
    return bytes.compare(this.#bytes, 8 * i, 8 * (i + count), 4 * word, 4 * word + 8 * count) === 0
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
    readStretches(stretches, count, starts, lengths, firsts)
    const anyLow = this.#putTogether(bytes, at, count)
    const pairs = new WholePairs(this.#pairs, youngest(this.#pairs, count, anyLow))
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
