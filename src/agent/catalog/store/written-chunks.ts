/**
 * The blocks written between two snapshots of a tracked volume, as the catalog keeps them: compressed bitmaps, one for
 * each chunk of 2^20 blocks with at least one write.
 *
 * Chunks keep memory independent of the volume's size. Making, storing, reading and uniting them takes one chunk at a
 * time: at most 132 KB compressed and 4 MiB as numbers, for a thousand blocks or 2^31. A chunk without writes costs
 * nothing.
 *
 * A bitmap has Roaring's portable format (github.com/RoaringBitmap/RoaringFormatSpec). Its values count from the
 * beginning of its chunk.
 */
import { RoaringBitmap32 } from 'roaring-wasm'
import { DeltamapperError } from '../../../errors.ts'

/** Blocks of a chunk. */
export const CHUNK_BLOCKS = 2 ** 20

export interface WrittenChunk {
  /** Which one: it begins at block `chunk * CHUNK_BLOCKS`. */
  readonly chunk: number
  /** How many blocks it has; at least 1. */
  readonly blocks: number
  /** The bitmap. */
  readonly bytes: Uint8Array
}

/** Puts ascending runs of blocks into chunks. */
export class ChunkWriter {
  #chunk = 0
  #bitmap = new RoaringBitmap32()
  #finished: WrittenChunk[] = []

  /** Adds blocks `[begin, end)`, all above those added before. */
  addRun(begin: number, end: number): void {
    for (let from = begin; from < end;) {
      const chunk = Math.floor(from / CHUNK_BLOCKS)
      if (chunk !== this.#chunk) this.#finish(chunk)
      const first = chunk * CHUNK_BLOCKS
      const to = Math.min(end, first + CHUNK_BLOCKS)
      this.#bitmap.addRange(from - first, to - first)
      from = to
    }
  }

  /** The chunks completed since the last call. */
  take(): WrittenChunk[] {
    return this.#finished.splice(0)
  }

  /** The rest, after the last run; nothing may be added any more. */
  takeLast(): WrittenChunk[] {
    this.#finish(this.#chunk)
    this.#bitmap.dispose()
    return this.take()
  }

  #finish(next: number): void {
    const blocks = this.#bitmap.size
    if (blocks > 0) this.#finished.push({ chunk: this.#chunk, blocks, bytes: compressed(this.#bitmap) })
    this.#bitmap.clear()
    this.#chunk = next
  }
}

/** The blocks of several bitmaps of one chunk. Dispose of it: the garbage collector does not own its memory. */
export class ChunkUnion implements Disposable {
  readonly chunk: number
  readonly #bitmap = new RoaringBitmap32()

  constructor(chunk: number) {
    this.chunk = chunk
  }

  /** @throws DM_CATALOG_DAMAGED for anything but a bitmap of this chunk */
  add(written: WrittenChunk): void {
    const bitmap = decompressed(written)
    try {
      this.#bitmap.orInPlace(bitmap)
    } finally {
      bitmap.dispose()
    }
  }

  /** The blocks in ascending order, counted from the beginning of the chunk. */
  blocks(): Uint32Array {
    return this.#bitmap.toUint32Array()
  }

  toChunk(): WrittenChunk {
    return { chunk: this.chunk, blocks: this.#bitmap.size, bytes: compressed(this.#bitmap) }
  }

  [Symbol.dispose](): void {
    this.#bitmap.dispose()
  }
}

function compressed(bitmap: RoaringBitmap32): Uint8Array {
  // Without it, what was added as runs stays runs, however short they are.
  bitmap.runOptimize()
  return bitmap.serialize('portable')
}

function decompressed({ chunk, blocks, bytes }: WrittenChunk): RoaringBitmap32 {
  let bitmap: RoaringBitmap32
  try {
    bitmap = RoaringBitmap32.deserialize('portable', bytes)
  } catch (cause) {
    throw damaged(chunk, 'cannot be read', cause)
  }
  if (bitmap.size === blocks && (blocks === 0 || bitmap.maximum() < CHUNK_BLOCKS)) return bitmap
  const { size } = bitmap
  bitmap.dispose()
  throw damaged(chunk, `has ${size} blocks, and should have ${blocks} of ${CHUNK_BLOCKS}`)
}

function damaged(chunk: number, what: string, cause?: unknown): DeltamapperError {
  return new DeltamapperError(
    'DM_CATALOG_DAMAGED',
    `the catalog's record of what was written in chunk ${chunk} of a tracked volume ${what}`,
    'detach the volume, attach it anew, and take a full backup',
    { cause }
  )
}
