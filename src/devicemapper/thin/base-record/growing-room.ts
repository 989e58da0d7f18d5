/** Room for the numbers of a frame, which grows to what frames need: most records are small, and many may be open. */

const LEAST = 256

/** @returns `array`, or a larger one with its values, with room for `count` */
export function grown<T extends Float64Array | Uint32Array>(array: T, count: number): T {
  if (count <= array.length) return array
  const length = Math.max(count, 2 * array.length, LEAST)
  const larger = (array instanceof Float64Array ? new Float64Array(length) : new Uint32Array(length)) as T
  larger.set(array)
  return larger
}
