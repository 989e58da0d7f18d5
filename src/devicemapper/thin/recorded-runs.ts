/**
 * A record's side of a delta: its stretches of mappings in ascending order, as far as they are wanted. One stretch at a
 * time, and never mapping by mapping: a record is compared at the target's pace.
 */
import type { KeyRange } from '../btree.ts'
import type { BaseRecordReader } from './base-record/reader.ts'
import { dataBlockAt, timeAt } from './base-record/entries.ts'
import type { RecordedFrame, RecordedPairs } from './base-record/format.ts'

export class RecordedRuns {
  /** The rest of the present stretch, virtual blocks `[begin, end)`. Infinity where none is known that is wanted. */
  begin = Infinity
  end = Infinity
  /** The lowest virtual block whose mapping is not known yet; Infinity at the end. */
  horizon = 0
  /** The pairs of what is known; undefined where it is runs. */
  pairs: RecordedPairs | undefined
  /** What to add to a block of the present stretch for its pair's index; or, in a run, for its data block. */
  shift = 0
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
    this.pairs = frame?.pairs
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
    return this.pairs ? dataBlockAt(this.pairs.words, block + this.shift) : block + this.shift
  }

  /** The time of a block of the present stretch. */
  timeOf(block: number): number {
    return this.pairs ? timeAt(this.pairs.words, block + this.shift) : this.#frame!.times[this.#stretch]
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
      this.shift = frame.data[this.#stretch] - start
      return
    }
    this.begin = this.end = Infinity
  }
}
