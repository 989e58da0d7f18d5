/**
 * Which chunks changed between two classic snapshots of one origin, S1 (older) and S2: those that either store has an
 * entry for.
 *
 *     only in store(S1)   the origin was written between the two, or somebody wrote into S1
 *     only in store(S2)   somebody wrote into S2
 *     in both             the origin was written after S2, and perhaps before as well: the old contents tell
 *                         (old-contents.ts)
 *
 * No chunk that changed is in neither: the origin's writes after S1 are in store(S1), and S2 is the origin as it was,
 * but for S2's own writes. What is beyond the base's end is changed, whatever the stores say. Chunk sizes may differ:
 * then a larger chunk counts as a whole.
 *
 * A damaged list may lack a chunk, and any of its places may be the one. So both lists are read to their end, and found
 * to be in order, before the first extent leaves. Volumes of several stretches are read twice for that.
 */
import { DeltamapperError } from '../../errors.ts'
import { addRuns } from '../bitmap-runs.ts'
import { type ExtentBatch, ExtentBuilder, type ExtentStream } from '../extents.ts'
import { ChunkMarks, type Stretch, STRETCH_CHUNKS, STRETCH_UNIT, stretchesOf, wordsFor } from './chunk-marks.ts'
import { type CowStore, ListDigest, type StoreList } from './cow-store.ts'
import { damagedStore } from './damaged-store.ts'
import { CHUNK_BYTES, clearEqual, type CompareBudget, countBoth } from './old-contents.ts'

/** Words of a bitmap that are turned into extents at a time. */
const SLICE_WORDS = 2 ** 15

/** Bytes; more is of no use. */
export const MOST_DELTA_BYTES = 32 * 2 ** 20
/** With less, the lists of a large volume would be read hundreds of times. Bytes. */
export const LEAST_DELTA_BYTES = 2 ** 19

/**
 * What a delta makes use of, in bytes: LEAST_DELTA_BYTES to MOST_DELTA_BYTES.
 *
 * @param chunks of the volume, of the smaller size; `compares`: whether old contents are
 */
export function wantedDeltaBytes(chunks: number, compares: boolean): number {
  const bitmapsBytes = (2 * Math.ceil(chunks / STRETCH_UNIT) * STRETCH_UNIT) / 8
  const wanted = compares ? 2 * Math.max(bitmapsBytes, CHUNK_BYTES * chunks) : bitmapsBytes
  return Math.min(Math.max(wanted, LEAST_DELTA_BYTES), MOST_DELTA_BYTES)
}

/** Chunks of a stretch, a multiple of STRETCH_UNIT: two bitmaps have all of the memory, or half beside comparing. */
function chunksFor(memoryBytes: number, compares: boolean): number {
  const bitmapBytes = Math.max(memoryBytes, LEAST_DELTA_BYTES) / (compares ? 4 : 2)
  return Math.min(Math.floor((8 * bitmapBytes) / STRETCH_UNIT) * STRETCH_UNIT, STRETCH_CHUNKS)
}

/** A store, and what its snapshot's owner knows of it. */
export interface SnapshotStore {
  readonly store: CowStore
  /** The same store, where old contents are to be read at a pace of their own. */
  readonly contents?: CowStore | undefined
  /** Size of the snapshot in bytes. */
  readonly sizeBytes: number
  /**
   * How many entries the kernel has counted: so many are waited for, and no more are read. All there are by default.
   */
  readonly counted?: number | undefined
  /** So many entries from the first get a digest of their own. */
  readonly prefix?: number | undefined
}

/** What was read of a store. */
export interface ReadStore extends StoreList {
  /** Digest of the entries up to `prefix`; undefined where there are fewer, or none was asked for. */
  readonly prefixDigest: string | undefined
}

export interface ChangedQuestion {
  readonly base: SnapshotStore
  /** Undefined: nobody has written into the target, and how large it is `sizeBytes` says. */
  readonly target?: SnapshotStore | undefined
  /** Size of the target in bytes, where its store is not given. */
  readonly sizeBytes?: number | undefined
  /** Extents that end at or before this byte are left out; it is rounded down to a chunk. */
  readonly startingOffset?: number | undefined
  /**
   * Chunks in both stores are told apart by their contents, as far as this goes. Only for a base that is what was
   * backed up.
   */
  readonly compare?: CompareBudget | undefined
  /** Chunks that are looked at in one go; for tests. By default, what the memory is enough for. */
  readonly stretchChunks?: number | undefined
  /**
   * What it may take for bitmaps and for comparing, in bytes: LEAST_DELTA_BYTES to MOST_DELTA_BYTES, the default. With
   * less, the lists of a large volume are read more often.
   */
  readonly memoryBytes?: number | undefined
  /** Told what was read once both lists are known to be in order, and before the first extent: it may refuse. */
  readonly onRead?: ((base: ReadStore, target: ReadStore | undefined) => void | Promise<void>) | undefined
  readonly signal?: AbortSignal | undefined
}

/** @throws DM_OFFSET_OUT_OF_RANGE, DM_ARGUMENT_INVALID; the batches throw what reading a store does */
export function changed(question: ChangedQuestion): ExtentStream {
  const { base, target, startingOffset = 0 } = question
  const capacityBytes = target?.sizeBytes ?? question.sizeBytes ?? base.sizeBytes
  for (const size of [capacityBytes, base.sizeBytes]) checkSize(size)
  if (!(startingOffset >= 0 && startingOffset <= capacityBytes)) {
    throw new DeltamapperError(
      'DM_OFFSET_OUT_OF_RANGE',
      `starting offset ${startingOffset} is outside the volume of ${capacityBytes} bytes`,
      'resume at the end of the last extent received, or at 0'
    )
  }
  return { capacityBytes, batches: new Delta(question, capacityBytes, startingOffset).batches() }
}

/** One of the two stores while it is read. */
interface Side extends SnapshotStore {
  /** Chunks that the snapshot has, the last may be a part of one; and how many of the smaller chunks each is. */
  readonly chunks: number
  readonly ratio: number
}

class Delta {
  readonly #question: ChangedQuestion
  readonly #capacityBytes: number
  readonly #unitBytes: number
  readonly #sides: readonly Side[]
  #stretches: readonly Stretch[] = []
  /** Of each store: used for one stretch after the other. */
  readonly #bitmaps: Uint32Array[] = []
  readonly #low: number
  /**
   * The chunk in which the base ends, or Infinity: from there on all is changed. In the smaller chunks, as all here.
   */
  readonly #baseEnd: number

  constructor(question: ChangedQuestion, capacityBytes: number, startingOffset: number) {
    const { base, target } = question
    const given = target ? [base, target] : [base]
    const unitBytes = Math.min(...given.map(({ store }) => store.header.chunkBytes))
    this.#question = question
    this.#capacityBytes = capacityBytes
    this.#unitBytes = unitBytes
    this.#sides = given.map((each) => {
      const { chunkBytes } = each.store.header
      return { ...each, chunks: Math.ceil(each.sizeBytes / chunkBytes), ratio: chunkBytes / unitBytes }
    })
    // At the very end nothing is left, not even of a last chunk that the end cuts in two.
    this.#low = startingOffset < capacityBytes ? Math.floor(startingOffset / unitBytes) : Infinity
    this.#baseEnd = base.sizeBytes < capacityBytes ? Math.floor(base.sizeBytes / unitBytes) : Infinity
  }

  /** Lets extents pass only as long as the kernel keeps the stores. */
  async *batches(): AsyncGenerator<ExtentBatch> {
    this.#question.signal?.throwIfAborted()
    // (All of both lists is held to be in order, also what is of a part of the base that the target does not have.)
    const largest = Math.max(...this.#sides.map(({ chunks, ratio }) => chunks * ratio))
    this.#stretches = stretchesOf(largest, this.#question.stretchChunks ?? chunksFor(this.#memoryBytes, this.#compares))
    for await (const batch of this.#extents()) {
      await this.#checkValid()
      yield batch
    }
    await this.#checkValid()
  }

  get #compares(): boolean {
    return (this.#question.compare?.bytes ?? 0) > 0
  }

  get #memoryBytes(): number {
    return this.#question.memoryBytes ?? MOST_DELTA_BYTES
  }

  async #checkValid(): Promise<void> {
    for (const { store } of this.#sides) if (store.reader.isDevice) await store.checkValid()
  }

  async *#extents(): AsyncGenerator<ExtentBatch> {
    const { onRead } = this.#question
    const extents = new ExtentBuilder(this.#unitBytes, this.#capacityBytes)
    const end = Math.min(Math.ceil(this.#capacityBytes / this.#unitBytes), this.#baseEnd)
    let lists: readonly (ReadStore | undefined)[] = []
    if (this.#stretches.length > 1) {
      for (const stretch of this.#stretches) lists = (await this.#read(stretch, lists)).lists
      await onRead?.(lists[0]!, lists[1])
    }
    for (const stretch of this.#stretches) {
      const low = Math.max(stretch.begin, this.#low)
      const high = Math.min(stretch.end, end)
      if (this.#stretches.length > 1 && low >= high) continue
      const read = await this.#read(stretch, lists)
      if (this.#stretches.length === 1) await onRead?.(read.lists[0], read.lists[1])
      await this.#clearEqual(read.marks, read.lists, low, high)
      yield* slices(extents, joined(read.marks), low, high)
    }
    extents.addRun(
      Math.max(Math.min(this.#low, Number.MAX_SAFE_INTEGER), end),
      Math.ceil(this.#capacityBytes / this.#unitBytes)
    )
    const last = extents.takeLast()
    if (last) yield last
  }

  /**
   * Marks what both lists have of a stretch.
   *
   * @param before what the lists were found to be in another stretch, and have to be still
   */
  async #read(
    stretch: Stretch,
    before: readonly (ReadStore | undefined)[]
  ): Promise<{ marks: ChunkMarks[]; lists: ReadStore[] }> {
    const marks: ChunkMarks[] = []
    const lists: ReadStore[] = []
    for (const [i, { store, chunks, ratio, counted, prefix }] of this.#sides.entries()) {
      const { signal } = this.#question
      const lookFirst = counted === undefined && store.reader.isDevice
      const known: StoreList | undefined = before[i] ?? (lookFirst ? await store.list(signal) : undefined)
      const limit = known?.entries ?? counted
      const found = new ChunkMarks(stretch, store.path, chunks, ratio, this.#emptyBitmap(i))
      const digest = new ListDigest(prefix)
      for await (const area of store.entries({ limit, signal })) {
        digest.add(area)
        found.add(area)
      }
      const list = { prefixDigest: digest.prefixDigest, ...digest.end() }
      if (known && known.digest !== list.digest) throw damagedStore(store.path, 'its list changed while it was read')
      marks.push(found)
      lists.push(list)
    }
    return { marks, lists }
  }

  #emptyBitmap(side: number): Uint32Array {
    this.#bitmaps[side]?.fill(0)
    return (this.#bitmaps[side] ??= new Uint32Array(wordsFor(this.#stretches)))
  }

  async #clearEqual(
    marks: readonly ChunkMarks[],
    lists: readonly ReadStore[],
    low: number,
    high: number
  ): Promise<void> {
    const { base, target, compare, signal } = this.#question
    if (!compare || !target || low >= high) return
    const both = { base: marks[0], target: marks[1] }
    if (base.store.header.chunkBytes !== target.store.header.chunkBytes) {
      compare.left += countBoth(both, low, high)
      return
    }
    const comparison = {
      base: base.contents ?? base.store,
      target: target.contents ?? target.store,
      baseEntries: lists[0].entries,
      targetEntries: lists[1].entries,
      sizeBytes: Math.min(base.sizeBytes, target.sizeBytes),
      memoryBytes: this.#memoryBytes / 2,
      signal
    }
    await clearEqual(comparison, both, low, high, compare)
  }
}

/** What either store has. The first's bitmap is used for it. */
function joined([first, second]: readonly ChunkMarks[]): ChunkMarks {
  if (second) {
    for (let word = 0; word < first.bitmap.length; word++) first.bitmap[word] |= second.bitmap[word]
  }
  return first
}

/** Extents of the chunks `[low, high)` that are marked, some at a time: a run may go on in the next slice. */
function* slices(
  extents: ExtentBuilder,
  { bitmap, stretch: { begin } }: ChunkMarks,
  low: number,
  high: number
): Generator<ExtentBatch> {
  for (let word = Math.max(low - begin, 0) >>> 5; begin + 32 * word < high; word += SLICE_WORDS) {
    const from = begin + 32 * word
    addRuns(extents, {
      bitmap: bitmap.subarray(word, word + SLICE_WORDS),
      begin: from,
      low: Math.max(low, from),
      high: Math.min(high, from + 32 * SLICE_WORDS)
    })
    const batch = extents.take()
    if (batch) yield batch
  }
}

/** @throws DM_ARGUMENT_INVALID */
function checkSize(bytes: number): void {
  if (Number.isSafeInteger(bytes) && bytes >= 0) return
  throw new DeltamapperError('DM_ARGUMENT_INVALID', `${bytes} is no size`, 'give a whole number of bytes below 2^53')
}
