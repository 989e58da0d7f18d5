/**
 * Reference counts as dm-thin keeps them on disk: two bits per block in bitmap blocks (16320 to a block), and a tree for counts of three
 * and more. Written so that Debian's thin_check finds nothing wrong with an image.
 *
 * The two bits of entry i are bits 2i and 2i+1 of the bitmap, the first being the high one.
 */

export const ENTRIES_PER_BITMAP = 16320
export const INDEX_ENTRIES = 255

const BITMAP_HEADER_BYTES = 16

export interface IndexEntry {
  readonly bitmapBlock: number
  readonly free: number
  /** Position within the bitmap before which nothing is free. */
  readonly noneFreeBefore: number
}

/** Fills one bitmap block (its header is left alone) for the counts of blocks `[first, first + 16320)`, of `total` in all. */
export function fillBitmap(
  block: Buffer,
  bitmapBlock: number,
  counts: ReadonlyMap<number, number>,
  first: number,
  total: number
): IndexEntry {
  const entries = Math.min(ENTRIES_PER_BITMAP, total - first)
  let free = 0
  let noneFreeBefore = entries
  for (let entry = 0; entry < entries; entry++) {
    const count = Math.min(counts.get(first + entry) ?? 0, 3)
    if (count === 0) {
      if (free === 0) noneFreeBefore = entry
      free++
      continue
    }
    const high = count >> 1
    const low = count & 1
    const at = BITMAP_HEADER_BYTES + (entry >> 2)
    block.writeUInt8(block.readUInt8(at) | ((high | (low << 1)) << ((entry & 3) * 2)), at)
  }
  return { bitmapBlock, free, noneFreeBefore }
}

/** The 16 bytes that say where a bitmap is. */
export function writeIndexEntry(block: Buffer, at: number, entry: IndexEntry): void {
  block.writeBigUInt64LE(BigInt(entry.bitmapBlock), at)
  block.writeUInt32LE(entry.free, at + 8)
  block.writeUInt32LE(entry.noneFreeBefore, at + 12)
}

export interface SpaceMapRoot {
  readonly blocks: number
  readonly allocated: number
  readonly bitmapRoot: number
  readonly referenceCountRoot: number
}

/** The first 32 of a superblock's 128 bytes for a space map; the rest stays zero. */
export function writeSpaceMapRoot(block: Buffer, at: number, root: SpaceMapRoot): void {
  block.writeBigUInt64LE(BigInt(root.blocks), at)
  block.writeBigUInt64LE(BigInt(root.allocated), at + 8)
  block.writeBigUInt64LE(BigInt(root.bitmapRoot), at + 16)
  block.writeBigUInt64LE(BigInt(root.referenceCountRoot), at + 24)
}
