/**
 * Writes a pool model as a dm-thin metadata image: superblock, device trees, space maps and, where one is held, the metadata snapshot,
 * each 4096-byte block with its own number and checksum.
 *
 *   node   0 csum u32 │ 4 flags u32 (1 internal, 2 leaf) │ 8 blocknr u64 │ 16 nr_entries u32 │ 20 max_entries u32 │ 24 value_size u32
 *          32 keys: max_entries × u64 │ 32 + 8 × max_entries values: max_entries × value_size
 *
 * Written from the format's description alone and sharing no line with the reader that it tests.
 */
import { crc32c } from '@node-rs/crc32'

import { PersistentTree, nodesOf } from './persistent-tree.ts'
import type { TreeNode, TreeShape } from './persistent-tree.ts'
import type { DeviceModel, Mapping, PoolModel, PoolView } from './pool-model.ts'
import { Random } from './random.ts'
import { ENTRIES_PER_BITMAP, INDEX_ENTRIES, fillBitmap, writeIndexEntry, writeSpaceMapRoot } from './space-maps.ts'
import type { IndexEntry, SpaceMapRoot } from './space-maps.ts'

export const BLOCK_BYTES = 4096

/** What each kind of block's checksum is mixed with. */
export const checksumSalts = {
  superblock: 160774,
  node: 121107,
  bitmap: 240779,
  metadataIndex: 160478,
  eraSuperblock: 146538381,
  cacheSuperblock: 9031977
} as const

export type ChecksumKind = keyof typeof checksumSalts

export type BlockKind =
  'superblock' | 'metadata snapshot' | 'top-level node' | 'details node' | 'mapping node' | 'space map' | 'unused'

/** Byte offsets in the thin superblock. */
export const superblockField = {
  flags: 4,
  blocknr: 8,
  magic: 32,
  version: 40,
  time: 44,
  transactionId: 48,
  heldRoot: 56,
  dataSpaceMapRoot: 64,
  metadataSpaceMapRoot: 192,
  mappingRoot: 320,
  detailsRoot: 328,
  dataBlockSize: 336,
  metadataBlockSize: 340,
  metadataBlocks: 344,
  compatFlags: 352,
  compatReadOnlyFlags: 356,
  incompatFlags: 360
} as const

export const THIN_MAGIC = 27022010

/** Above this, the data space map is left empty: only thin_check would look at it, and 2^40 blocks have 67 million bitmaps. */
const MOST_COUNTED_DATA_BLOCKS = 4_000_000

export interface ImageOptions {
  readonly random: Random
  /** Nodes one after the other as a walk meets them, or anywhere. */
  readonly placement?: 'sequential' | 'scattered'
  /** Blocks of the file that nothing refers to. */
  readonly unusedBlocks?: number
  readonly topLevelShape?: TreeShape
  readonly detailsShape?: TreeShape
  /** Old tools wrote 4096 where the kernel writes 8 sectors. */
  readonly metadataBlockSizeField?: 8 | 4096
}

export type ViewName = 'live' | 'metadata-snapshot'

interface WrittenView {
  readonly superblock: number
  readonly topLevelNodes: ReadonlySet<number>
  readonly detailsNodes: ReadonlySet<number>
  /** Root of each device's mapping tree. */
  readonly deviceRoots: ReadonlyMap<number, TreeNode<Mapping>>
}

export class MetadataImage {
  readonly bytes: Buffer
  readonly kinds: ReadonlyMap<number, BlockKind>
  readonly #views: ReadonlyMap<ViewName, WrittenView>
  readonly #numbers: ReadonlyMap<unknown, number>

  constructor(
    bytes: Buffer,
    kinds: ReadonlyMap<number, BlockKind>,
    views: ReadonlyMap<ViewName, WrittenView>,
    numbers: ReadonlyMap<unknown, number>
  ) {
    this.bytes = bytes
    this.kinds = kinds
    this.#views = views
    this.#numbers = numbers
  }

  /** What a reader opens unless it asks for the live root. */
  get defaultView(): ViewName {
    return this.#views.has('metadata-snapshot') ? 'metadata-snapshot' : 'live'
  }

  superblock(view: ViewName = this.defaultView): number {
    return this.#view(view).superblock
  }

  topLevelNodes(view: ViewName = this.defaultView): ReadonlySet<number> {
    return this.#view(view).topLevelNodes
  }

  detailsNodes(view: ViewName = this.defaultView): ReadonlySet<number> {
    return this.#view(view).detailsNodes
  }

  mappingRoot(deviceId: number, view: ViewName = this.defaultView): number {
    return this.#number(this.#deviceRoot(deviceId, view))
  }

  /** Of all devices, each once. */
  mappingRoots(view: ViewName = this.defaultView): ReadonlySet<number> {
    return new Set([...this.#view(view).deviceRoots.values()].map((root) => this.#number(root)))
  }

  /** Block numbers of every node of a device's mapping tree, in ascending order of keys, parents first. */
  mappingNodes(deviceId: number, view: ViewName = this.defaultView): Set<number> {
    const numbers = new Set<number>()
    for (const node of nodesOf(this.#deviceRoot(deviceId, view))) numbers.add(this.#number(node))
    return numbers
  }

  /** Every block that a reader of this view may come across, block 0 included. */
  reachable(view: ViewName = this.defaultView): Set<number> {
    const { superblock, topLevelNodes, detailsNodes, deviceRoots } = this.#view(view)
    const numbers = new Set([0, superblock, ...topLevelNodes, ...detailsNodes])
    const seen = new Set<TreeNode<Mapping>>()
    for (const root of deviceRoots.values()) for (const node of nodesOf(root, seen)) numbers.add(this.#number(node))
    return numbers
  }

  #view(name: ViewName): WrittenView {
    const view = this.#views.get(name)
    if (view === undefined) throw new RangeError(`the image has no ${name}`)
    return view
  }

  #deviceRoot(deviceId: number, view: ViewName): TreeNode<Mapping> {
    const root = this.#view(view).deviceRoots.get(deviceId)
    if (root === undefined) throw new RangeError(`the image has no device ${deviceId}`)
    return root
  }

  #number(node: TreeNode<Mapping>): number {
    const number = this.#numbers.get(node)
    if (number === undefined) throw new RangeError('a node that is not in the image')
    return number
  }
}

const kernelTopLevelShape: TreeShape = { leafEntries: 252, internalEntries: 252, split: 'middle' }
const kernelDetailsShape: TreeShape = { leafEntries: 126, internalEntries: 252, split: 'middle' }

export function writeMetadataImage(model: PoolModel, options: ImageOptions): MetadataImage {
  return new ImageWriter(model, options).write()
}

/** The trees of one superblock, before their nodes have numbers. */
interface PlannedView {
  readonly name: ViewName
  readonly view: PoolView
  readonly topLevel: PersistentTree<TreeNode<Mapping>>
  readonly details: PersistentTree<DeviceModel>
}

interface DataSpaceMapPlan {
  readonly blocks: number
  readonly counts: ReadonlyMap<number, number>
  readonly referenceCounts: PersistentTree<number>
  readonly bitmaps: number
  /** Bitmap number to bitmap number: what is written for each is known once the bitmaps have blocks. */
  readonly index: PersistentTree<number>
}

class ImageWriter {
  readonly #model: PoolModel
  readonly #options: ImageOptions
  readonly #random: Random
  readonly #numbers = new Map<unknown, number>()
  readonly #kinds = new Map<number, BlockKind>()
  /** Reference counts of metadata blocks, by what is in them: nodes, or any other key that #place was given. */
  readonly #references = new Map<unknown, number>()
  /** Mapping nodes that are in the image already: devices share them. */
  readonly #written = new Set<TreeNode<Mapping>>()
  #free: number[] = []
  #bytes = Buffer.alloc(0)

  constructor(model: PoolModel, options: ImageOptions) {
    this.#model = model
    this.#options = options
    this.#random = options.random
  }

  write(): MetadataImage {
    const planned: PlannedView[] = [this.#plan('live', this.#model)]
    if (this.#model.held !== undefined) planned.push(this.#plan('metadata-snapshot', this.#model.held))

    const mappingNodes = new Set<TreeNode<Mapping>>()
    for (const { topLevel, details, view } of planned) {
      this.#refer(topLevel.root)
      this.#refer(details.root)
      for (const device of view.devices.values()) {
        this.#refer(device.tree.root)
        for (const node of nodesOf(device.tree.root, mappingNodes))
          for (const child of node.children) this.#refer(child)
      }
      for (const tree of [topLevel, details]) {
        for (const node of nodesOf<unknown>(tree.root)) for (const child of node.children) this.#refer(child)
      }
    }
    if (planned.length > 1) this.#refer('metadata snapshot')

    const dataSpaceMap = this.#planDataSpaceMap(mappingNodes)
    const metadataSpaceMap = this.#planMetadataSpaceMap(this.#references.size + 1)
    this.#prepareBlocks(metadataSpaceMap.blocks)

    const views = new Map<ViewName, WrittenView>()
    for (const plan of planned) views.set(plan.name, this.#writeTrees(plan))
    const dataRoot = this.#writeDataSpaceMap(dataSpaceMap)
    const metadataRoot = this.#writeMetadataSpaceMap(metadataSpaceMap)
    for (const plan of planned) this.#writeSuperblock(plan, dataRoot, metadataRoot)
    return new MetadataImage(this.#bytes, this.#kinds, views, this.#numbers)
  }

  #plan(name: ViewName, view: PoolView): PlannedView {
    const topLevel = new PersistentTree<TreeNode<Mapping>>(
      this.#options.topLevelShape ?? kernelTopLevelShape,
      this.#random.fork()
    )
    const details = new PersistentTree<DeviceModel>(
      this.#options.detailsShape ?? kernelDetailsShape,
      this.#random.fork()
    )
    for (const [id, device] of this.#random.shuffle(view.devices)) {
      topLevel.set(id, device.tree.root)
      details.set(id, device)
    }
    return { name, view, topLevel, details }
  }

  #refer(what: unknown): void {
    this.#references.set(what, (this.#references.get(what) ?? 0) + 1)
  }

  #planDataSpaceMap(mappingNodes: ReadonlySet<TreeNode<Mapping>>): DataSpaceMapPlan {
    const blocks = this.#model.dataBlocks <= MOST_COUNTED_DATA_BLOCKS ? this.#model.dataBlocks : 0
    const counts = new Map<number, number>()
    if (blocks > 0) {
      for (const node of mappingNodes) {
        for (const { block } of node.values) counts.set(block, (counts.get(block) ?? 0) + 1)
      }
    }
    const referenceCounts = this.#referenceCountTree(counts)
    const bitmaps = Math.ceil(blocks / ENTRIES_PER_BITMAP)
    const index = new PersistentTree<number>(
      { leafEntries: 168, internalEntries: 252, split: 'middle' },
      this.#random.fork()
    )
    index.load(
      Array.from({ length: bitmaps }, (_, bitmap) => [bitmap, bitmap] as const),
      () => 168
    )
    this.#referTree(referenceCounts)
    this.#referTree(index)
    for (let bitmap = 0; bitmap < bitmaps; bitmap++) this.#refer(`data bitmap ${bitmap}`)
    return { blocks, counts, referenceCounts, index, bitmaps }
  }

  /** `used` counts every block but the metadata space map's own. */
  #planMetadataSpaceMap(used: number): { blocks: number; bitmaps: number } {
    // Which blocks have high counts is not known yet, but how many do is, and with it the size of their tree.
    const treeBlocks = [...nodesOf(this.#referenceCountTree(new Map([...this.#references.values()].entries())).root)]
      .length
    const wanted = used + 1 + treeBlocks + (this.#options.unusedBlocks ?? 0)
    let bitmaps = 1
    while (bitmaps * ENTRIES_PER_BITMAP < wanted + bitmaps) bitmaps++
    if (bitmaps > INDEX_ENTRIES) throw new RangeError('more metadata than dm-thin can hold')
    return { blocks: wanted + bitmaps, bitmaps }
  }

  #referenceCountTree(counts: ReadonlyMap<number, number>): PersistentTree<number> {
    const tree = new PersistentTree<number>(
      { leafEntries: 336, internalEntries: 252, split: 'middle' },
      this.#random.fork()
    )
    tree.load(
      [...counts].filter(([, count]) => count > 2).sort(([left], [right]) => left - right),
      () => 336,
      () => 252
    )
    return tree
  }

  #referTree(tree: PersistentTree<unknown>): void {
    for (const node of nodesOf(tree.root)) this.#refer(node)
  }

  #prepareBlocks(total: number): void {
    this.#bytes = Buffer.alloc(total * BLOCK_BYTES)
    const numbers = Array.from({ length: total - 1 }, (_, index) => total - 1 - index)
    this.#free = this.#options.placement === 'scattered' ? this.#random.shuffle(numbers) : numbers
    for (const number of numbers) this.#kinds.set(number, 'unused')
    this.#kinds.set(0, 'superblock')
  }

  /** Gives a thing its block number, the first time it is asked for. */
  #place(what: unknown, kind: BlockKind): number {
    const known = this.#numbers.get(what)
    if (known !== undefined) return known
    const number = this.#free.pop()
    if (number === undefined) throw new RangeError('the image is full')
    this.#numbers.set(what, number)
    this.#kinds.set(number, kind)
    return number
  }

  #block(number: number): Buffer {
    return this.#bytes.subarray(number * BLOCK_BYTES, (number + 1) * BLOCK_BYTES)
  }

  #writeTree<V>(
    root: TreeNode<V>,
    kind: BlockKind,
    valueBytes: number,
    writeValue: (block: Buffer, at: number, value: V) => void,
    written = new Set<TreeNode<V>>()
  ): Set<number> {
    const numbers = new Set<number>()
    for (const node of nodesOf(root, written)) {
      const number = this.#place(node, kind)
      numbers.add(number)
      const block = this.#block(number)
      const valueSize = node.leaf ? valueBytes : 8
      block.writeUInt32LE(node.leaf ? 2 : 1, 4)
      writeU64(block, 8, number)
      block.writeUInt32LE(node.keys.length, 16)
      block.writeUInt32LE(node.maxEntries, 20)
      block.writeUInt32LE(valueSize, 24)
      const valuesAt = 32 + 8 * node.maxEntries
      for (let entry = 0; entry < node.keys.length; entry++) {
        writeU64(block, 32 + 8 * entry, node.keys[entry])
        const at = valuesAt + valueSize * entry
        if (node.leaf) writeValue(block, at, node.values[entry])
        else writeU64(block, at, this.#place(node.children[entry], kind))
      }
      seal(block, 'node')
    }
    return numbers
  }

  #writeTrees({ view, topLevel, details }: PlannedView): WrittenView {
    const superblock = view === this.#model ? 0 : this.#place('metadata snapshot', 'metadata snapshot')
    const topLevelNodes = this.#writeTree(topLevel.root, 'top-level node', 8, (block, at, root) => {
      writeU64(block, at, this.#place(root, 'mapping node'))
    })
    const detailsNodes = this.#writeTree(details.root, 'details node', 24, (block, at, device) => {
      writeU64(block, at, device.mappedBlocks)
      writeU64(block, at + 8, device.transactionId)
      block.writeUInt32LE(device.creationTime, at + 16)
      block.writeUInt32LE(device.snapshottedTime, at + 20)
    })
    const deviceRoots = new Map<number, TreeNode<Mapping>>()
    for (const [id, { tree }] of view.devices) {
      deviceRoots.set(id, tree.root)
      this.#writeTree(tree.root, 'mapping node', 8, writeMapping, this.#written)
    }
    return { superblock, topLevelNodes, detailsNodes, deviceRoots }
  }

  #writeDataSpaceMap(plan: DataSpaceMapPlan): SpaceMapRoot {
    const entries: IndexEntry[] = []
    for (let bitmap = 0; bitmap < plan.bitmaps; bitmap++) {
      const number = this.#place(`data bitmap ${bitmap}`, 'space map')
      entries.push(this.#writeBitmap(number, plan.counts, bitmap, plan.blocks))
    }
    this.#writeTree(plan.index.root, 'space map', 16, (block, at, position) => {
      writeIndexEntry(block, at, entries[position])
    })
    this.#writeTree(plan.referenceCounts.root, 'space map', 4, (block, at, count) => block.writeUInt32LE(count, at))
    return {
      blocks: plan.blocks,
      allocated: plan.counts.size,
      bitmapRoot: this.#place(plan.index.root, 'space map'),
      referenceCountRoot: this.#place(plan.referenceCounts.root, 'space map')
    }
  }

  #writeMetadataSpaceMap(plan: { blocks: number; bitmaps: number }): SpaceMapRoot {
    const counts = new Map<number, number>([[0, 1]])
    for (const [what, count] of this.#references) counts.set(this.#placed(what), count)
    const referenceCounts = this.#referenceCountTree(counts)
    const indexBlock = this.#place('metadata index', 'space map')
    const bitmapBlocks = Array.from({ length: plan.bitmaps }, (_, bitmap) =>
      this.#place(`metadata bitmap ${bitmap}`, 'space map')
    )
    this.#writeTree(referenceCounts.root, 'space map', 4, (block, at, count) => block.writeUInt32LE(count, at))
    for (const node of nodesOf(referenceCounts.root)) counts.set(this.#placed(node), 1)
    for (const number of [indexBlock, ...bitmapBlocks]) counts.set(number, 1)

    const index = this.#block(indexBlock)
    writeU64(index, 8, indexBlock)
    for (const [bitmap, number] of bitmapBlocks.entries()) {
      writeIndexEntry(index, 16 + 16 * bitmap, this.#writeBitmap(number, counts, bitmap, plan.blocks))
    }
    seal(index, 'metadataIndex')
    return {
      blocks: plan.blocks,
      allocated: counts.size,
      bitmapRoot: indexBlock,
      referenceCountRoot: this.#placed(referenceCounts.root)
    }
  }

  #writeBitmap(number: number, counts: ReadonlyMap<number, number>, bitmap: number, total: number): IndexEntry {
    const block = this.#block(number)
    writeU64(block, 8, number)
    const entry = fillBitmap(block, number, counts, bitmap * ENTRIES_PER_BITMAP, total)
    seal(block, 'bitmap')
    return entry
  }

  #writeSuperblock({ name, view, topLevel, details }: PlannedView, data: SpaceMapRoot, metadata: SpaceMapRoot): void {
    const number = name === 'live' ? 0 : this.#placed('metadata snapshot')
    const block = this.#block(number)
    writeU64(block, superblockField.blocknr, number)
    writeU64(block, superblockField.magic, THIN_MAGIC)
    block.writeUInt32LE(2, superblockField.version)
    block.writeUInt32LE(view.time, superblockField.time)
    writeU64(block, superblockField.transactionId, view.transactionId)
    if (name === 'live') {
      if (this.#model.held !== undefined) writeU64(block, superblockField.heldRoot, this.#placed('metadata snapshot'))
      writeSpaceMapRoot(block, superblockField.dataSpaceMapRoot, data)
      writeSpaceMapRoot(block, superblockField.metadataSpaceMapRoot, metadata)
    }
    writeU64(block, superblockField.mappingRoot, this.#placed(topLevel.root))
    writeU64(block, superblockField.detailsRoot, this.#placed(details.root))
    block.writeUInt32LE(this.#model.dataBlockSizeSectors, superblockField.dataBlockSize)
    block.writeUInt32LE(this.#options.metadataBlockSizeField ?? 8, superblockField.metadataBlockSize)
    writeU64(block, superblockField.metadataBlocks, this.#bytes.length / BLOCK_BYTES)
    seal(block, 'superblock')
  }

  #placed(what: unknown): number {
    const number = this.#numbers.get(what)
    if (number === undefined) throw new RangeError('something that should be in the image has no block')
    return number
  }
}

/** Block in the upper 40 bits, time in the lower 24. */
function writeMapping(block: Buffer, at: number, mapping: Mapping): void {
  block.writeUInt32LE(((mapping.block % 256) * 0x1000000 + mapping.time) >>> 0, at)
  block.writeUInt32LE(Math.floor(mapping.block / 256), at + 4)
}

/** An exact integer below 2^53 as u64. */
export function writeU64(block: Buffer, at: number, value: number): void {
  block.writeUInt32LE(value % 0x100000000, at)
  block.writeUInt32LE(Math.floor(value / 0x100000000), at + 4)
}

/** The checksum that a block of this kind should carry: CRC-32C of all but the first four bytes, not inverted, mixed with the salt. */
export function checksumOf(block: Buffer, kind: ChecksumKind): number {
  return (crc32c(block.subarray(4)) ^ 0xffffffff ^ checksumSalts[kind]) >>> 0
}

export function seal(block: Buffer, kind: ChecksumKind): void {
  block.writeUInt32LE(checksumOf(block, kind), 0)
}

const foreignMagics = { eraSuperblock: 2126579579, cacheSuperblock: 395724 } as const

/** Block 0 of an era or a cache device that was never used: right magic number, version 1, right checksum. */
export function blankSuperblock(kind: keyof typeof foreignMagics): Buffer {
  const block = Buffer.alloc(BLOCK_BYTES)
  block.writeUInt32LE(foreignMagics[kind], 32)
  block.writeUInt32LE(1, 40)
  if (kind === 'eraSuperblock') {
    block.writeUInt32LE(128, 172)
    block.writeUInt32LE(8, 176)
    block.writeUInt32LE(1024, 180)
    block.writeUInt32LE(1, 184)
  }
  seal(block, kind)
  return block
}
