/**
 * Mappings of which no two follow one another, as bytes: what was written in no order has nothing that runs (runs.ts)
 * could be made of. Taking its pairs as they are is several times as fast, and smaller.
 *
 * A byte 255, which no frame of runs begins with; the number of stretches (4 bytes); two columns as those of runs, with
 * a value for each stretch of virtual blocks that follow one another: blocks since the end of the last one, and length
 * in blocks. Then eight planes, the lowest byte of all pairs first: a byte 0 for a plane that is all zero, or a byte 1
 * and the bytes of the plane. A pair is what dm-thin has (pack_block_time in drivers/md/dm-thin-metadata.c): data block
 * times 2^24, and time.
 */
import type { NodeShape } from '../../btree.ts'
import { encodeColumn, readColumn } from './columns.ts'
import { MAX_BLOCK, MAX_FRAME_RUNS, type Runs } from './format.ts'

/** What a frame of entries begins with. */
export const ENTRIES_MARK = 255
const HEAD_BYTES = 5
const PLANES = 8

/** Collects the mappings of one frame. */
export class EntryEncoder {
  /** Mappings, and those of them whose data block does not follow the one before. */
  count = 0
  jumps = 0
  /** The first virtual block of the frame. */
  first = 0
  readonly #most: number
  readonly #lows: Uint32Array
  readonly #highs: Uint32Array
  readonly #gaps: Float64Array
  readonly #lengths: Float64Array
  #stretches = 0
  #next = 0
  #nextData = 0

  /** @param most how many mappings a frame takes, up to MAX_FRAME_RUNS */
  constructor(most: number) {
    this.#most = most
    this.#lows = new Uint32Array(most)
    this.#highs = new Uint32Array(most)
    this.#gaps = new Float64Array(most)
    this.#lengths = new Float64Array(most)
  }

  /** How many more mappings it takes. */
  get room(): number {
    return this.#most - this.count
  }

  /** Adds up to `room` mappings in a row. */
  add(start: number, length: number, data: number, time: number): void {
    this.#beginStretch(start)
    if (data !== this.#nextData) this.jumps++
    for (let i = 0; i < length; i++) {
      const at = this.count++
      const block = data + i
      this.#lows[at] = ((block & 255) << 24) | time
      this.#highs[at] = Math.floor(block / 256)
    }
    this.#lengths[this.#stretches - 1] += length
    this.#next = start + length
    this.#nextData = data + length
  }

  /** Adds entries `[from, to)` of a leaf, no more than there is room for. */
  addEntries(words: Uint32Array, { keys, values }: NodeShape, from: number, to: number): void {
    const lows = this.#lows
    const highs = this.#highs
    let { count, jumps } = this
    let next = this.#next
    let nextData = this.#nextData
    for (let i = from; i < to; i++) {
      const k = keys + 2 * i
      const v = values + 2 * i
      const block = words[k] + words[k + 1] * 2 ** 32
      if (block !== next || count === 0) {
        this.#next = next
        this.#beginStretch(block)
      }
      const low = words[v]
      const high = words[v + 1]
      const data = high * 256 + (low >>> 24)
      if (data !== nextData) jumps++
      this.#lengths[this.#stretches - 1]++
      lows[count] = low
      highs[count++] = high
      next = block + 1
      nextData = data + 1
    }
    this.count = count
    this.jumps = jumps
    this.#next = next
    this.#nextData = nextData
  }

  /** Writes the frame's bytes. @param bytes with room for `frameBytes` @returns those that were written */
  encode(bytes: Buffer): Buffer {
    const { count } = this
    bytes[0] = ENTRIES_MARK
    bytes.writeUInt32LE(this.#stretches, 1)
    let at = HEAD_BYTES
    for (const column of [this.#gaps, this.#lengths]) at = encodeColumn(column, this.#stretches, bytes, at)
    for (const words of [this.#lows, this.#highs]) {
      let any = 0
      for (let i = 0; i < count; i++) any |= words[i]
      for (let shift = 0; shift < 32; shift += 8) {
        if (((any >>> shift) & 255) === 0) {
          bytes[at++] = 0
          continue
        }
        bytes[at++] = 1
        for (let i = 0; i < count; i++) bytes[at + i] = words[i] >>> shift
        at += count
      }
    }
    return bytes.subarray(0, at)
  }

  clear(): void {
    this.count = this.jumps = this.first = this.#stretches = this.#next = this.#nextData = 0
  }

  #beginStretch(block: number): void {
    const isFirst = this.#stretches === 0
    if (isFirst) this.first = block
    else if (block === this.#next) return
    this.#gaps[this.#stretches] = block - this.#next
    this.#lengths[this.#stretches++] = 0
  }
}

/** Makes runs of one block each. @throws Error for bytes that no encoder of ours writes */
export function decodeEntries(bytes: Uint8Array, count: number, into: Omit<Runs, 'count'>): Runs {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const stretches = bytes.length < HEAD_BYTES ? Infinity : view.getUint32(1, true)
  if (count > MAX_FRAME_RUNS || stretches > count) {
    throw new Error(`${bytes.length} bytes cannot hold ${count} mappings in ${stretches} stretches`)
  }
  const { starts, lengths, data, times } = into
  const [gaps, sizes] = [data, lengths]
  let at = readColumn(bytes, HEAD_BYTES, stretches, gaps)
  at = readColumn(bytes, at, stretches, sizes)
  let [block, filled] = [0, 0]
  for (let s = 0; s < stretches; s++) {
    block += gaps[s]
    const size = sizes[s]
    if (!(size > 0 && filled + size <= count && block + size <= MAX_BLOCK)) {
      throw new Error(`stretch ${s} has ${size} blocks from ${block} on`)
    }
    for (let i = 0; i < size; i++) starts[filled++] = block++
  }
  if (filled !== count) throw new Error(`its stretches hold ${filled} of ${count} mappings`)
  const planes = Array.from({ length: PLANES }, () => {
    if (at >= bytes.length || bytes[at] > 1) throw new Error('a plane is cut off')
    const plane = bytes[at++] === 0 ? undefined : at
    if (plane !== undefined) at += count
    return plane
  })
  if (at !== bytes.length) throw new Error(`${bytes.length - at} bytes are there in place of none`)
  times.fill(0, 0, count)
  data.fill(0, 0, count)
  lengths.fill(1, 0, count)
  planes.forEach((plane, p) => {
    if (plane === undefined) return
    const to = p < 3 ? times : data
    const scale = 256 ** (p < 3 ? p : p - 3)
    for (let i = 0; i < count; i++) to[i] += bytes[plane + i] * scale
  })
  return { count, ...into }
}
