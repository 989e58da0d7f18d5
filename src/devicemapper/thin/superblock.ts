/**
 * The superblock of dm-thin metadata: block 0, and the one copy of it that a held metadata snapshot is.
 *
 * Field offsets: struct thin_disk_superblock, drivers/md/dm-thin-metadata.c. Everything little endian.
 */
import { DeltamapperError } from '../../errors.ts'
import { damaged } from '../block-reader.ts'
import { checksumSalt, impliedSalt } from '../checksum.ts'
import { metadataKind, THIN_MAGIC } from '../metadata-kind.ts'
import { SECTOR_BYTES } from '../../units.ts'

/** Data blocks are 64 KiB to 1 GiB, in steps of 64 KiB; here in sectors. */
const MIN_DATA_BLOCK = 128
const MAX_DATA_BLOCK = 2097152
const NEEDS_CHECK = 1
/**
 * A mapping has 24 bits for the time; what goes beyond is added to its data block (pack_block_time in
 * dm-thin-metadata.c).
 */
const MAX_TIME = 2 ** 24 - 1

export interface ThinSuperblock {
  /** The pool found an error it could not repair; its metadata is what the last good commit left. */
  needsCheck: boolean
  /** The pool's clock: one more with every snapshot taken; 0 to 2^24 - 1. */
  time: number
  /** User space's transaction id: LVM's, or that of the pool's owner. Exact up to 2^64, hence a bigint. */
  transactionId: bigint
  /** Block of the held metadata snapshot; 0 when none is held. */
  heldRoot: number
  /** Root of the tree: device id → root of that device's mapping tree. */
  mappingRoot: number
  /** Root of the tree: device id → device details. */
  detailsRoot: number
  /** The pool's block size in sectors of 512 bytes, and in bytes. */
  dataBlockSectors: number
  dataBlockBytes: number
  /** Size of the metadata device in metadata blocks, as the pool was last told. */
  metadataBlocks: number
  /** Size of the data device in data blocks; undefined in a metadata snapshot, which does not know it. */
  dataBlocks: number | undefined
}

/**
 * Decodes a superblock.
 *
 * @param block its 4096 bytes
 * @param blockNumber where it was read: 0, or the held root
 * @throws DM_METADATA_FOREIGN when this was never thin metadata; DM_METADATA_DAMAGED; DM_METADATA_UNSUPPORTED
 */
export function parseThinSuperblock(block: Buffer, blockNumber: number, path: string): ThinSuperblock {
  const salt = impliedSalt(block.readUInt32LE(0), block.subarray(4))
  const magic = block.readBigUInt64LE(32)
  if (salt !== checksumSalt.thinSuperblock) {
    if (magic !== THIN_MAGIC && blockNumber === 0) throw foreign(path, block)
    throw damaged(path, blockNumber, 'its checksum is not that of a thin superblock')
  }
  if (magic !== THIN_MAGIC) throw damaged(path, blockNumber, `its magic number is ${magic} where ${THIN_MAGIC} is due`)
  const own = block.readBigUInt64LE(8)
  if (own !== BigInt(blockNumber)) throw damaged(path, blockNumber, `it says that it is block ${own}`)

  const incompatible = block.readUInt32LE(360)
  if (incompatible !== 0) {
    throw new DeltamapperError(
      'DM_METADATA_UNSUPPORTED',
      `${path} uses thin metadata features (incompat flags 0x${incompatible.toString(16)}) that this version does not know`,
      'update deltamapper'
    )
  }
  const dataBlockSectors = block.readUInt32LE(336)
  if (
    dataBlockSectors < MIN_DATA_BLOCK ||
    dataBlockSectors > MAX_DATA_BLOCK ||
    dataBlockSectors % MIN_DATA_BLOCK !== 0
  ) {
    throw damaged(path, blockNumber, `its data block size of ${dataBlockSectors} sectors is impossible`)
  }
  const time = block.readUInt32LE(44)
  if (time > MAX_TIME) {
    throw new DeltamapperError(
      'DM_METADATA_UNSUPPORTED',
      `the pool in ${path} has had ${time} snapshots, and mappings tell no more than ${MAX_TIME} apart: dm-thin mixes up its blocks`,
      'copy its volumes into a new pool'
    )
  }
  return {
    needsCheck: (block.readUInt32LE(4) & NEEDS_CHECK) !== 0,
    time,
    transactionId: block.readBigUInt64LE(48),
    heldRoot: Number(block.readBigUInt64LE(56)),
    mappingRoot: Number(block.readBigUInt64LE(320)),
    detailsRoot: Number(block.readBigUInt64LE(328)),
    dataBlockSectors,
    dataBlockBytes: dataBlockSectors * SECTOR_BYTES,
    metadataBlocks: Number(block.readBigUInt64LE(344)),
    // The first field of the data space map's root (struct disk_sm_root in drivers/md/persistent-data).
    dataBlocks: Number(block.readBigUInt64LE(64)) || undefined
  }
}

/**
 * Fields that are written when a pool is made, and never again: the metadata snapshot's copy must equal block 0 there.
 * Byte offsets.
 */
const constantFields = [
  ['uuid', 16, 16],
  ['version', 40, 4],
  ['data block size', 336, 4],
  ['metadata block size', 340, 4],
  ['compatible features', 352, 4],
  ['features to write with', 356, 4],
  ['incompatible features', 360, 4]
] as const

/** Fields that are zero in the copy (dm-thin-metadata.c, __reserve_metadata_snap). */
const blankFields = [
  ['held root', 56, 8],
  ['data space map root', 64, 128],
  ['metadata space map root', 192, 128]
] as const

/**
 * Compares a metadata snapshot's superblock, the copy of block 0 at the time of taking it, with block 0 as it is.
 *
 * Flags and transaction id may differ either way, so they are not compared; user space sets the latter.
 *
 * @param copy its 4096 bytes, and `live` those of block 0; both parsed
 * @param blockNumber where the copy was read
 * @throws DM_METADATA_DAMAGED
 */
export function checkHeldCopy(copy: Buffer, live: Buffer, blockNumber: number, path: string): void {
  for (const [name, offset, length] of constantFields) {
    const [there, here] = [copy, live].map((each) => each.subarray(offset, offset + length))
    if (there.equals(here)) continue
    const [copied, due] = [there, here].map((each) =>
      length === 4 ? String(each.readUInt32LE(0)) : each.toString('hex')
    )
    throw damaged(path, blockNumber, `its ${name} is ${copied}, that of block 0 ${due}`)
  }
  for (const [name, offset, length] of blankFields) {
    if (copy.subarray(offset, offset + length).some((byte) => byte !== 0)) {
      throw damaged(path, blockNumber, `it has a ${name}, which no metadata snapshot has`)
    }
  }
  const [held, now] = [copy, live].map((each) => parseThinSuperblock(each, each === copy ? blockNumber : 0, path))
  for (const [name, then, most] of [
    ['time', held.time, now.time],
    ['number of metadata blocks', held.metadataBlocks, now.metadataBlocks]
  ] as const) {
    if (then > most) throw damaged(path, blockNumber, `its ${name} is ${then}, and no more than ${most} even now`)
  }
}

function foreign(path: string, block: Buffer): DeltamapperError {
  const kind = metadataKind(block)
  const what =
    kind === undefined
      ? 'holds no dm-thin metadata: block 0 is no superblock'
      : `holds ${kind} metadata, not dm-thin metadata`
  return new DeltamapperError(
    'DM_METADATA_FOREIGN',
    `${path} ${what}`,
    kind === 'dm-era'
      ? 'ask what was written since an era: `deltamapper delta --metadata FILE --since ERA`'
      : kind === 'dm-snapshot'
        ? 'ask for what a classic snapshot has copied: `deltamapper delta --cow STORE`'
        : "name a thin pool's metadata device (LVM: VG/POOL_tmeta), or a copy of it"
  )
}
