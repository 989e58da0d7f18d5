/**
 * The blocks written in one era: a bitset, until the kernel has digested it into the era array (struct writeset_disk,
 * drivers/md/dm-era-target.c).
 */

/** Bytes of one record in the writeset tree. */
export const WRITESET_SIZE = 12

/** Where a writeset's bits are. */
export interface WritesetRecord {
  /** One for each block that the device had in that era: more or fewer than now if its size has changed. */
  bits: number
  /** Root block of the bitset's tree. */
  root: number
}

export interface Writeset extends WritesetRecord {
  era: number
}

export function parseWriteset(bytes: Buffer, offset: number): WritesetRecord {
  return { bits: bytes.readUInt32LE(offset), root: Number(bytes.readBigUInt64LE(offset + 4)) }
}
