/**
 * Runs of mappings as bytes, and back: virtual blocks that follow one another, in data blocks that do too, allocated at
 * one time.
 *
 * Four columns of non-negative integers, one value for each run: blocks since the end of the last run; length in
 * blocks; data block since the end of the last run, and time since the last run, both signed (zigzag). Each frame
 * begins at virtual block, data block and time 0, so that it can be read alone.
 */
import { encodeColumn, readColumn } from './columns.ts'
import { grown } from './growing-room.ts'
import { MAX_BLOCK, MAX_FRAME_RUNS, MAX_TIME, type RecordedFrame } from './format.ts'

/** Collects the runs of one frame. */
export class RunEncoder {
  count = 0
  /** The first virtual block of the frame. */
  first = 0
  #most = MAX_FRAME_RUNS
  #columns = Array.from({ length: 4 }, () => new Float64Array(0))
  #block = 0
  #data = 0
  #time = 0

  /** Begins anew. @param most how many runs a frame takes, up to MAX_FRAME_RUNS */
  begin(most: number): void {
    this.#most = most
    this.clear()
  }

  get isFull(): boolean {
    return this.count === this.#most
  }

  add(start: number, length: number, data: number, time: number): void {
    const i = this.count++
    if (i === this.#columns[0].length) this.#columns = this.#columns.map((each) => grown(each, i + 1))
    const [gaps, lengths, jumps, ticks] = this.#columns
    if (i === 0) this.first = start
    gaps[i] = start - this.#block
    lengths[i] = length
    jumps[i] = zigzag(data - this.#data)
    ticks[i] = zigzag(time - this.#time)
    this.#block = start + length
    this.#data = data + length
    this.#time = time
  }

  /** Writes the frame's runs, from `begin` on. @param bytes with room for `frameBytes` @returns where they end */
  encode(bytes: Buffer, begin: number): number {
    let at = begin
    for (const column of this.#columns) at = encodeColumn(column, this.count, bytes, at)
    return at
  }

  clear(): void {
    this.count = this.first = this.#block = this.#data = this.#time = 0
  }
}

/** Makes runs of bytes, in memory of its own. */
export class RunDecoder {
  /** Starts, lengths, data blocks and ticks. */
  #columns = Array.from({ length: 4 }, () => new Float64Array(0))
  #times = new Uint32Array(0)

  /** The runs, until the next are decoded. @throws Error for bytes that no encoder of ours writes */
  decode(bytes: Uint8Array, count: number): RecordedFrame {
    // Four bytes is the least that a frame takes.
    if (count > MAX_FRAME_RUNS || bytes.length < 4) throw new Error(`${bytes.length} bytes cannot hold ${count} runs`)
    this.#columns = this.#columns.map((each) => grown(each, count))
    const [starts, lengths, data, ticks] = this.#columns
    const times = (this.#times = grown(this.#times, count))
    let at = 0
    for (const column of [starts, lengths, data, ticks]) at = readColumn(bytes, at, count, column)
    if (at !== bytes.length) throw new Error(`${bytes.length - at} bytes are left behind the last run`)
    let [block, dataBlock, time] = [0, 0, 0]
    for (let i = 0; i < count; i++) {
      const length = lengths[i]
      const start = block + starts[i]
      const first = dataBlock + unzigzag(data[i])
      time += unzigzag(ticks[i])
      block = start + length
      dataBlock = first + length
      if (!(length > 0 && block <= MAX_BLOCK && first >= 0 && dataBlock <= MAX_BLOCK && time >= 0 && time < MAX_TIME)) {
        throw new Error(`run ${i} maps ${length} blocks from ${start} on to ${first}, at time ${time}`)
      }
      starts[i] = start
      data[i] = first
      times[i] = time
    }
    return { count, runs: count, starts, lengths, data, times }
  }
}

/** Integers of both signs as non-negative ones, small ones small. */
function zigzag(value: number): number {
  return value < 0 ? -2 * value - 1 : 2 * value
}

function unzigzag(value: number): number {
  if (value < 2 ** 31) return (value >> 1) ^ -(value & 1)
  // (The remainder of a double costs ten times as much.)
  const half = Math.floor(value / 2)
  return value === 2 * half ? half : -half - 1
}
