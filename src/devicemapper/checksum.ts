/**
 * The checksum that opens every block of dm-thin and dm-era metadata.
 *
 * The kernel stores `crc32c(~0, bytes 4..4095) ^ salt` without the usual final inversion, with one salt for each kind
 * of block (drivers/md/persistent-data/dm-block-manager.c, dm_bm_checksum). So `checksum ^ stored` of an intact block
 * *is* its salt, which also tells what kind of block one has been handed.
 */
import { crc32c } from '@node-rs/crc32'

/** Salts of the kinds of blocks, as the kernel names them. */
export const checksumSalt = {
  thinSuperblock: 160774,
  eraSuperblock: 146538381,
  cacheSuperblock: 9031977,
  btreeNode: 121107,
  arrayBlock: 595846735
} as const

/**
 * The salt that would make a block's stored checksum right, unsigned.
 *
 * @param stored the block's first word
 * @param covered the rest of the block: bytes 4 to 4095
 */
export function impliedSalt(stored: number, covered: Buffer): number {
  return (crc32c(covered) ^ 0xffffffff ^ stored) >>> 0
}
