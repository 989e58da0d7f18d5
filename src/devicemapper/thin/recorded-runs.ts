/**
 * A record's side of a delta: its runs of mappings in ascending order, as far as they are wanted. One run at a time,
 * and never mapping by mapping: what was written in order is compared at the target's pace.
 */
import type { KeyRange } from '../btree.ts'
import type { BaseRecordReader } from './base-record/reader.ts'
import type { Runs } from './base-record/format.ts'

export class RecordedRuns {
  /** The rest of the present run, virtual blocks `[begin, end)`. Infinity where no run is known that is wanted. */
  begin = Infinity
  end = Infinity
  /** Its data blocks less its virtual blocks, and its time. */
  shift = 0
  time = 0
  /** The lowest virtual block whose mapping is not known yet; Infinity at the end. */
  horizon = 0
  readonly #reader: Pick<BaseRecordReader, 'startAt' | 'next'>
  readonly #range: KeyRange
  /** Those that are known, and the index of the present one. */
  runs: Runs | undefined
  run = 0
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
    const runs = await this.#reader.next()
    this.runs = runs
    this.run = -1
    this.nextRun()
    this.horizon = runs ? runs.starts[runs.count - 1] + runs.lengths[runs.count - 1] : Infinity
  }

  /** Goes to a run that is known, or the next one that is wanted. */
  goTo(run: number): void {
    this.run = run - 1
    this.nextRun()
  }

  /** Goes to the next run that is known and wanted. */
  nextRun(): void {
    const { low, high } = this.#range
    const runs = this.runs
    while (runs && ++this.run < runs.count) {
      const i = this.run
      const start = runs.starts[i]
      this.begin = Math.max(start, low)
      this.end = Math.min(start + runs.lengths[i], high)
      if (this.begin >= this.end) continue
      this.shift = runs.data[i] - start
      this.time = runs.times[i]
      return
    }
    this.begin = this.end = Infinity
  }
}
