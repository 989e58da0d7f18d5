/**
 * Turns the output of era_invalidate and era_dump into extents, by the same rules as our own reading of metadata
 * (era-metadata.ts, delta.ts).
 *
 * era_dump prints the writesets before the array, and a block counts for either. So the requested writesets are first
 * united in a bitmap with one bit for each block of the device, at most 256 MiB. The array then passes by beside the
 * bitmap.
 */
import { DeltamapperError } from '../../errors.ts'
import type { ExtentStream } from '../extents.ts'
import { baseEndBlock, extentsOfBatches, type XmlSizes } from '../xml-extents.ts'
import type { EraDumpXml, EraRunBatch } from './dump-xml.ts'
import type { BlockRunBatch } from './invalidate-xml.ts'

/** Runs in a batch. */
const BATCH_RUNS = 4096

/**
 * The written blocks as extents: the runs, and everything beyond a smaller base. Runs beyond the target's end are left
 * out, because a device can have shrunk.
 *
 * @param blockBytes size of a block in bytes
 * @throws DM_ARGUMENT_INVALID, DM_OFFSET_OUT_OF_RANGE; while it is read, what the batches throw
 */
export function writtenExtentsOf(
  batches: AsyncIterable<BlockRunBatch>,
  blockBytes: number,
  sizes: XmlSizes
): ExtentStream {
  const addAll = ({ count, begins, lengths }: BlockRunBatch, add: (begin: number, end: number) => void) => {
    for (let i = 0; i < count; i++) add(begins[i], begins[i] + lengths[i])
  }
  return extentsOfBatches(batches, blockBytes, sizes, addAll, baseEndBlock(sizes, blockBytes))
}

/** A dump whose writesets have been read. */
export interface WrittenDump {
  /** How many writesets it has. None in the output of --logical, or if all are digested. */
  readonly writesets: number
  /** The last era whose writes are known to be in it: the current one, or the one before. */
  readonly lastEra: number
  /**
   * The blocks written since; reads the array. Throws XmlInvalid, and DM_METADATA_DAMAGED if the array has an
   * impossible era.
   */
  readonly batches: AsyncIterable<BlockRunBatch>
}

/**
 * Reads a dump up to the array, for what was written in an era and later ones.
 *
 * @param sinceEra eras count from 1, so 0 asks for every written block
 * @param name the dump's name in messages
 * @throws DM_ERA_NOT_REACHED; DM_METADATA_DAMAGED when a writeset is missing; XmlInvalid, and what the stream throws
 */
export async function writtenSince(
  { header: { blocks, currentEra }, batches }: EraDumpXml,
  sinceEra: number,
  name: string
): Promise<WrittenDump> {
  if (sinceEra > currentEra) {
    throw new DeltamapperError(
      'DM_ERA_NOT_REACHED',
      `era ${sinceEra} has not begun in ${name}, where era ${currentEra} is the current one`,
      'take a full backup if the era was read off this device: its metadata is not what it was then'
    )
  }
  const iterator = batches[Symbol.asyncIterator]()
  const eras: number[] = []
  const marked = new BlockBitmap(blocks)
  let next = await iterator.next()
  for (; !next.done && next.value.era !== undefined; next = await iterator.next()) {
    const { era, count, begins, lengths } = next.value
    if (era !== eras.at(-1)) eras.push(era)
    if (era < sinceEra) continue
    for (let i = 0; i < count; i++) marked.add(begins[i], begins[i] + lengths[i])
  }
  checkComplete(eras, currentEra, name)
  // 0.9.0 does not print the writes of the current era, unless the device was suspended by then.
  const lastEra = eras.at(-1) === currentEra ? currentEra : currentEra - 1
  if (Math.max(sinceEra, 1) > lastEra) {
    throw new DeltamapperError(
      'DM_ERA_NOT_REACHED',
      `${name} has no writeset of era ${currentEra}, the current one: whether it has the writes of that era cannot be told`,
      'have it printed by era_dump 1.x without --logical, or name the metadata itself with --metadata'
    )
  }
  const array = arrayFrom(next, iterator)
  const newestEra = eras.at(0) ?? currentEra
  return { writesets: eras.length, lastEra, batches: writtenRuns(array, { sinceEra, newestEra, marked, name }) }
}

/** The batches that are left, when the iterator has just come to the first of them. */
async function* arrayFrom(
  first: IteratorResult<EraRunBatch>,
  iterator: AsyncIterator<EraRunBatch>
): AsyncGenerator<EraRunBatch> {
  try {
    for (let step = first; !step.done; step = await iterator.next()) yield step.value
  } finally {
    await iterator.return?.()
  }
}

interface Wanted {
  readonly sinceEra: number
  /** The newest era that the array can contain. */
  readonly newestEra: number
  /** The blocks of the writesets. */
  readonly marked: BlockBitmap
  readonly name: string
}

/** The array lists every block in order, so every marked block comes by. */
async function* writtenRuns(
  array: AsyncIterable<EraRunBatch>,
  { sinceEra, newestEra, marked, name }: Wanted
): AsyncGenerator<BlockRunBatch> {
  const since = Math.max(sinceEra, 1)
  const runs = { count: 0, begins: new Float64Array(BATCH_RUNS), lengths: new Float64Array(BATCH_RUNS) }
  for await (const { count, begins, lengths, eras } of array) {
    for (let i = 0; i < count; i++) {
      const end = begins[i] + lengths[i]
      if (eras[i] > newestEra) {
        const what = `${name} has block ${begins[i]} in era ${eras[i]}, and ${newestEra} is the newest that its array can have`
        throw damagedDump(what)
      }
      const whole = eras[i] >= since
      for (let at = begins[i]; at < end;) {
        const begin = whole ? at : marked.nextMarked(at, end)
        if (begin === end) break
        at = whole ? end : marked.nextUnmarked(begin, end)
        runs.begins[runs.count] = begin
        runs.lengths[runs.count++] = at - begin
        if (runs.count < BATCH_RUNS) continue
        yield runs
        runs.count = 0
      }
    }
  }
  if (runs.count > 0) yield runs
}

/**
 * The kernel digests writesets in order: those that are left follow each other, up to the current era or the one
 * before. A gap comes from a crash on kernels before 5.12, or from lines that were cut out of a dump.
 *
 * @throws DM_METADATA_DAMAGED
 */
function checkComplete(eras: readonly number[], currentEra: number, name: string): void {
  if (eras.length === 0) return
  const after = eras.findIndex((era, i) => (eras.at(i + 1) ?? Math.max(era + 1, currentEra)) !== era + 1)
  if (after === -1) return
  throw damagedDump(
    `${name} lacks the writeset of era ${eras[after] + 1}, so that what was written to then is not known`
  )
}

function damagedDump(what: string): DeltamapperError {
  return new DeltamapperError('DM_METADATA_DAMAGED', what, 'take a full backup, and run era_check on the metadata')
}

/** A bit for each block of a device; no memory as long as none is marked. */
class BlockBitmap {
  readonly #blocks: number
  #words = new Uint32Array(0)

  constructor(blocks: number) {
    this.#blocks = blocks
  }

  /** Marks the blocks `[begin, end)` that the device still has: in the writeset's era it may have been larger. */
  add(begin: number, end: number): void {
    if (this.#words.length === 0) this.#words = new Uint32Array(Math.ceil(this.#blocks / 32))
    const words = this.#words
    const to = Math.min(end, this.#blocks)
    for (let at = begin; at < to;) {
      const stop = Math.min(to, at - (at % 32) + 32)
      // (JavaScript shifts by the count modulo 32.)
      words[at >>> 5] |= (-1 << at) & (-1 >>> -stop)
      at = stop
    }
  }

  /** The first marked block of `[begin, end)`; `end` if there is none. */
  nextMarked(begin: number, end: number): number {
    return this.#next(begin, end, 0)
  }

  /** The first block of `[begin, end)` that is not marked; `end` if there is none. */
  nextUnmarked(begin: number, end: number): number {
    return this.#next(begin, end, -1)
  }

  /** @param inverted -1 to look for zeros */
  #next(begin: number, end: number, inverted: 0 | -1): number {
    const words = this.#words
    if (begin >= end || words.length === 0) return end
    let index = begin >>> 5
    let found = (words[index] ^ inverted) & (-1 << begin)
    while (found === 0) {
      if (32 * ++index >= end) return end
      found = words[index] ^ inverted
    }
    return Math.min(end, 32 * index + 31 - Math.clz32(found & -found))
  }
}
