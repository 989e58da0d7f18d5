/**
 * Makes a record of the target while an answer about it is streamed: no second walk.
 */
import { keyAt, type NodeShape } from '../btree.ts'
import type { MappingSink } from './mapping-sink.ts'
import type { BaseRecordReader } from './base-record/reader.ts'
import type { Runs } from './base-record/format.ts'
import type { BaseRecordWriter } from './base-record/writer.ts'

type Writer = Pick<BaseRecordWriter, 'add' | 'addEntries' | 'drain'>

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
  #runs: Runs | undefined
  #run = 0
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
      const runs = await this.#current()
      if (!runs) return
      const i = this.#run
      const from = runs.starts[i] + this.#taken
      if (from >= end) return
      const length = Math.min(runs.lengths[i] - this.#taken, end - from)
      this.#writer.add(from, length, runs.data[i] + this.#taken, runs.times[i])
      this.#taken += length
      await this.#writer.drain()
    }
  }

  async #skip(block: number): Promise<void> {
    const runs = await this.#current()
    if (runs && runs.starts[this.#run] + this.#taken === block) this.#taken++
  }

  /** The runs that `#run` is an index of, with something left to take; undefined at the end. */
  async #current(): Promise<Runs | undefined> {
    while (!this.#ended) {
      const runs = this.#runs
      if (!runs) await this.#next()
      else if (this.#taken < runs.lengths[this.#run]) return runs
      else if (++this.#run < runs.count) this.#taken = 0
      else await this.#next()
    }
    return undefined
  }

  async #next(): Promise<void> {
    if (!this.#begun) await this.#base.startAt(0)
    this.#begun = true
    this.#runs = await this.#base.next()
    this.#run = this.#taken = 0
    if (!this.#runs) this.#ended = true
  }
}
