/**
 * The pairs of a frame whose mappings are in no order, whatever its version keeps them in: data block times 2^24, and
 * time, as two words of a leaf (pack_block_time in drivers/md/dm-thin-metadata.c).
 */

export interface RecordedPairs {
  /** The highest time of them. */
  readonly youngest: number
  /** The first word of the i-th pair, unsigned: the lowest byte of its data block, and its time. */
  lowWord(i: number): number
  /** The second one: the rest of its data block. */
  highWord(i: number): number
  /**
   * Whether pairs `[i, i + count)` are those that a leaf has.
   *
   * @param bytes memory of the leaf, and the same in words of 4 bytes
   * @param word where the first of its pairs begins
   */
  isSame(i: number, count: number, bytes: Buffer, words: Uint32Array, word: number): boolean
}

/** The data block of a pair. */
export function dataBlockAt(pairs: RecordedPairs, i: number): number {
  return pairs.highWord(i) * 256 + (pairs.lowWord(i) >>> 24)
}

/** The time of a pair. */
export function timeAt(pairs: RecordedPairs, i: number): number {
  return pairs.lowWord(i) & 0xffffff
}
