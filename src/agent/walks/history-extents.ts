/**
 * What was written to between two snapshots of an era volume, as extents: the union of the bitmaps of all snapshots after the base, up to and
 * with the target, and everything that the base cannot have.
 *
 * The bitmaps come by ascending chunk, so that only one chunk's union is ever there, and what a slow client does not ask for is not read.
 */
import { type ExtentBatch, ExtentBuilder } from '../../devicemapper/extents.ts'
import { CHUNK_BLOCKS, ChunkUnion, type WrittenChunk } from '../catalog/store/written-chunks.ts'

export interface HistoryQuestion {
  /** Size of a tracked block in bytes. */
  readonly blockBytes: number
  /** Size of the target in bytes. */
  readonly sizeBytes: number
  /**
   * The least size in bytes that the volume had from the base to the target, both included: from there on everything counts as written to.
   * What was cut off and came back has other content, and no mark that says so.
   */
  readonly leastBytes: number
  /** Extents that end at or before this byte are left out; it is rounded down to a block. 0 to `sizeBytes`. */
  readonly startingOffset: number
}

/** The chunk that is the first of interest. */
export function firstChunk({ blockBytes, startingOffset }: HistoryQuestion): number {
  return Math.floor(Math.floor(startingOffset / blockBytes) / CHUNK_BLOCKS)
}

/**
 * @param chunks by ascending chunk, any number of each, from `firstChunk` on; nothing more is asked for once the rest cannot matter
 * @throws DM_CATALOG_DAMAGED
 */
export async function* historyExtents(
  { blockBytes, sizeBytes, leastBytes, startingOffset }: HistoryQuestion,
  chunks: AsyncIterable<WrittenChunk>
): AsyncGenerator<ExtentBatch> {
  const extents = new ExtentBuilder(blockBytes, sizeBytes)
  const sizeBlocks = Math.ceil(sizeBytes / blockBytes)
  // A block that the base had only a part of has changed as well: its rest is new.
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

/** One for each chunk that there is anything of. */
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

/** Adds those of the blocks, which count from `begin` on, that lie in `[first, end)`. */
function addBlocks(extents: ExtentBuilder, blocks: Uint32Array, begin: number, first: number, end: number): void {
  for (let i = 0; i < blocks.length; i++) {
    const block = begin + blocks[i]
    if (block < first) continue
    if (block >= end) return
    extents.add(block)
  }
}
