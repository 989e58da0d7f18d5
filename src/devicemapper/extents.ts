/**
 * Extents: the form of an answer outside of this room. Blocks become byte ranges here, and nowhere else.
 *
 * Extents travel in batches of two parallel arrays rather than one object each: a stream may hold 100 million of them.
 */
import { keyAt, type NodeShape, runEnd } from './btree.ts'

/** Keys of a run that are looked at one after the other; the end of a longer one takes fewer looks otherwise. */
const LOOKS_ONE_BY_ONE = 8

/**
 * Extents in ascending order: extent `i` covers bytes `[offsets[i], offsets[i] + sizes[i])`, for `0 <= i < count`.
 * Values are exact integers (anything beyond 2^53 is refused earlier). The arrays belong to the producer and are
 * reused: a batch is valid until the next one is requested.
 */
export interface ExtentBatch {
  count: number
  readonly offsets: Float64Array
  readonly sizes: Float64Array
}

/** An answer of any source, including other drivers: everything allocated or changed in a target. */
export interface ExtentAnswer {
  /** What a person should know of the target, though there is an answer. Only servers say such a thing. */
  readonly remark?: string
  /**
   * Size of the (target) snapshot in bytes; constant for the answer. Undefined if nobody told it: a driver that finds
   * nothing may send no message (the CSI specification is silent). It is never 0 then, so that nobody cuts an image to
   * it.
   */
  readonly capacityBytes: number | undefined
  /**
   * What a server said of the sizes (csi.v1 BlockMetadataType); undefined: they differ. Of fixed ones the last may end
   * early, with the volume.
   */
  readonly blockMetadataType?: 'FIXED_LENGTH' | 'VARIABLE_LENGTH'
  /**
   * Ascending, never overlapping, none empty. Our own walks merge touching ones. Ends only when complete; throws
   * DeltamapperError otherwise.
   */
  readonly batches: AsyncIterable<ExtentBatch>
}

/** An answer of our own: the target's size is known. */
export interface ExtentStream extends ExtentAnswer {
  readonly capacityBytes: number
}

/**
 * Turns ascending block numbers into merged extents, clamped to the volume's size.
 *
 * If the volume's size is no multiple of the block size, its last block reaches beyond its end; the extent does not.
 */
export class ExtentBuilder {
  readonly #blockBytes: number
  readonly #sizeBytes: number
  #offsets = new Float64Array(1024)
  #sizes = new Float64Array(1024)
  #count = 0
  /** The run that may still grow: blocks [#begin, #end). */
  #begin = 0
  #end = 0

  /**
   * @param blockBytes size of a block in bytes
   * @param sizeBytes size of the volume in bytes; blocks from there on must not be added
   */
  constructor(blockBytes: number, sizeBytes: number) {
    this.#blockBytes = blockBytes
    this.#sizeBytes = sizeBytes
  }

  /** Adds a block above all those added before. */
  add(block: number): void {
    if (block !== this.#end || this.#begin === this.#end) {
      this.#closeRun()
      this.#begin = block
    }
    this.#end = block + 1
  }

  /** Adds the blocks `[begin, end)`, all above those added before. */
  addRun(begin: number, end: number): void {
    if (begin >= end) return
    this.add(begin)
    this.#end = end
  }

  /**
   * Adds the blocks that are the keys of a node's entries `[from, to)`, all above those added before.
   *
   * @param words where the node's content is
   */
  addKeys(words: Uint32Array, node: NodeShape, from: number, to: number): void {
    this.#reserve(to - from)
    const [blockBytes, sizeBytes] = [this.#blockBytes, this.#sizeBytes]
    const [offsets, sizes] = [this.#offsets, this.#sizes]
    let [count, begin, end] = [this.#count, this.#begin, this.#end]
    for (let i = from, key = from < to ? keyAt(words, node, from) : 0; i < to;) {
      let next = i + 1
      let following = next < to ? keyAt(words, node, next) : Infinity
      while (following === key + next - i && next - i < LOOKS_ONE_BY_ONE) {
        next++
        following = next < to ? keyAt(words, node, next) : Infinity
      }
      if (following === key + next - i) {
        next = runEnd(words, node, next, to)
        following = next < to ? keyAt(words, node, next) : Infinity
      }
      if (key !== end || begin === end) {
        if (begin !== end) {
          offsets[count] = begin * blockBytes
          sizes[count] = Math.min(end * blockBytes, sizeBytes) - begin * blockBytes
          count++
        }
        begin = key
      }
      end = key + next - i
      key = following
      i = next
    }
    this.#count = count
    this.#begin = begin
    this.#end = end
  }

  /** Extents that can no longer grow. */
  get count(): number {
    return this.#count
  }

  /** Everything that can no longer grow, or undefined when there is nothing. */
  take(): ExtentBatch | undefined {
    if (this.#count === 0) return undefined
    const batch = { count: this.#count, offsets: this.#offsets, sizes: this.#sizes }
    this.#count = 0
    return batch
  }

  /** The rest, after the last block. */
  takeLast(): ExtentBatch | undefined {
    this.#closeRun()
    this.#begin = this.#end
    return this.take()
  }

  #closeRun(): void {
    if (this.#begin === this.#end) return
    this.#reserve(1)
    const i = this.#count++
    const offset = this.#begin * this.#blockBytes
    this.#offsets[i] = offset
    this.#sizes[i] = Math.min(this.#end * this.#blockBytes, this.#sizeBytes) - offset
  }

  /** Makes room for so many more. The caller bounds it: it takes what is there when it is enough. */
  #reserve(more: number): void {
    const [offsets, sizes] = [this.#offsets, this.#sizes]
    if (this.#count + more <= offsets.length) return
    const room = Math.max(2 * offsets.length, this.#count + more)
    this.#offsets = new Float64Array(room)
    this.#sizes = new Float64Array(room)
    this.#offsets.set(offsets)
    this.#sizes.set(sizes)
  }
}
