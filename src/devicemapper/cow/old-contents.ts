/**
 * Chunks that both stores have: written to after the target, and perhaps before as well. Their old contents, which lie
 * in the two stores, tell.
 *
 * They are compared in batches, so that memory does not grow with them: the places of a batch's chunks are looked up in
 * both lists, and the contents are read in the order in which the base has them. That is the target's order, too: a
 * write to the origin enters both.
 *
 * Equal content says that the origin was the same at both moments **only while the base is what was backed up**. Who
 * wrote the target's content into the base would hide a change; the caller knows whether anyone could.
 */
import { type BlockWindow, WINDOW_BLOCKS } from '../block-reader.ts'
import { entriesPerArea, placeOf } from './areas.ts'
import type { ChunkMarks } from './chunk-marks.ts'
import type { CowStore } from './cow-store.ts'
import { damagedStore } from './damaged-store.ts'
import { METADATA_BLOCK_BYTES } from '../../units.ts'

/** What a chunk of a batch takes: itself, twice while chunks are gathered, two places, and its turn. Bytes. */
export const CHUNK_BYTES = 40

export interface Comparison {
  readonly base: CowStore
  readonly target: CowStore
  /** Entries of each that are looked at. */
  readonly baseEntries: number
  readonly targetEntries: number
  /** Both snapshots end at this byte, or the base at an earlier chunk's end: what a chunk holds beyond is nobody's. */
  readonly sizeBytes: number
  /** What a batch of chunks may take. Bytes. */
  readonly memoryBytes: number
  readonly signal?: AbortSignal | undefined
}

/** How much may be compared, and what came of it. Both stores' bytes count. */
export interface CompareBudget {
  /** Bytes that may still be read; it goes down. */
  bytes: number
  /**
   * Chunks found equal, found different, and left alone: because there was no budget for them, or nothing to compare
   * them by. Of the smaller size, where the two stores have chunks of different sizes.
   */
  equal: number
  different: number
  left: number
}

/**
 * Takes out of the base's marks the chunks whose old contents are the same in both.
 *
 * @param marks of both stores, of the same stretch and chunk size; where both have a mark and the contents agree, both
 *   are cleared
 * @param low first chunk of interest; `high`: the first that is of none any more
 * @throws DM_METADATA_DAMAGED, DM_READ_FAILED
 */
export async function clearEqual(
  comparison: Comparison,
  marks: { readonly base: ChunkMarks; readonly target: ChunkMarks },
  low: number,
  high: number,
  budget: CompareBudget
): Promise<void> {
  const { chunkBytes } = comparison.base.header
  const batchChunks = Math.max(Math.floor(comparison.memoryBytes / CHUNK_BYTES), WINDOW_BLOCKS)
  for (let from = low; from < high;) {
    const most = Math.min(batchChunks, Math.floor(budget.bytes / (2 * chunkBytes)))
    if (most === 0) {
      budget.left += countBoth(marks, from, high, batchChunks)
      return
    }
    const { chunks, next } = doubtful(marks, from, high, most)
    from = next
    if (chunks.length === 0) continue
    budget.bytes -= 2 * chunkBytes * chunks.length
    budget.different += chunks.length
    for await (const chunk of equalChunks(comparison, chunks)) {
      marks.base.clear(chunk)
      marks.target.clear(chunk)
      budget.equal++
      budget.different--
    }
  }
}

/** The first chunks from `from` on that both have. `next`: where the search is to go on. */
function doubtful(
  { base, target }: { base: ChunkMarks; target: ChunkMarks },
  from: number,
  high: number,
  most: number
): { chunks: Float64Array; next: number } {
  const found: number[] = []
  const { begin } = base.stretch
  for (let word = (from - begin) >>> 5; begin + 32 * word < high; word++) {
    for (let both = base.bitmap[word] & target.bitmap[word]; both !== 0; both &= both - 1) {
      const chunk = begin + 32 * word + 31 - Math.clz32(both & -both)
      if (chunk < from || chunk >= high) continue
      if (found.length === most) return { chunks: Float64Array.from(found), next: chunk }
      found.push(chunk)
    }
  }
  return { chunks: Float64Array.from(found), next: high }
}

/** How many chunks of `[from, high)` both have, looked for some at a time. */
export function countBoth(
  marks: { base: ChunkMarks; target: ChunkMarks },
  from: number,
  high: number,
  batchChunks = WINDOW_BLOCKS
): number {
  let count = 0
  for (let chunk = from; chunk < high;) {
    const { chunks, next } = doubtful(marks, chunk, high, batchChunks)
    count += chunks.length
    chunk = next
  }
  return count
}

/** Yields those of the chunks (ascending) whose old contents agree. */
async function* equalChunks(comparison: Comparison, chunks: Float64Array): AsyncGenerator<number> {
  const { base, target, baseEntries, targetEntries, sizeBytes, signal } = comparison
  const { chunkBytes } = base.header
  const basePlaces = await placesOf(base, baseEntries, chunks, signal)
  const targetPlaces = await placesOf(target, targetEntries, chunks, signal)
  const order = Uint32Array.from(chunks, (_, i) => i).sort((a, b) => basePlaces[a] - basePlaces[b])
  const atOnce = WINDOW_BLOCKS / (chunkBytes / METADATA_BLOCK_BYTES)
  for (let from = 0; from < order.length; from += atOnce) {
    signal?.throwIfAborted()
    const some = order.subarray(from, from + atOnce)
    const [baseWindow, targetWindow] = await bothWindows(
      [base, loadChunks(base, some, basePlaces)],
      [target, loadChunks(target, some, targetPlaces)]
    )
    try {
      for (let i = 0; i < some.length; i++) {
        const chunk = chunks[some[i]]
        const bytes = Math.min(chunkBytes, sizeBytes - chunk * chunkBytes)
        if (contentOf(baseWindow, i, chunkBytes, bytes).equals(contentOf(targetWindow, i, chunkBytes, bytes)))
          yield chunk
      }
    } finally {
      base.reader.release(baseWindow)
      target.reader.release(targetWindow)
    }
  }
}

/** Where a store has the old contents of chunks (ascending), all of which it has entries for. */
async function placesOf(
  store: CowStore,
  limit: number,
  chunks: Float64Array,
  signal: AbortSignal | undefined
): Promise<Float64Array> {
  const places = new Float64Array(chunks.length)
  const perArea = entriesPerArea(store.header)
  const [lowest, highest] = [chunks[0], chunks[chunks.length - 1]]
  for await (const { first, count, words, from } of store.entries({ limit, signal })) {
    for (let i = 0, at = from; i < count; i++, at += 4) {
      const chunk = words[at] + words[at + 1] * 2 ** 32
      if (chunk < lowest || chunk > highest) continue
      const index = indexOf(chunks, chunk)
      if (index >= 0) places[index] = placeOf(first + i, perArea)
    }
  }
  // Place 0 is the header: two headers would be found equal.
  const missing = places.indexOf(0)
  if (missing >= 0) throw damagedStore(store.path, `its entry of chunk ${chunks[missing]} has gone`)
  return places
}

/** Index of a value in an ascending array; -1 where it is not. */
function indexOf(values: Float64Array, value: number): number {
  let low = 0
  let high = values.length - 1
  while (low < high) {
    const middle = (low + high) >>> 1
    if (values[middle] < value) low = middle + 1
    else high = middle
  }
  return values[low] === value ? low : -1
}

async function loadChunks(store: CowStore, some: Uint32Array, places: Float64Array): Promise<BlockWindow> {
  const chunkBlocks = store.header.chunkBytes / METADATA_BLOCK_BYTES
  const blocks = new Float64Array(some.length * chunkBlocks)
  for (let i = 0; i < blocks.length; i++) {
    blocks[i] = places[some[Math.floor(i / chunkBlocks)]] * chunkBlocks + (i % chunkBlocks)
  }
  return store.reader.loadUnverified(blocks, blocks.length)
}

type Loading = readonly [store: CowStore, window: Promise<BlockWindow>]

/** Both, or neither: what has come is handed back where the other fails. */
async function bothWindows(...loading: [Loading, Loading]): Promise<[BlockWindow, BlockWindow]> {
  const [base, target] = await Promise.allSettled(loading.map(([, window]) => window))
  if (base.status === 'fulfilled' && target.status === 'fulfilled') return [base.value, target.value]
  for (const [i, each] of [base, target].entries()) {
    if (each.status === 'fulfilled') loading[i][0].reader.release(each.value)
  }
  throw (base.status === 'rejected' ? base : (target as PromiseRejectedResult)).reason
}

/** The blocks of a chunk lie side by side in a window. */
function contentOf(window: BlockWindow, i: number, chunkBytes: number, bytes: number): Buffer {
  const start = window.slots[i * (chunkBytes / METADATA_BLOCK_BYTES)] * METADATA_BLOCK_BYTES
  return window.bytes.subarray(start, start + bytes)
}
