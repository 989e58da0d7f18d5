/**
 * Units that the kernel counts in, whatever a device's own are.
 */

/** Device-mapper's tables and sysfs count in sectors (SECTOR_SIZE in include/linux/blk_types.h). Bytes. */
export const SECTOR_BYTES = 512

/**
 * Metadata of dm-thin and dm-era is read and written in blocks (THIN_METADATA_BLOCK_SIZE in
 * drivers/md/dm-thin-metadata.h, DM_ERA_METADATA_BLOCK_SIZE). Bytes.
 */
export const METADATA_BLOCK_BYTES = 4096
