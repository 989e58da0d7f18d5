/**
 * A record's side of a delta: its stretches of mappings in ascending order, as far as they are wanted. One stretch at a
 * time, and never mapping by mapping: a record is compared at the target's pace.
 */
import type { KeyRange } from '../btree.ts'
import type { BaseRecordReader } from './base-record/reader.ts'
import type { RecordedFrame } from './base-record/format.ts'
import { dataBlockAt, type RecordedPairs, timeAt } from './base-record/recorded-pairs.ts'

export class RecordedRuns {
  /** The rest of the present stretch, virtual blocks `[begin, end)`. Infinity where none is known that is wanted. */
  begin = Infinity
  end = Infinity
  /** The lowest virtual block whose mapping is not known yet; Infinity at the end. */
  horizon = 0
  /** The pairs of what is known; undefined where it is runs. */
  #pairs: RecordedPairs | undefined
  /** What to add to a block of the present stretch for its pair's index; or, in a run, for its data block. */
  #shift = 0
  readonly #reader: Pick<BaseRecordReader, 'startAt' | 'next'>
  readonly #range: KeyRange
  #frame: RecordedFrame | undefined
  /** The index of the present stretch. */
  #stretch = 0
  #begun = false

  /** @param range virtual blocks that matter: `low` inclusive, `high` exclusive */
  constructor(reader: Pick<BaseRecordReader, 'startAt' | 'next'>, range: KeyRange) {
    this.#reader = reader
    this.#range = range
  }

  /** Takes in some more, once all that is known was compared. @throws what reading a record throws */
  async advance(): Promise<void> {
    if (!this.#begun) {
      this.#begun = true
      await this.#reader.startAt(this.#range.low)
    }
    // Read on beyond the range as well: only the end of a record shows that it is complete.
    const frame = await this.#reader.next()
    this.#frame = frame
    this.#pairs = frame?.pairs
    this.#stretch = -1
    this.#nextStretch()
    this.horizon = frame ? frame.starts[frame.count - 1] + frame.lengths[frame.count - 1] : Infinity
  }

  /** The present stretch was compared up to this block. */
  compared(block: number): void {
    this.begin = block
    if (block === this.end) this.#nextStretch()
  }

  /** The data block of a block of the present stretch. */
  dataOf(block: number): number {
    return this.#pairs ? dataBlockAt(this.#pairs, block + this.#shift) : block + this.#shift
  }

  /** The time of a block of the present stretch. */
  timeOf(block: number): number {
    return this.#pairs ? timeAt(this.#pairs, block + this.#shift) : this.#frame!.times[this.#stretch]
  }

  /** Whether all of the present stretch is older than this. */
  mayProve(until: number): boolean {
    return (this.#pairs ? this.#pairs.youngest : this.#frame!.times[this.#stretch]) < until
  }

  /**
   * Whether a block of the present stretch has the pair of these two words (dm-thin-metadata.c, pack_block_time), which
   * is older than `until`.
   */
  proves(block: number, low: number, high: number, until: number): boolean {
    if ((low & 0xffffff) >= until) return false
    const at = block + this.#shift
    if (!this.#pairs) return high * 256 + (low >>> 24) === at && (low & 0xffffff) === this.#frame!.times[this.#stretch]
    return this.#pairs.lowWord(at) === low && this.#pairs.highWord(at) === high
  }

  /**
   * Whether blocks of the present stretch have the pairs that a leaf has.
   *
   * @param bytes memory of the leaf, and the same in words of 4 bytes
   * @param word where the first block's pair begins
   */
  isSame(block: number, length: number, bytes: Buffer, words: Uint32Array, word: number): boolean {
    if (this.#pairs) return this.#pairs.isSame(block + this.#shift, length, bytes, words, word)
    // data block << 24 | time (dm-thin-metadata.c, pack_block_time), in a run: with integers of 32 bits.
    const data = this.dataOf(block)
    let low = ((data & 255) << 24) | this.timeOf(block)
    let high = Math.floor(data / 256) | 0
    for (let w = word, end = word + 2 * length; w < end; w += 2) {
      if ((words[w] | 0) !== low || (words[w + 1] | 0) !== high) return false
      low = (low + 0x1000000) | 0
      if (low >>> 24 === 0) high = (high + 1) | 0
    }
    return true
  }

  /** Goes to the next stretch that is known and wanted. */
  #nextStretch(): void {
    const { low, high } = this.#range
    const frame = this.#frame
    while (frame && ++this.#stretch < frame.count) {
      const start = frame.starts[this.#stretch]
      this.begin = Math.max(start, low)
      this.end = Math.min(start + frame.lengths[this.#stretch], high)
      if (this.begin >= this.end) continue
      this.#shift = frame.data[this.#stretch] - start
      return
    }
    this.begin = this.end = Infinity
  }
}
