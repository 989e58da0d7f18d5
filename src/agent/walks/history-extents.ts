/**
 * The writes between two snapshots of a tracked volume, as extents: the union of the bitmaps of all snapshots after the
 * base, up to and including the target, and everything beyond the end of the base.
 *
 * Bitmaps arrive by ascending chunk. So only one chunk's union is in memory, and nothing is read before the client asks
 * for it.
 */
import { type ExtentBatch, ExtentBuilder } from '../../devicemapper/extents.ts'
import { CHUNK_BLOCKS, ChunkUnion, type WrittenChunk } from '../catalog/store/written-chunks.ts'

export interface HistoryQuestion {
  /** Size of a tracked block in bytes. */
  readonly blockBytes: number
  /** Size of the target in bytes. */
  readonly sizeBytes: number
  /**
   * The least size in bytes that the volume had from the base to the target, both included. Everything beyond it counts
   * as written: what was cut off and added again has other content, and no mark shows it.
   */
  readonly leastBytes: number
  /** Leave out extents that end at or before this byte. Rounded down to a block. 0 to `sizeBytes`. */
  readonly startingOffset: number
}

/** The first chunk that can matter. */
export function firstChunk({ blockBytes, startingOffset }: HistoryQuestion): number {
  return Math.floor(Math.floor(startingOffset / blockBytes) / CHUNK_BLOCKS)
}

/**
 * @param chunks by ascending chunk, any number of each, from `firstChunk` on; no more are requested once they cannot
 *   matter
 * @throws DM_CATALOG_DAMAGED
 */
export async function* historyExtents(
  { blockBytes, sizeBytes, leastBytes, startingOffset }: HistoryQuestion,
  chunks: AsyncIterable<WrittenChunk>
): AsyncGenerator<ExtentBatch> {
  const extents = new ExtentBuilder(blockBytes, sizeBytes)
  const sizeBlocks = Math.ceil(sizeBytes / blockBytes)
  // A block of which the base had only a part has changed as well: its rest is new.
  const end = leastBytes < sizeBytes ? Math.floor(leastBytes / blockBytes) : sizeBlocks
  // At the very end nothing is left, not even of a last block that the end cuts in two.
  const first = startingOffset < sizeBytes ? Math.floor(startingOffset / blockBytes) : sizeBlocks
  if (first < end) {
    for await (using union of unions(chunks)) {
      const begin = union.chunk * CHUNK_BLOCKS
      if (begin >= end) break
      addBlocks(extents, union.blocks(), begin, first, end)
      const batch = extents.take()
      if (batch) yield batch
    }
  }
  extents.addRun(Math.max(first, end), sizeBlocks)
  const last = extents.takeLast()
  if (last) yield last
}

/** One for each chunk with at least one written block. */
async function* unions(chunks: AsyncIterable<WrittenChunk>): AsyncGenerator<ChunkUnion> {
  let union: ChunkUnion | undefined
  for await (const each of chunks) {
    if (union && union.chunk !== each.chunk) {
      yield union
      union = undefined
    }
    union ??= new ChunkUnion(each.chunk)
    union.add(each)
  }
  if (union) yield union
}

/** Adds those blocks, numbered from `begin` on, that lie in `[first, end)`. */
function addBlocks(extents: ExtentBuilder, blocks: Uint32Array, begin: number, first: number, end: number): void {
  for (let i = 0; i < blocks.length; i++) {
    const block = begin + blocks[i]
    if (block < first) continue
    if (block >= end) return
    extents.add(block)
  }
}
