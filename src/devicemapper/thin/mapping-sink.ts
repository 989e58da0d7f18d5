/**
 * What a walk hands on of the mappings that it meets, for who keeps a record of them: a walk knows no more of records
 * than this.
 */
import type { NodeShape } from '../btree.ts'

/** Who keeps what a walk finds, in ascending order of virtual blocks. Between windows the walk waits for it. */
export interface MappingSink {
  /** The target has this mapping, and the base has not; a base that is a record may have it as well. */
  put(block: number, data: number, time: number): void
  /** The same of entries `[from, to)` of a leaf, whose words are valid during the call. */
  putEntries(words: Uint32Array, leaf: NodeShape, from: number, to: number): void
  /** Both have this one. What the trees share is not read, and so not told. */
  keep(block: number, data: number, time: number): void
  /** The base maps this block, the target does not. */
  drop(block: number): void
  settle(): Promise<void>
}
