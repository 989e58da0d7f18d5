/**
 * Whose metadata a superblock is: that of all targets begins at block 0 of a device or file, and paths are easily mixed
 * up.
 */
import { BlockReader } from './block-reader.ts'
import { checksumSalt, impliedSalt } from './checksum.ts'

/** Magic numbers at byte 32 (drivers/md: dm-thin-metadata.c, dm-era-target.c). */
export const THIN_MAGIC = 27022010n
export const ERA_MAGIC = 2126579579n
/** At byte 0, which in the others is a checksum (dm-snap-persistent.c: SNAP_MAGIC). */
export const COW_MAGIC = 0x70416e53

export type MetadataKind = 'dm-thin' | 'dm-era' | 'dm-cache' | 'dm-snapshot'

/**
 * The kind of a superblock by its checksum, or else by its magic number; undefined for any other block. @param block
 * its 4096 bytes
 */
export function metadataKind(block: Buffer): MetadataKind | undefined {
  const magic = block.readBigUInt64LE(32)
  switch (impliedSalt(block.readUInt32LE(0), block.subarray(4))) {
    case checksumSalt.thinSuperblock:
      return 'dm-thin'
    case checksumSalt.eraSuperblock:
      return 'dm-era'
    case checksumSalt.cacheSuperblock:
      return 'dm-cache'
  }
  if (block.readUInt32LE(0) === COW_MAGIC) return 'dm-snapshot'
  return magic === THIN_MAGIC ? 'dm-thin' : magic === ERA_MAGIC ? 'dm-era' : undefined
}

/** The same for a file or device; undefined also if it is smaller than a superblock. @throws DM_READ_FAILED */
export async function readMetadataKind(path: string): Promise<MetadataKind | undefined> {
  const reader = await BlockReader.open(path)
  try {
    return reader.blocks === 0 ? undefined : metadataKind(await reader.readRaw(0))
  } finally {
    await reader.close()
  }
}
