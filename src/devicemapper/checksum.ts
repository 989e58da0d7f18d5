/**
 * The checksum that opens every block of dm-thin and dm-era metadata.
 *
 * The kernel stores `crc32c(~0, bytes 4..4095) ^ salt` without the usual final inversion, with one salt for each kind of block
 * (drivers/md/persistent-data/dm-block-manager.c, dm_bm_checksum). So `checksum ^ stored` of an intact block *is* its salt, which
 * also tells what kind of block one has been handed.
 */
import { crc32c } from '@node-rs/crc32'

/** Metadata block size in bytes; fixed by the kernel (THIN_METADATA_BLOCK_SIZE, DM_ERA_METADATA_BLOCK_SIZE). */
export const METADATA_BLOCK_SIZE = 4096

/** Salts of the kinds of blocks, as the kernel names them. */
export const checksumSalt = {
  thinSuperblock: 160774,
  eraSuperblock: 146538381,
  cacheSuperblock: 9031977,
  btreeNode: 121107
} as const

/** The salt that would make the block's stored checksum right, unsigned. `block` holds exactly METADATA_BLOCK_SIZE bytes. */
export function impliedSalt(block: Buffer): number {
  return (crc32c(block.subarray(4)) ^ 0xffffffff ^ block.readInt32LE(0)) >>> 0
}
