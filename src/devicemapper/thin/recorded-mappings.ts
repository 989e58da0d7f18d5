/**
 * A record's side of a delta: its mappings in ascending order, as far as they are wanted, like those of a tree
 * (frontier.ts).
 */
import type { KeyRange } from '../btree.ts'
import { MappingQueue } from './frontier.ts'
import type { BaseRecordReader } from './base-record/reader.ts'
import type { Runs } from './base-record/runs.ts'

/** Mappings taken from the runs at once. */
const STRIDE = 4096

export class RecordedMappings {
  readonly mappings = new MappingQueue()
  readonly #reader: Pick<BaseRecordReader, 'startAt' | 'next'>
  readonly #range: KeyRange
  #runs: Runs | undefined
  /** The next run, and how many of its blocks were taken. */
  #run = 0
  #taken = 0
  #begun = false
  #horizon = 0

  /** @param range virtual blocks that matter: `low` inclusive, `high` exclusive */
  constructor(reader: Pick<BaseRecordReader, 'startAt' | 'next'>, range: KeyRange) {
    this.#reader = reader
    this.#range = range
  }

  /** The lowest virtual block whose mapping is not known yet; Infinity at the end. */
  get mappingHorizon(): number {
    return this.#horizon
  }

  /** Takes in some more. @throws what reading a record throws */
  async advance(): Promise<void> {
    if (!this.#begun) {
      this.#begun = true
      await this.#reader.startAt(this.#range.low)
    }
    // Read on beyond the range as well: only the end of a record shows that it is complete.
    while (!this.#runs || this.#run === this.#runs.count) {
      this.#runs = await this.#reader.next()
      this.#run = this.#taken = 0
      if (!this.#runs) {
        this.#horizon = Infinity
        return
      }
    }
    this.#take(this.#runs)
  }

  #take({ count, starts, lengths, data, times }: Runs): void {
    const { mappings } = this
    const { low, high } = this.#range
    mappings.reserve(STRIDE)
    let room = STRIDE
    while (room > 0 && this.#run < count) {
      const i = this.#run
      const from = Math.max(this.#taken, Math.min(low - starts[i], lengths[i]))
      const inRange = Math.max(0, Math.min(lengths[i], high - starts[i]) - from)
      const n = Math.min(inRange, room)
      for (let k = from; k < from + n; k++) {
        mappings.keys[mappings.tail] = starts[i] + k
        mappings.data[mappings.tail] = data[i] + k
        mappings.times[mappings.tail++] = times[i]
      }
      room -= n
      this.#taken = from + n
      if (n < inRange) break
      this.#run++
      this.#taken = 0
    }
    this.#horizon = this.#run < count ? starts[this.#run] + this.#taken : starts[count - 1] + lengths[count - 1]
  }
}
