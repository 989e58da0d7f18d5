/**
 * Words of 32 bits from planes of bytes: the lowest byte of all words, the next byte of all words, and so on.
 *
 * Four words are taken at once, as a square of four times four bytes that is turned over.
 */

/**
 * Puts every other word of `pairs` together again.
 *
 * @param planes four, the lowest bytes first, each of `count` bytes, and zeros up to the next four
 * @param pairs gets `count` pairs of words, and zeros up to the next four pairs
 * @param odd 0 for the first word of each pair, 1 for the second
 * @returns all of the words, one bit where any has one
 */
export function fromPlanes(planes: readonly Uint32Array[], count: number, pairs: Uint32Array, odd: 0 | 1): number {
  const [p0, p1, p2, p3] = planes
  const even = 0x00ff00ff
  let any = 0
  for (let i = 0, w = odd; 4 * i < count; i++, w += 8) {
    const a = p0[i]
    const b = p1[i]
    const c = p2[i]
    const d = p3[i]
    const ab = (a & even) | ((b & even) << 8)
    const cd = (c & even) | ((d & even) << 8)
    const abHigh = ((a >>> 8) & even) | (b & ~even)
    const cdHigh = ((c >>> 8) & even) | (d & ~even)
    const first = (ab & 0xffff) | (cd << 16)
    const second = (abHigh & 0xffff) | (cdHigh << 16)
    const third = (ab >>> 16) | (cd & 0xffff0000)
    const fourth = (abHigh >>> 16) | (cdHigh & 0xffff0000)
    any |= first | second | third | fourth
    pairs[w] = first
    pairs[w + 2] = second
    pairs[w + 4] = third
    pairs[w + 6] = fourth
  }
  return any >>> 0
}
