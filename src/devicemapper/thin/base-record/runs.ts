/**
 * Runs of mappings as bytes, and back: virtual blocks that follow one another, in data blocks that do too, allocated at
 * one time.
 *
 * Blocks that were written in order are one run of a few bytes, whatever its length. Each frame begins anew, so that it
 * can be read alone.
 */
import { MAX_BLOCK, MAX_FRAME_RUNS_BYTES, MAX_RUN_BYTES, MAX_TIME } from './format.ts'

/**
 * Run `i` maps virtual blocks `[starts[i], starts[i] + lengths[i])` to the data blocks from `data[i]` on, for `0 <= i <
 * count`.
 */
export interface Runs {
  count: number
  readonly starts: Float64Array
  readonly lengths: Float64Array
  readonly data: Float64Array
  readonly times: Uint32Array
}

/** Collects the runs of one frame. */
export class RunEncoder {
  readonly bytes = Buffer.alloc(MAX_FRAME_RUNS_BYTES)
  length = 0
  count = 0
  /** The first virtual block of the frame. */
  first = 0
  #block = 0
  #data = 0
  #time = 0

  get isFull(): boolean {
    return this.length + MAX_RUN_BYTES > this.bytes.length
  }

  add(start: number, length: number, data: number, time: number): void {
    if (this.count++ === 0) this.first = start
    this.#number(start - this.#block)
    this.#number(length)
    this.#signed(data - this.#data)
    this.#signed(time - this.#time)
    this.#block = start + length
    this.#data = data + length
    this.#time = time
  }

  clear(): void {
    this.length = this.count = this.first = this.#block = this.#data = this.#time = 0
  }

  #signed(value: number): void {
    this.#number(value < 0 ? -2 * value - 1 : 2 * value)
  }

  #number(value: number): void {
    while (value >= 128) {
      this.bytes[this.length++] = (value % 128) + 128
      value = Math.floor(value / 128)
    }
    this.bytes[this.length++] = value
  }
}

/** @throws Error for bytes that no encoder of ours writes */
export function decodeRuns(bytes: Uint8Array, count: number): Runs {
  // Four bytes is the least that a run takes.
  if (count * 4 > bytes.length) throw new Error(`${bytes.length} bytes cannot hold ${count} runs`)
  const runs: Runs = {
    count,
    starts: new Float64Array(count),
    lengths: new Float64Array(count),
    data: new Float64Array(count),
    times: new Uint32Array(count)
  }
  const input = { bytes, at: 0 }
  let [block, dataBlock, lastTime] = [0, 0, 0]
  for (let i = 0; i < count; i++) {
    const start = block + readNumber(input)
    const length = readNumber(input)
    const data = dataBlock + readSigned(input)
    const time = lastTime + readSigned(input)
    const isPossible =
      length > 0 &&
      start + length <= MAX_BLOCK &&
      data >= 0 &&
      data + length <= MAX_BLOCK &&
      time >= 0 &&
      time < MAX_TIME
    if (!isPossible) throw new Error(`run ${i} maps ${length} blocks from ${start} on to ${data}, at time ${time}`)
    runs.starts[i] = start
    runs.lengths[i] = length
    runs.data[i] = data
    runs.times[i] = time
    block = start + length
    dataBlock = data + length
    lastTime = time
  }
  if (input.at !== bytes.length) throw new Error(`${bytes.length - input.at} bytes are left behind the last run`)
  return runs
}

interface Input {
  readonly bytes: Uint8Array
  at: number
}

function readSigned(input: Input): number {
  const value = readNumber(input)
  return value % 2 === 0 ? value / 2 : -(value + 1) / 2
}

function readNumber(input: Input): number {
  let value = 0
  for (let factor = 1; factor < 2 ** 53; factor *= 128) {
    if (input.at >= input.bytes.length) throw new Error('a number is cut off')
    const byte = input.bytes[input.at++]
    value += (byte & 127) * factor
    if (byte < 128) {
      if (value > Number.MAX_SAFE_INTEGER) break
      return value
    }
  }
  throw new Error('a number is too large')
}
