/**
 * How many blocks a tracked volume may have, and how much metadata they take: asked when it is attached and when it
 * grows.
 */

/**
 * Bytes of metadata for each tracked block: an era and some bits, twice, because a metadata snapshot may be held. And
 * the least size of a metadata device.
 */
const METADATA_BYTES_PER_BLOCK = 10
const LEAST_METADATA_BYTES = 2 ** 20
/** The kernel takes fewer blocks than this (valid_nr_blocks). */
export const MAX_BLOCKS = 2 ** 31

/** The most bytes of metadata that so many blocks take. */
export function metadataBytes(blocks: number): number {
  return LEAST_METADATA_BYTES + METADATA_BYTES_PER_BLOCK * blocks
}
