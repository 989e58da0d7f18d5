/**
 * Writes the record of a target while an answer about it is streamed, so that the target may be removed once the answer
 * has ended OK.
 *
 * Most answers meet what the record takes: all that the target maps, or what differs from a base that has a record. For
 * the others (resumed, made by the tools, without a record of the base), the target's tree is read whole afterwards.
 * Whatever becomes of the record, the answer is not held up: a failure is a sentence in the log, and the target has to
 * stay.
 */
import { join } from 'node:path'
import { BaseRecordReader } from '../../devicemapper/thin/base-record/reader.ts'
import { BaseRecordWriter } from '../../devicemapper/thin/base-record/writer.ts'
import type { BaseRecordHeader } from '../../devicemapper/thin/base-record/format.ts'
import { checkRecordable } from '../../devicemapper/thin/base-record/trust.ts'
import type { MappingSink } from '../../devicemapper/thin/mapping-sink.ts'
import type { PoolMetadata } from '../../devicemapper/thin/pool-metadata.ts'
import { PatchedRecordSink, WholeRecordSink } from '../../devicemapper/thin/record-sinks.ts'
import { asDeltamapperError } from '../../errors.ts'
import { poolVolumes } from '../node/pool-identity.ts'
import type { SeenDevice } from './seen-devices.ts'

/** A record that is to be written. */
export interface RecordWanted {
  /** Where records are. */
  readonly folder: string
  /** Name of the file in it. */
  readonly name: string
  /** The most bytes it may have. */
  readonly maxBytes: number
  /** Which pool it is of (pool-identity.ts). */
  readonly poolIdentity: string
  /** Since when nobody can have written to the target unseen, in milliseconds since 1970. */
  readonly watchedSince?: number
  /** The file of the base's record; undefined without one. */
  readonly baseRecord: string | undefined
}

/** What became of it: its size in bytes, or why there is none. */
export type RecordOutcome = { readonly bytes: number } | { readonly notKept: string }

/** The devices of an answer, and how it is made. */
export interface RecordedAnswer {
  readonly metadata: PoolMetadata
  readonly base: SeenDevice | undefined
  readonly target: SeenDevice
  /** Whether the answer meets all that the target maps. */
  readonly isWhole: boolean
  /** Whether it meets all that differs from the base. */
  readonly isDelta: boolean
}

export class RecordKeeping {
  readonly #wanted: RecordWanted
  readonly #answer: RecordedAnswer
  readonly #header: BaseRecordHeader
  #writer: BaseRecordWriter | undefined
  #sink: GuardedSink | undefined
  #patched: { readonly sink: PatchedRecordSink; readonly base: BaseRecordReader } | undefined

  private constructor(wanted: RecordWanted, answer: RecordedAnswer, header: BaseRecordHeader) {
    this.#wanted = wanted
    this.#answer = answer
    this.#header = header
  }

  /** Before the first message. @throws what reading metadata throws */
  static async begin(wanted: RecordWanted, answer: RecordedAnswer, signal: AbortSignal): Promise<RecordKeeping> {
    const { metadata, target } = answer
    const { thinId, sizeBytes, identity, volume, handle } = target.snapshot
    const { creationTime, mappedBlocks } = target.fingerprint
    const header: BaseRecordHeader = {
      pool: {
        identity: wanted.poolIdentity,
        dataBlockBytes: metadata.superblock.dataBlockBytes,
        dataBlocks: metadata.superblock.dataBlocks,
        ...poolVolumes(target.snapshot),
        moment: await metadata.moment(signal)
      },
      device: {
        ...{ id: thinId, creationTime, transactionId: target.transactionId, mappedBlocks, sizeBytes, identity, volume },
        watchedSince: wanted.watchedSince
      },
      handles: [handle],
      madeAt: Date.now()
    }
    const keeping = new RecordKeeping(wanted, answer, header)
    try {
      keeping.#checkRecordable()
      await keeping.#beginStreaming()
    } catch {
      // The walk afterwards says why.
      await keeping.abandon()
    }
    return keeping
  }

  /** What the answer's walk has to tell; undefined where it does not meet enough. */
  get sink(): MappingSink | undefined {
    return this.#sink
  }

  /** After the last message, before the end. Never rejects. */
  async finish(signal: AbortSignal): Promise<RecordOutcome> {
    try {
      this.#checkRecordable()
      const bytes = (await this.#finishStreamed()) ?? (await this.#walkWhole(signal))
      return bytes === undefined ? { notKept: 'its tree maps not as many blocks as its details say' } : { bytes }
    } catch (error) {
      await this.abandon()
      return { notKept: asDeltamapperError(error).message }
    }
  }

  /** Leaves nothing behind. Does nothing after `finish`. */
  async abandon(): Promise<void> {
    const [writer, patched] = [this.#writer, this.#patched]
    this.#writer = this.#sink = this.#patched = undefined
    await writer?.abandon()
    await patched?.base.close()
  }

  /** @throws DM_BASE_RECORD_IMPOSSIBLE */
  #checkRecordable(): void {
    checkRecordable(this.#answer.metadata.superblock, this.#header.pool.moment)
  }

  async #beginStreaming(): Promise<void> {
    const { isWhole, isDelta } = this.#answer
    const base = !isWhole && isDelta ? await this.#openBase() : undefined
    if (!isWhole && !base) return
    const writer = await this.#begin()
    this.#writer = writer
    if (!base) {
      this.#sink = new GuardedSink(new WholeRecordSink(writer), writer, this.#wanted.maxBytes)
      return
    }
    const sink = new PatchedRecordSink(writer, base)
    this.#patched = { sink, base }
    this.#sink = new GuardedSink(sink, writer, this.#wanted.maxBytes)
  }

  /** The base's record, if it is of the base as it was seen. */
  async #openBase(): Promise<BaseRecordReader | undefined> {
    const { baseRecord } = this.#wanted
    const { base } = this.#answer
    if (baseRecord === undefined || base === undefined) return undefined
    const reader = await BaseRecordReader.open(join(this.#wanted.folder, baseRecord))
    const { pool, device } = reader.header
    const isSame =
      pool.identity === this.#wanted.poolIdentity &&
      pool.dataBlockBytes === this.#header.pool.dataBlockBytes &&
      device.id === base.snapshot.thinId &&
      device.creationTime === base.fingerprint.creationTime &&
      device.transactionId === base.transactionId &&
      device.mappedBlocks === base.fingerprint.mappedBlocks
    if (isSame) return reader
    await reader.close()
    return undefined
  }

  /** @returns undefined when nothing was streamed, or not all of it */
  async #finishStreamed(): Promise<number | undefined> {
    const [writer, sink, patched] = [this.#writer, this.#sink, this.#patched]
    if (writer === undefined || sink === undefined) return undefined
    if (sink.isTooLarge) throw tooLarge(this.#wanted.maxBytes)
    try {
      if (sink.failure !== undefined) throw sink.failure
      await patched?.sink.finish()
      await checkBytes(writer, this.#wanted)
      if (await writer.finish()) return writer.bytes
    } catch (error) {
      // Where the base's record was at fault, the tree is not.
      if (!patched) throw error
    } finally {
      await this.abandon()
    }
    return undefined
  }

  /** Reads all of the target's tree. @returns undefined when it does not count */
  async #walkWhole(signal: AbortSignal): Promise<number | undefined> {
    const { metadata, target } = this.#answer
    const writer = (this.#writer = await this.#begin())
    const sink = new GuardedSink(new WholeRecordSink(writer), writer, this.#wanted.maxBytes)
    const { batches } = await metadata.allocated({
      deviceId: target.snapshot.thinId,
      sizeBytes: target.snapshot.sizeBytes,
      fingerprint: target.fingerprint,
      ...{ sink, signal }
    })
    try {
      while (!(await batches.next()).done) {
        signal.throwIfAborted()
        if (sink.isTooLarge) throw tooLarge(this.#wanted.maxBytes)
        if (sink.failure !== undefined) throw sink.failure
      }
    } finally {
      await batches.return(undefined)
    }
    if (sink.isTooLarge) throw tooLarge(this.#wanted.maxBytes)
    if (sink.failure !== undefined) throw sink.failure
    await checkBytes(writer, this.#wanted)
    const isComplete = await writer.finish()
    this.#writer = undefined
    return isComplete ? writer.bytes : undefined
  }

  async #begin(): Promise<BaseRecordWriter> {
    return BaseRecordWriter.begin(join(this.#wanted.folder, this.#wanted.name), this.#header)
  }
}

/** Once all but the last frames are written. @throws Error where they are too many bytes; what writing them throws */
async function checkBytes(writer: BaseRecordWriter, { maxBytes }: RecordWanted): Promise<void> {
  await writer.drain(0)
  if (writer.bytes > maxBytes) throw tooLarge(maxBytes)
}

function tooLarge(maxBytes: number): Error {
  return new Error(`its record takes more than the ${maxBytes} bytes that bases.maxBytes leaves`)
}

/** Keeps the failures of a sink from the answer. */
class GuardedSink implements MappingSink {
  readonly #sink: MappingSink
  readonly #writer: Pick<BaseRecordWriter, 'bytes'>
  readonly #maxBytes: number
  failure: Error | undefined
  isTooLarge = false

  constructor(sink: MappingSink, writer: Pick<BaseRecordWriter, 'bytes'>, maxBytes: number) {
    this.#sink = sink
    this.#writer = writer
    this.#maxBytes = maxBytes
  }

  put(block: number, data: number, time: number): void {
    if (this.#isOver) return
    this.#sink.put(block, data, time)
  }

  putEntries(...entries: Parameters<MappingSink['putEntries']>): void {
    if (!this.#isOver) this.#sink.putEntries(...entries)
  }

  keep(block: number, data: number, time: number): void {
    if (this.#isOver) return
    this.#sink.keep(block, data, time)
  }

  drop(block: number): void {
    if (this.#isOver) return
    this.#sink.drop(block)
  }

  async settle(...told: Parameters<MappingSink['settle']>): Promise<void> {
    if (this.#isOver) return
    try {
      await this.#sink.settle(...told)
      this.isTooLarge = this.#writer.bytes > this.#maxBytes
    } catch (error) {
      this.failure = asDeltamapperError(error)
    }
  }

  get #isOver(): boolean {
    return this.failure !== undefined || this.isTooLarge
  }
}
