/**
 * Makes a record of the target while an answer about it is streamed: no second walk.
 */
import { keyAt, type NodeShape } from '../btree.ts'
import type { MappingSink } from './mapping-sink.ts'
import type { BaseRecordReader } from './base-record/reader.ts'
import type { RecordedFrame } from './base-record/format.ts'
import type { BaseRecordWriter } from './base-record/writer.ts'

type Writer = Pick<BaseRecordWriter, 'add' | 'addEntries' | 'addPairs' | 'drain'>

/** From a walk that meets all mappings of the target: `allocated`, or a delta from a record. */
export class WholeRecordSink implements MappingSink {
  readonly #writer: Writer

  constructor(writer: Writer) {
    this.#writer = writer
  }

  put(block: number, data: number, time: number): void {
    this.#writer.add(block, 1, data, time)
  }

  putEntries(words: Uint32Array, leaf: NodeShape, from: number, to: number): void {
    this.#writer.addEntries(words, leaf, from, to)
  }

  keep(block: number, data: number, time: number): void {
    this.#writer.add(block, 1, data, time)
  }

  drop(): void {}

  async settle(): Promise<void> {
    await this.#writer.drain()
  }
}

/**
 * From a delta of two trees, which tells only the differences: the base's record, patched with them. It costs the
 * change, and copying the record.
 */
export class PatchedRecordSink implements MappingSink {
  readonly #writer: Writer
  readonly #base: Pick<BaseRecordReader, 'startAt' | 'next'>
  /** Told since the last `settle`: blocks, and for each its data block (-1: none) and time. */
  readonly #blocks: number[] = []
  readonly #data: number[] = []
  readonly #times: number[] = []
  #frame: RecordedFrame | undefined
  /** The stretch of it that is being taken. */
  #stretch = 0
  #taken = 0
  #begun = false
  #ended = false

  /** @param base the record of the base */
  constructor(writer: Writer, base: Pick<BaseRecordReader, 'startAt' | 'next'>) {
    this.#writer = writer
    this.#base = base
  }

  put(block: number, data: number, time: number): void {
    this.#blocks.push(block)
    this.#data.push(data)
    this.#times.push(time)
  }

  putEntries(words: Uint32Array, leaf: NodeShape, from: number, to: number): void {
    for (let i = from; i < to; i++) {
      const v = leaf.values + 2 * i
      this.put(keyAt(words, leaf, i), words[v + 1] * 256 + (words[v] >>> 24), words[v] & 0xffffff)
    }
  }

  keep(): void {}

  drop(block: number): void {
    this.put(block, -1, 0)
  }

  async settle(): Promise<void> {
    for (let i = 0; i < this.#blocks.length; i++) {
      const block = this.#blocks[i]
      await this.#copyTo(block)
      await this.#skip(block)
      if (this.#data[i] >= 0) this.#writer.add(block, 1, this.#data[i], this.#times[i])
    }
    this.#blocks.length = this.#data.length = this.#times.length = 0
    await this.#writer.drain()
  }

  /** After the answer: copies the rest of the base's record, whose end shows whether it is complete. */
  async finish(): Promise<void> {
    await this.settle()
    await this.#copyTo(Infinity)
    await this.#writer.drain()
  }

  /** Copies what the base maps below `end`. */
  async #copyTo(end: number): Promise<void> {
    for (;;) {
      const frame = this.#known() ?? (await this.#next())
      if (!frame) return
      const i = this.#stretch
      const from = frame.starts[i] + this.#taken
      if (from >= end) return
      const length = Math.min(frame.lengths[i] - this.#taken, end - from)
      const data = frame.data[i] + this.#taken
      if (frame.pairs) this.#writer.addPairs(from, length, frame.pairs, data)
      else this.#writer.add(from, length, data, frame.times[i])
      this.#taken += length
    }
  }

  async #skip(block: number): Promise<void> {
    const frame = this.#known() ?? (await this.#next())
    if (frame && frame.starts[this.#stretch] + this.#taken === block) this.#taken++
  }

  /** The frame that `#stretch` is an index of, with something left to take; undefined where none is known. */
  #known(): RecordedFrame | undefined {
    const frame = this.#frame
    if (!frame) return undefined
    if (this.#taken >= frame.lengths[this.#stretch]) {
      this.#stretch++
      this.#taken = 0
    }
    return this.#stretch < frame.count ? frame : undefined
  }

  /** @returns undefined at the end */
  async #next(): Promise<RecordedFrame | undefined> {
    if (this.#ended) return undefined
    await this.#writer.drain()
    if (!this.#begun) await this.#base.startAt(0)
    this.#begun = true
    this.#frame = await this.#base.next()
    this.#stretch = this.#taken = 0
    if (!this.#frame) this.#ended = true
    return this.#frame
  }
}
