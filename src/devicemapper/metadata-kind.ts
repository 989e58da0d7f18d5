/**
 * Which target's metadata a superblock is: all of them begin at block 0 of a device or file, and a path is easily mistaken.
 */
import { BlockReader } from './block-reader.ts'
import { checksumSalt, impliedSalt } from './checksum.ts'

/** Magic numbers at byte 32 (drivers/md: dm-thin-metadata.c, dm-era-target.c). */
export const THIN_MAGIC = 27022010n
export const ERA_MAGIC = 2126579579n
/** At byte 0, which in the others is a checksum (dm-snap-persistent.c: SNAP_MAGIC). */
export const COW_MAGIC = 0x70416e53

export type MetadataKind = 'dm-thin' | 'dm-era' | 'dm-cache' | 'dm-snapshot'

/** What a superblock's checksum, or failing that its magic number, says of it; undefined for what is none. @param block its 4096 bytes */
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

/** The same of a file or device; undefined also for what is smaller than a superblock. @throws DM_READ_FAILED */
export async function readMetadataKind(path: string): Promise<MetadataKind | undefined> {
  const reader = await BlockReader.open(path)
  try {
    return reader.blocks === 0 ? undefined : metadataKind(await reader.readRaw(0))
  } finally {
    await reader.close()
  }
}
