/**
 * Metadata blocks as bytes, and back: the simulated kernel keeps nodes as objects and writes them as the real one would. (An era
 * device's superblock is in era-superblock.ts.)
 *
 *   node   0 csum u32 │ 4 flags u32 (1 internal, 2 leaf) │ 8 blocknr u64 │ 16 nr_entries u32 │ 20 max_entries u32 │ 24 value_size u32
 *          32 keys: max_entries × u64 │ values: max_entries × value_size       (struct btree_node, dm-btree-internal.h)
 *   bitmap 0 csum u32 │ 8 blocknr u64 │ 16 two bits an entry                     (struct disk_bitmap_header, dm-space-map-common.h)
 *   index  0 csum u32 │ 8 blocknr u64 │ 16 255 × index entry                     (struct disk_metadata_index)
 *   array  0 csum u32 │ 4 max_entries u32 │ 8 nr_entries u32 │ 12 value_size u32 │ 16 blocknr u64 │ 24 values      (struct array_block)
 *
 * Shares no line with the reader that it is for, only the offsets and salts that test/support/ has of its own.
 */
import { crc32c } from '@node-rs/crc32'
import { eraSalts } from '../../support/era-image.ts'
import { BLOCK_BYTES, checksumSalts, seal, superblockField, THIN_MAGIC } from '../../support/metadata-image.ts'
import { ENTRIES_PER_BITMAP, type SpaceMapRoot, writeSpaceMapRoot } from '../../support/space-maps.ts'
import type { EraSuperblockFields } from './era-superblock.ts'

export { BLOCK_BYTES, ENTRIES_PER_BITMAP }

const ARRAY_HEADER_BYTES = 24
const ARRAY_SALT = eraSalts.array

/** What a device's details say (struct disk_device_details). */
export interface Details {
  mappedBlocks: number
  transactionId: number
  creationTime: number
  snapshottedTime: number
}

/** Where a bitmap of the data space map lies (struct disk_index_entry). */
export interface IndexEntry {
  bitmapBlock: number
  free: number
  noneFreeBefore: number
}

/** The bitset of an era's writes (struct writeset_disk). */
export interface Writeset {
  /** How many blocks the device had. */
  bits: number
  /** Of its array of words; 0 where there is none. */
  root: number
}

/** By value size: reference counts 4, block numbers and mappings 8, writesets 12, index entries 16, details 24. */
export type NodeValue = number | IndexEntry | Details | Writeset

/** A B-tree node. Mappings are `block * 2^24 + time`, exact for the small pools of a simulation. */
export interface BTreeNode {
  kind: 'node'
  leaf: boolean
  /** Of the values in this node: 8 in every internal one. */
  valueBytes: 4 | 8 | 12 | 16 | 24
  keys: number[]
  values: NodeValue[]
}

/** A block of a space map, whose content is told from the counts when it is written. */
export interface BitmapBlock {
  kind: 'bitmap'
  of: 'data' | 'metadata'
  index: number
}

export interface IndexBlock {
  kind: 'index'
}

/** Elements of an array, packed: of 4 bytes, or words of 8. */
export interface ArrayBlock {
  kind: 'array'
  valueBytes: 4 | 8
  /** So many elements are there. */
  count: number
  /** Of 32 bits, the lower one of each word first; room for all elements. */
  words: Uint32Array
}

/** The copy of the superblock that a metadata snapshot is. */
export interface HeldCopy {
  kind: 'held'
  fields: SuperblockFields
}

/** The same of an era device. */
export interface HeldEraCopy {
  kind: 'held era'
  fields: EraSuperblockFields
}

export type Content = BTreeNode | ArrayBlock | BitmapBlock | IndexBlock | HeldCopy | HeldEraCopy

export interface SuperblockFields {
  needsCheck: boolean
  time: number
  transactionId: number
  heldRoot: number
  dataSpaceMap: SpaceMapRoot
  metadataSpaceMap: SpaceMapRoot
  mappingRoot: number
  detailsRoot: number
  blockSectors: number
  metadataBlocks: number
}

/** @returns how many entries a node has room for (calc_max_entries, dm-btree.c) */
export function roomFor(valueBytes: number): number {
  return Math.floor((BLOCK_BYTES - 32) / (8 + valueBytes) / 3) * 3
}

export function encodeNode(block: number, { leaf, valueBytes, keys, values }: BTreeNode): Buffer {
  const words = new Uint32Array(BLOCK_BYTES / 4)
  const room = roomFor(valueBytes)
  words[1] = leaf ? 2 : 1
  words[2] = block
  words[4] = keys.length
  words[5] = room
  words[6] = valueBytes
  for (let i = 0; i < keys.length; i++) words[8 + 2 * i] = keys[i]
  let at = 8 + 2 * room
  for (const value of values) at = writeValue(words, at, valueBytes, value)
  return sealed(words, checksumSalts.node)
}

function writeValue(words: Uint32Array, at: number, valueBytes: number, value: NodeValue): number {
  if (typeof value === 'number') {
    words[at] = value % 2 ** 32
    if (valueBytes === 8) words[at + 1] = Math.floor(value / 2 ** 32)
  } else if ('bitmapBlock' in value) {
    words.set([value.bitmapBlock, 0, value.free, value.noneFreeBefore], at)
  } else if ('bits' in value) {
    words.set([value.bits, value.root, 0], at)
  } else {
    words.set([value.mappedBlocks, 0, value.transactionId, 0, value.creationTime, value.snapshottedTime], at)
  }
  return at + valueBytes / 4
}

/** @throws where the block is not what it should be: the kernel would fail its pool */
export function decodeNode(bytes: Buffer, block: number): BTreeNode {
  const words = checked(bytes, block, checksumSalts.node, 2)
  const [count, room, valueBytes] = [words[4], words[5], words[6] as BTreeNode['valueBytes']]
  const node: BTreeNode = { kind: 'node', leaf: words[1] === 2, valueBytes, keys: [], values: [] }
  for (let i = 0; i < count; i++) {
    node.keys.push(words[8 + 2 * i])
    node.values.push(readValue(words, 8 + 2 * room + (i * valueBytes) / 4, valueBytes))
  }
  return node
}

function readValue(words: Uint32Array, at: number, valueBytes: number): NodeValue {
  if (valueBytes === 4) return words[at]
  if (valueBytes === 8) return words[at] + words[at + 1] * 2 ** 32
  if (valueBytes === 12) return { bits: words[at], root: words[at + 1] }
  if (valueBytes === 16) return { bitmapBlock: words[at], free: words[at + 2], noneFreeBefore: words[at + 3] }
  return {
    mappedBlocks: words[at],
    transactionId: words[at + 2],
    creationTime: words[at + 4],
    snapshottedTime: words[at + 5]
  }
}

/** @returns how many elements an array block has room for (calc_max_entries, dm-array.c) */
export function elementsOf(valueBytes: ArrayBlock['valueBytes']): number {
  return Math.floor((BLOCK_BYTES - ARRAY_HEADER_BYTES) / valueBytes)
}

export function encodeArrayBlock(block: number, { valueBytes, count, words: elements }: ArrayBlock): Buffer {
  const words = new Uint32Array(BLOCK_BYTES / 4)
  words.set([0, elementsOf(valueBytes), count, valueBytes, block])
  words.set(elements, ARRAY_HEADER_BYTES / 4)
  return sealed(words, ARRAY_SALT)
}

/** @throws where the block is not what it should be */
export function decodeArrayBlock(bytes: Buffer, block: number): ArrayBlock {
  const words = checked(bytes, block, ARRAY_SALT, 4)
  const [, , count, valueBytes] = words as unknown as [number, number, number, ArrayBlock['valueBytes']]
  return { kind: 'array', valueBytes, count, words: words.slice(ARRAY_HEADER_BYTES / 4) }
}

/** A bitmap for counts from `first` on, with its entry in the index. */
export function encodeBitmap(block: number, counts: ArrayLike<number>, first: number): [Buffer, IndexEntry] {
  const words = new Uint32Array(BLOCK_BYTES / 4)
  words[2] = block
  const entries = Math.min(ENTRIES_PER_BITMAP, counts.length - first)
  let free = 0
  let noneFreeBefore = entries
  for (let i = 0; i < entries; i++) {
    const count = Math.min(counts[first + i], 3)
    if (count === 0) {
      if (free++ === 0) noneFreeBefore = i
      continue
    }
    // Of an entry's two bits, the first is the high one.
    words[4 + (i >>> 4)] |= ((count >> 1) | ((count & 1) << 1)) << ((i & 15) * 2)
  }
  return [sealed(words, checksumSalts.bitmap), { bitmapBlock: block, free, noneFreeBefore }]
}

/** Counts from a bitmap; 3 stands for "look in the tree". */
export function decodeBitmap(bytes: Buffer, block: number, counts: Uint32Array, first: number): void {
  const words = checked(bytes, block, checksumSalts.bitmap, 2)
  const entries = Math.min(ENTRIES_PER_BITMAP, counts.length - first)
  for (let i = 0; i < entries; i++) {
    const bits = (words[4 + (i >>> 4)] >>> ((i & 15) * 2)) & 3
    counts[first + i] = (bits >> 1) | ((bits & 1) << 1)
  }
}

export function encodeIndex(block: number, entries: readonly IndexEntry[]): Buffer {
  const words = new Uint32Array(BLOCK_BYTES / 4)
  words[2] = block
  entries.forEach(({ bitmapBlock, free, noneFreeBefore }, i) => {
    words.set([bitmapBlock, 0, free, noneFreeBefore], 4 + 4 * i)
  })
  return sealed(words, checksumSalts.metadataIndex)
}

export function decodeIndex(bytes: Buffer, block: number, bitmaps: number): IndexEntry[] {
  const words = checked(bytes, block, checksumSalts.metadataIndex, 2)
  return Array.from({ length: bitmaps }, (_, i) => {
    const at = 4 + 4 * i
    return { bitmapBlock: words[at], free: words[at + 2], noneFreeBefore: words[at + 3] }
  })
}

export function encodeSuperblock(block: number, fields: SuperblockFields): Buffer {
  const bytes = Buffer.alloc(BLOCK_BYTES)
  const u64 = (at: number, value: number) => bytes.writeBigUInt64LE(BigInt(value), at)
  bytes.writeUInt32LE(fields.needsCheck ? 1 : 0, superblockField.flags)
  u64(superblockField.blocknr, block)
  u64(superblockField.magic, THIN_MAGIC)
  bytes.writeUInt32LE(2, superblockField.version)
  bytes.writeUInt32LE(fields.time, superblockField.time)
  u64(superblockField.transactionId, fields.transactionId)
  u64(superblockField.heldRoot, fields.heldRoot)
  writeSpaceMapRoot(bytes, superblockField.dataSpaceMapRoot, fields.dataSpaceMap)
  writeSpaceMapRoot(bytes, superblockField.metadataSpaceMapRoot, fields.metadataSpaceMap)
  u64(superblockField.mappingRoot, fields.mappingRoot)
  u64(superblockField.detailsRoot, fields.detailsRoot)
  bytes.writeUInt32LE(fields.blockSectors, superblockField.dataBlockSize)
  bytes.writeUInt32LE(8, superblockField.metadataBlockSize)
  u64(superblockField.metadataBlocks, fields.metadataBlocks)
  seal(bytes, 'superblock')
  return bytes
}

export function decodeSuperblock(bytes: Buffer, block: number): SuperblockFields {
  checked(bytes, block, checksumSalts.superblock, 2)
  const u64 = (at: number) => Number(bytes.readBigUInt64LE(at))
  const spaceMap = (at: number): SpaceMapRoot => ({
    blocks: u64(at),
    allocated: u64(at + 8),
    bitmapRoot: u64(at + 16),
    referenceCountRoot: u64(at + 24)
  })
  return {
    needsCheck: bytes.readUInt32LE(superblockField.flags) === 1,
    time: bytes.readUInt32LE(superblockField.time),
    transactionId: u64(superblockField.transactionId),
    heldRoot: u64(superblockField.heldRoot),
    dataSpaceMap: spaceMap(superblockField.dataSpaceMapRoot),
    metadataSpaceMap: spaceMap(superblockField.metadataSpaceMapRoot),
    mappingRoot: u64(superblockField.mappingRoot),
    detailsRoot: u64(superblockField.detailsRoot),
    blockSectors: bytes.readUInt32LE(superblockField.dataBlockSize),
    metadataBlocks: u64(superblockField.metadataBlocks)
  }
}

function sealed(words: Uint32Array, salt: number): Buffer {
  const bytes = Buffer.from(words.buffer)
  words[0] = crc32c(bytes.subarray(4)) ^ 0xffffffff ^ salt
  return bytes
}

export function checked(bytes: Buffer, block: number, salt: number, ownNumber: number): Uint32Array {
  const words = new Uint32Array(bytes.buffer, bytes.byteOffset, BLOCK_BYTES / 4)
  const isIntact = (crc32c(bytes.subarray(4)) ^ 0xffffffff ^ words[0]) >>> 0 === salt
  if (!isIntact || words[ownNumber] !== block) throw new Error(`metadata block ${block} is damaged`)
  return words
}

export function cloned<T>(value: T): T {
  return typeof value === 'object' ? { ...value } : value
}
