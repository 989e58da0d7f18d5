/**
 * The superblock of dm-era metadata: block 0, and the copy of it that a metadata snapshot is.
 *
 * Field offsets: struct superblock_disk, drivers/md/dm-era-target.c. Packed and little endian, so that 64-bit fields
 * stand at odd places.
 */
import { DeltamapperError } from '../../errors.ts'
import { damaged } from '../block-reader.ts'
import { checksumSalt, impliedSalt } from '../checksum.ts'
import { ERA_MAGIC, metadataKind } from '../metadata-kind.ts'
import { parseWriteset, type Writeset } from './writeset.ts'
import { SECTOR_BYTES } from '../../units.ts'

const VERSION = 1
/** Blocks are a multiple of 4 KiB (dm-era-target.c: MIN_BLOCK_SIZE); in sectors. */
const MIN_BLOCK = 8
/** A device has fewer blocks than this (valid_nr_blocks). */
const MAX_BLOCKS = 2 ** 31

export interface EraSuperblock {
  /** The size of a tracked block, in sectors of 512 bytes, and in bytes. */
  blockSectors: number
  blockBytes: number
  /**
   * Size of the device in blocks; the last may be a partial one. 0 before the device was resumed for the first time.
   */
  blocks: number
  /** The era that has begun last. 0 before the device was resumed for the first time. */
  currentEra: number
  /**
   * The writes of the current era so far; undefined while the device is suspended or inactive, because they are
   * archived then.
   */
  currentWriteset: Writeset | undefined
  /** Root of the tree: era → writeset, of the eras that are over and not yet digested. */
  writesetTreeRoot: number
  /** Root of the array that has, for each block, the last digested era in which it was written to; 0 is never. */
  eraArrayRoot: number
  /** Block of the metadata snapshot; 0 when there is none. */
  metadataSnapshot: number
}

/**
 * Decodes a superblock.
 *
 * @param block its 4096 bytes
 * @param blockNumber where it was read: 0, or the metadata snapshot's block
 * @throws DM_METADATA_FOREIGN when this was never era metadata; DM_METADATA_DAMAGED; DM_METADATA_UNSUPPORTED
 */
export function parseEraSuperblock(block: Buffer, blockNumber: number, path: string): EraSuperblock {
  const magic = block.readBigUInt64LE(32)
  if (impliedSalt(block.readUInt32LE(0), block.subarray(4)) !== checksumSalt.eraSuperblock) {
    if (magic !== ERA_MAGIC && blockNumber === 0) throw foreign(path, block)
    throw damaged(path, blockNumber, 'its checksum is not that of an era superblock')
  }
  if (magic !== ERA_MAGIC) throw damaged(path, blockNumber, `its magic number is ${magic} where ${ERA_MAGIC} is due`)
  const own = block.readBigUInt64LE(8)
  if (own !== BigInt(blockNumber)) throw damaged(path, blockNumber, `it says that it is block ${own}`)
  const version = block.readUInt32LE(40)
  if (version !== VERSION) {
    throw new DeltamapperError(
      'DM_METADATA_UNSUPPORTED',
      `${path} holds era metadata of version ${version}; this version of deltamapper knows ${VERSION}`,
      'update deltamapper'
    )
  }
  const blockSectors = block.readUInt32LE(172)
  if (blockSectors < MIN_BLOCK || blockSectors % MIN_BLOCK !== 0) {
    throw damaged(path, blockNumber, `its block size of ${blockSectors} sectors is impossible`)
  }
  const blocks = block.readUInt32LE(180)
  if (blocks >= MAX_BLOCKS) throw damaged(path, blockNumber, `a device of ${blocks} blocks is impossible`)
  const currentEra = block.readUInt32LE(184)
  const current = parseWriteset(block, 188)
  if (current.root !== 0 && current.bits === 0) {
    throw damaged(path, blockNumber, 'the writeset of the current era is of no blocks at all')
  }
  return {
    blockSectors,
    blockBytes: blockSectors * SECTOR_BYTES,
    blocks,
    currentEra,
    // INVALID_WRITESET_ROOT: the superblock's own block number says that there is none.
    currentWriteset: current.root === 0 ? undefined : { era: currentEra, ...current },
    writesetTreeRoot: Number(block.readBigUInt64LE(200)),
    eraArrayRoot: Number(block.readBigUInt64LE(208)),
    metadataSnapshot: Number(block.readBigUInt64LE(216))
  }
}

function foreign(path: string, block: Buffer): DeltamapperError {
  const kind = metadataKind(block)
  return new DeltamapperError(
    'DM_METADATA_FOREIGN',
    `${path} ${kind === undefined ? 'holds no dm-era metadata: block 0 is no superblock' : `holds ${kind} metadata, not dm-era metadata`}`,
    kind === 'dm-thin'
      ? "a thin pool's volumes have no eras: compare two of its devices, `deltamapper delta BASE TARGET --metadata FILE`"
      : kind === 'dm-snapshot'
        ? 'ask for what a classic snapshot has copied: `deltamapper delta --cow STORE`'
        : "name an era device's metadata device, or a copy of it"
  )
}
