/**
 * The superblock of an era device as bytes, and back (struct superblock_disk, dm-era-target.c): in block 0, and in the copy of it that a
 * metadata snapshot is. Packed, so that its 64-bit fields stand at odd places.
 */
import { crc32c } from '@node-rs/crc32'
import { ERA_MAGIC, eraField, eraSalts } from '../../support/era-image.ts'
import { type SpaceMapRoot, writeSpaceMapRoot } from '../../support/space-maps.ts'
import { BLOCK_BYTES, checked, type Writeset } from './blocks.ts'

export interface EraSuperblockFields {
  spaceMap: SpaceMapRoot
  blockSectors: number
  /** Of the device; 0 before it was resumed for the first time. */
  blocks: number
  currentEra: number
  /** Its root is 0 while the device is suspended or inactive. */
  current: Writeset
  writesetTreeRoot: number
  eraArrayRoot: number
  /** Block of the metadata snapshot; 0 where there is none. */
  metadataSnapshot: number
}

export function encodeEraSuperblock(block: number, fields: EraSuperblockFields): Buffer {
  const bytes = Buffer.alloc(BLOCK_BYTES)
  const u64 = (at: number, value: number) => bytes.writeBigUInt64LE(BigInt(value), at)
  u64(eraField.blocknr, block)
  u64(eraField.magic, ERA_MAGIC)
  bytes.writeUInt32LE(1, eraField.version)
  writeSpaceMapRoot(bytes, eraField.spaceMapRoot, fields.spaceMap)
  bytes.writeUInt32LE(fields.blockSectors, eraField.blockSectors)
  bytes.writeUInt32LE(BLOCK_BYTES / 512, eraField.metadataBlockSize)
  bytes.writeUInt32LE(fields.blocks, eraField.blocks)
  bytes.writeUInt32LE(fields.currentEra, eraField.currentEra)
  bytes.writeUInt32LE(fields.current.bits, eraField.currentBits)
  u64(eraField.currentRoot, fields.current.root)
  u64(eraField.writesetTreeRoot, fields.writesetTreeRoot)
  u64(eraField.eraArrayRoot, fields.eraArrayRoot)
  u64(eraField.metadataSnapshot, fields.metadataSnapshot)
  bytes.writeUInt32LE((crc32c(bytes.subarray(4)) ^ 0xffffffff ^ eraSalts.superblock) >>> 0, 0)
  return bytes
}

/** @throws where the block is not what it should be: the kernel would refuse the table */
export function decodeEraSuperblock(bytes: Buffer, block: number): EraSuperblockFields {
  checked(bytes, block, eraSalts.superblock, 2)
  const u32 = (at: number) => bytes.readUInt32LE(at)
  const u64 = (at: number) => Number(bytes.readBigUInt64LE(at))
  const at = eraField.spaceMapRoot
  return {
    spaceMap: {
      blocks: u64(at),
      allocated: u64(at + 8),
      bitmapRoot: u64(at + 16),
      referenceCountRoot: u64(at + 24)
    },
    blockSectors: u32(eraField.blockSectors),
    blocks: u32(eraField.blocks),
    currentEra: u32(eraField.currentEra),
    current: { bits: u32(eraField.currentBits), root: u64(eraField.currentRoot) },
    writesetTreeRoot: u64(eraField.writesetTreeRoot),
    eraArrayRoot: u64(eraField.eraArrayRoot),
    metadataSnapshot: u64(eraField.metadataSnapshot)
  }
}
