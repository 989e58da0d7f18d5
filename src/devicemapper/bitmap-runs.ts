/**
 * Runs of ones in a bitmap, which become extents: the last step of every answer that is put together as a bitmap.
 */
import type { ExtentBuilder } from './extents.ts'

/** Bit `i` of the bitmap is block `begin + i`, as far as blocks `[low, high)` are of interest. */
export interface BitmapPart {
  readonly bitmap: Uint32Array
  readonly begin: number
  readonly low: number
  readonly high: number
}

/**
 * Adds the runs of ones to the extents. What is of no interest in the words looked at is cleared. Nothing where `low >=
 * high`.
 */
export function addRuns(extents: ExtentBuilder, { bitmap, begin, low, high }: BitmapPart): void {
  if (low >= high) return
  const firstWord = (low - begin) >>> 5
  const endWord = Math.ceil((high - begin) / 32)
  // What is of no interest counts as zero. (JavaScript shifts by the count modulo 32.)
  bitmap[firstWord] &= -1 << (low - begin)
  bitmap[endWord - 1] &= -1 >>> (begin - high)
  /** Where the run that has not ended yet began. */
  let run = 0
  /** 1 while there is such a run. */
  let inRun = 0
  for (let w = firstWord; w < endWord; w++) {
    const word = bitmap[w]
    // Ones where a block is unlike the one before it: there a run begins, or ends.
    let edges = word ^ ((word << 1) | inRun)
    for (; edges !== 0; edges &= edges - 1) {
      const block = begin + 32 * w + 31 - Math.clz32(edges & -edges)
      if (inRun === 0) run = block
      else extents.addRun(run, block)
      inRun ^= 1
    }
  }
  if (inRun === 1) extents.addRun(run, high)
}
