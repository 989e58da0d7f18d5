/**
 * Non-negative integers below 2^48 as bytes, and back: a column of a frame of a record.
 *
 * A column is a byte with the number of its planes, 0 to 6; then the planes: the lowest byte of all values, the next
 * byte of all values, and so on. High bytes are mostly zero then, one after another, and compress to nothing. They are
 * also read faster than numbers that differ in length.
 */
import { grown } from './growing-room.ts'

/** Of a value below 2^48. */
const MOST_PLANES = 6
/** Of a column that is being written. */
let integers = new Uint32Array(0)

/** Writes a column. @returns where the next one begins */
export function encodeColumn(column: Float64Array, count: number, bytes: Uint8Array, begin: number): number {
  let most = 0
  for (let i = 0; i < count; i++) if (column[i] > most) most = column[i]
  let at = begin + 1
  let planes = 0
  if (most < 2 ** 31) {
    integers = grown(integers, count)
    // Integers of 31 bits are taken apart much faster than others, and most are.
    for (let i = 0; i < count; i++) integers[i] = column[i]
    for (let rest = most; rest > 0; rest >>= 8, planes++) {
      for (let i = 0, shift = 8 * planes; i < count; i++) bytes[at + i] = integers[i] >> shift
      at += count
    }
  } else {
    for (let scale = 1; scale <= most; scale *= 256, planes++) {
      for (let i = 0; i < count; i++) bytes[at++] = Math.floor(column[i] / scale) % 256
    }
  }
  bytes[begin] = planes
  return at
}

/** Adds up the planes of a column. @returns where the next one begins */
export function readColumn(bytes: Uint8Array, at: number, count: number, values: Float64Array): number {
  const planes = bytes[at] ?? Infinity
  const end = at + 1 + planes * count
  if (planes > MOST_PLANES || end > bytes.length) throw new Error('a column is cut off')
  const [low, middle, high] = [at + 1, at + 1 + count, at + 1 + 2 * count]
  // Three planes at once, in integers: most columns have no more.
  if (planes === 0) values.fill(0, 0, count)
  else if (planes === 1) for (let i = 0; i < count; i++) values[i] = bytes[low + i]
  else if (planes === 2) for (let i = 0; i < count; i++) values[i] = bytes[low + i] | (bytes[middle + i] << 8)
  else {
    for (let i = 0; i < count; i++) {
      values[i] = bytes[low + i] | (bytes[middle + i] << 8) | (bytes[high + i] << 16)
    }
  }
  for (let plane = 3, from = high + count, scale = 2 ** 24; plane < planes; plane++, from += count, scale *= 256) {
    for (let i = 0; i < count; i++) values[i] += bytes[from + i] * scale
  }
  return end
}
