/**
 * The virtual blocks of a frame of pairs: stretches of blocks that follow one another, and which pairs are theirs.
 */
import { MAX_BLOCK } from './format.ts'

/**
 * Makes of gaps where each stretch begins.
 *
 * @param stretches how many there are, of `count` pairs in all
 * @param starts blocks since the end of the stretch before; becomes the first block of each
 * @param lengths blocks of each
 * @param firsts becomes the index of each stretch's first pair
 * @throws Error where they are not of `count` blocks in ascending order
 */
export function readStretches(
  stretches: number,
  count: number,
  starts: Float64Array,
  lengths: Float64Array,
  firsts: Float64Array
): void {
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
}
