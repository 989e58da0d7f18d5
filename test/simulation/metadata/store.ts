/**
 * Metadata blocks as the kernel's transaction manager and metadata space map keep them (drivers/md/persistent-data/): a block that is to
 * be changed is shadowed first, what is freed is not used again before it was committed, and the space maps are trees in the same blocks.
 *
 *   shadow(b)   shared, or of an earlier transaction ─▶ another block, b is given back; of this one ─▶ b itself     (dm_tm_shadow_block)
 *   allocate    the first block from the cursor on that is free now *and* was free at the last commit; the cursor starts at 0 when the
 *               metadata is loaded, and goes round                                             (sm_metadata_new_block_)
 *   count       the bitmap that an entry is in is shadowed before the entry changes, and counts of three and more go into a tree at once
 *               (sm_ll_inc, sm_ll_dec). Where that itself counts metadata blocks, it waits until the first is done (struct bop_ring_buffer).
 *
 * So blocks get the very numbers that the kernel gives them (test/kernel/simulated-pools.test.ts).
 */
import type { SpaceMapRoot } from '../../support/space-maps.ts'
import {
  type ArrayBlock,
  cloned,
  type Content,
  decodeArrayBlock,
  decodeBitmap,
  decodeIndex,
  decodeNode,
  encodeArrayBlock,
  encodeBitmap,
  encodeIndex,
  encodeNode,
  encodeSuperblock,
  ENTRIES_PER_BITMAP,
  type BTreeNode,
  type HeldCopy,
  type HeldEraCopy,
  type IndexEntry,
  type NodeValue
} from './blocks.ts'
import { encodeEraSuperblock } from './era-superblock.ts'
import type { MetadataDisk } from './disk.ts'
import { emptyTree, entriesOf, insert, noReferences, remove, type TreeType } from './btree.ts'

/** There is no free block: the kernel aborts the transaction and makes its pool read-only. */
export class NoSpace extends Error {}

const referenceCounts: TreeType = { valueBytes: 4, ...noReferences }
const indexEntries: TreeType = { valueBytes: 16, ...noReferences }

/** Reference counts, and where they are on disk. */
export class SpaceMap {
  readonly of: 'data' | 'metadata'
  readonly counts: Uint32Array
  /** As they were at the last commit. */
  readonly committed: Uint32Array
  allocated = 0
  /** `allocated` at the last commit. */
  committedAllocated = 0
  /** How many were taken since the last commit, given back or not. */
  taken = 0
  /** Entries whose count has changed since the last commit. */
  readonly changed = new Set<number>()
  readonly bitmaps: number[] = []
  referenceCountRoot = 0
  /** Of data: the index's tree. Of metadata: the one index block. */
  indexRoot = 0
  /** Told of each change: what is on disk of it is to be changed. */
  onChange: (entry: number, before: number, after: number) => void = () => undefined
  #cursor = 0

  constructor(of: 'data' | 'metadata', entries: number) {
    this.of = of
    this.counts = new Uint32Array(entries)
    this.committed = new Uint32Array(entries)
  }

  add(entry: number, more: number): void {
    const before = this.counts[entry]
    const after = before + more
    if (after < 0) throw new Error(`the ${this.of} space map: entry ${entry} would be used ${after} times`)
    this.counts[entry] = after
    if (before === 0) this.allocated++
    if (after === 0) this.allocated--
    this.changed.add(entry)
    this.onChange(entry, before, after)
  }

  /** Neither now nor at the last commit in use, from the cursor on and then from the start. @throws NoSpace */
  take(): number {
    const found = this.#free(this.#cursor, this.counts.length) ?? this.#free(0, this.#cursor)
    if (found === undefined) throw new NoSpace(`no ${this.of} block is free`)
    this.#cursor = found + 1
    this.add(found, 1)
    this.taken++
    return found
  }

  get free(): number {
    return this.counts.length - this.allocated
  }

  #free(from: number, to: number): number | undefined {
    for (let entry = from; entry < to; entry++) {
      if (this.counts[entry] === 0 && this.committed[entry] === 0) return entry
    }
    return undefined
  }

  commit(): void {
    for (const entry of this.changed) this.committed[entry] = this.counts[entry]
    this.changed.clear()
    this.taken = 0
    this.committedAllocated = this.allocated
  }
}

export class MetadataStore {
  readonly disk: MetadataDisk
  readonly metadata: SpaceMap
  readonly data: SpaceMap
  readonly #blocks = new Map<number, Content>()
  /** Of this transaction: may be changed where they are, as long as they are used once. */
  readonly #fresh = new Set<number>()
  /** What is to be counted on disk of metadata blocks, once the one under way is done. */
  #waiting: (() => void)[] | undefined

  private constructor(disk: MetadataDisk, dataBlocks: number) {
    this.disk = disk
    this.metadata = new SpaceMap('metadata', disk.blocks)
    this.data = new SpaceMap('data', dataBlocks)
  }

  /**
   * Empty space maps, before the first commit. What describes a map's own blocks is counted when all of it is there.
   *
   * @param dataBlocks undefined where metadata has no space map of data
   */
  static format(disk: MetadataDisk, dataBlocks?: number): MetadataStore {
    const store = new MetadataStore(disk, dataBlocks ?? 0)
    const { metadata, data } = store
    metadata.add(0, 1)
    metadata.indexRoot = store.allocate({ kind: 'index' })
    metadata.referenceCountRoot = emptyTree(store, referenceCounts)
    store.#addBitmaps(metadata)
    store.#listen()
    metadata.commit()
    if (dataBlocks === undefined) return store
    data.indexRoot = emptyTree(store, indexEntries)
    data.referenceCountRoot = emptyTree(store, referenceCounts)
    return store
  }

  /** A pool is formatted before the size of its data is known: what counts its blocks comes later. */
  extendData(): void {
    this.#addBitmaps(this.data)
  }

  #addBitmaps(map: SpaceMap): void {
    for (let first = 0; first < map.counts.length; first += ENTRIES_PER_BITMAP) {
      map.bitmaps.push(this.allocate({ kind: 'bitmap', of: map.of, index: map.bitmaps.length }))
      map.changed.add(first)
    }
  }

  #listen(): void {
    for (const map of [this.metadata, this.data]) {
      map.onChange = (entry, before, after) => {
        this.#count(map, entry, before, after)
      }
    }
  }

  /** The space maps from disk; what is counted by them is read by `readTree` and the like. @throws where they are damaged */
  static open(disk: MetadataDisk, metadataRoot: SpaceMapRoot, dataRoot?: SpaceMapRoot): MetadataStore {
    const store = new MetadataStore(disk, dataRoot?.blocks ?? 0)
    const { data, metadata } = store
    if (dataRoot) {
      store.#openMap(data, dataRoot)
      store.readTree(data.indexRoot)
      store.#readCounts(
        data,
        [...entriesOf(store, data.indexRoot)].map(([, entry]) => entry as IndexEntry)
      )
    }
    store.#openMap(metadata, metadataRoot)
    const bitmaps = Math.ceil(disk.blocks / ENTRIES_PER_BITMAP)
    const index = decodeIndex(disk.read(metadata.indexRoot), metadata.indexRoot, bitmaps)
    store.#blocks.set(metadata.indexRoot, { kind: 'index' })
    store.#readCounts(metadata, index)
    store.#listen()
    return store
  }

  #openMap(map: SpaceMap, { referenceCountRoot, bitmapRoot }: SpaceMapRoot): void {
    map.referenceCountRoot = referenceCountRoot
    map.indexRoot = bitmapRoot
    this.readTree(referenceCountRoot)
  }

  /** A tree from disk, as far as it is not there yet. @param onValue told of each value in it @throws where it is damaged */
  readTree(root: number, onValue: (value: NodeValue) => void = () => undefined): void {
    if (this.#blocks.has(root)) return
    const node = decodeNode(this.disk.read(root), root)
    this.#blocks.set(root, node)
    for (const value of node.values) {
      if (node.leaf) onValue(value)
      else this.readTree(value as number, onValue)
    }
  }

  readArrayBlock(block: number): void {
    if (!this.#blocks.has(block)) this.#blocks.set(block, decodeArrayBlock(this.disk.read(block), block))
  }

  /** A metadata snapshot's copy of the superblock, as it was read from disk. */
  keepHeld(block: number, copy: HeldCopy | HeldEraCopy): void {
    this.#blocks.set(block, copy)
  }

  node(block: number): BTreeNode {
    const content = this.#blocks.get(block)
    if (content?.kind !== 'node') throw new Error(`block ${block} is no node`)
    return content
  }

  array(block: number): ArrayBlock {
    const content = this.#blocks.get(block)
    if (content?.kind !== 'array') throw new Error(`block ${block} is no block of an array`)
    return content
  }

  allocate(content: Content): number {
    const block = this.metadata.take()
    this.#blocks.set(block, content)
    this.#fresh.add(block)
    return block
  }

  /** A node to be changed in place: the block itself where it is of this transaction and used once. */
  shadow(block: number, type: TreeType): number {
    const { counts } = this.metadata
    const isShared = counts[block] > 1
    if (this.#fresh.has(block) && !isShared) return block
    const { leaf, valueBytes, keys, values } = this.node(block)
    const copy = this.allocate({ kind: 'node', leaf, valueBytes, keys: [...keys], values: values.map(cloned) })
    this.metadata.add(block, -1)
    if (!isShared) this.#forget(block)
    else this.countChildren({ leaf, values }, type)
    return copy
  }

  /** The same of an array's block, whose elements count nothing. */
  shadowArray(block: number): number {
    const isShared = this.metadata.counts[block] > 1
    if (this.#fresh.has(block) && !isShared) return block
    const { valueBytes, count, words } = this.array(block)
    const copy = this.allocate({ kind: 'array', valueBytes, count, words: words.slice() })
    this.metadata.add(block, -1)
    if (!isShared) this.#forget(block)
    return copy
  }

  /** What a node that was copied leads to has one user more. */
  countChildren({ leaf, values }: Pick<BTreeNode, 'leaf' | 'values'>, type: TreeType): void {
    if (leaf) for (const value of values) type.increment(this, value)
    else for (const child of values) this.metadata.add(child as number, 1)
  }

  /** The same for a block that is not in a tree, and never shared. */
  #move(block: number): number {
    const content = this.#blocks.get(block)
    if (content === undefined || this.#fresh.has(block)) return block
    const moved = this.allocate(content)
    this.metadata.add(block, -1)
    this.#forget(block)
    return moved
  }

  /** One user less; with the last one it is given back. @returns whether that was the last */
  release(block: number): boolean {
    this.metadata.add(block, -1)
    if (this.metadata.counts[block] > 0) return false
    this.#forget(block)
    return true
  }

  held<T extends HeldCopy | HeldEraCopy>(block: number, kind: T['kind']): T['fields'] {
    const content = this.#blocks.get(block)
    if (content?.kind !== kind) throw new Error(`block ${block} is no metadata snapshot`)
    return content.fields
  }

  /** Blocks that are to be written before the superblock of this transaction may be. */
  get unwritten(): readonly number[] {
    return [...this.#fresh]
  }

  /** What a block is on disk, as of now. */
  encode(block: number): Buffer | undefined {
    const content = this.#blocks.get(block)
    switch (content?.kind) {
      case 'node':
        return encodeNode(block, content)
      case 'bitmap':
        return encodeBitmap(block, this[content.of].counts, content.index * ENTRIES_PER_BITMAP)[0]
      case 'index':
        return encodeIndex(block, this.#index(this.metadata))
      case 'array':
        return encodeArrayBlock(block, content)
      case 'held':
        return encodeSuperblock(block, content.fields)
      case 'held era':
        return encodeEraSuperblock(block, content.fields)
      case undefined:
        return undefined
    }
  }

  /** Brings the space maps' roots up to date; afterwards nothing is to be changed before `committed`. @throws NoSpace */
  flushSpaceMaps(): void {
    const { data, metadata } = this
    const bitmaps = new Set([...data.changed].map((entry) => Math.floor(entry / ENTRIES_PER_BITMAP)))
    for (const i of bitmaps) data.indexRoot = insert(this, data.indexRoot, i, this.#indexEntry(data, i), indexEntries)
    // (Neither map's own roots change with a transaction that counted nothing: bitmap_index_changed.)
    if (metadata.changed.size > 0) metadata.indexRoot = this.#move(metadata.indexRoot)
  }

  /** The superblock is written: what was freed may be used from now on. */
  committed(): void {
    this.metadata.commit()
    this.data.commit()
    this.written()
  }

  /** The transaction is over, without a commit of its space maps. */
  written(): void {
    this.#fresh.clear()
  }

  #count(map: SpaceMap, entry: number, before: number, after: number): void {
    const change = () => {
      const i = Math.floor(entry / ENTRIES_PER_BITMAP)
      map.bitmaps[i] = this.#move(map.bitmaps[i])
      const root = map.referenceCountRoot
      if (after > 2) map.referenceCountRoot = insert(this, root, entry, after, referenceCounts)
      else if (before > 2) map.referenceCountRoot = remove(this, root, entry, referenceCounts)
    }
    if (map === this.data) return change()
    if (this.#waiting) {
      this.#waiting.push(change)
      return
    }
    this.#waiting = [change]
    for (const each of this.#waiting) each()
    this.#waiting = undefined
  }

  #indexEntry(map: SpaceMap, i: number): IndexEntry {
    return encodeBitmap(map.bitmaps[i], map.counts, i * ENTRIES_PER_BITMAP)[1]
  }

  #index(map: SpaceMap): IndexEntry[] {
    return map.bitmaps.map((_, i) => this.#indexEntry(map, i))
  }

  #readCounts(map: SpaceMap, index: readonly IndexEntry[]): void {
    index.forEach(({ bitmapBlock }, i) => {
      decodeBitmap(this.disk.read(bitmapBlock), bitmapBlock, map.counts, i * ENTRIES_PER_BITMAP)
      map.bitmaps.push(bitmapBlock)
      this.#blocks.set(bitmapBlock, { kind: 'bitmap', of: map.of, index: i })
    })
    for (const [entry, count] of entriesOf(this, map.referenceCountRoot)) map.counts[entry] = count as number
    map.committed.set(map.counts)
    map.allocated = map.counts.reduce((sum, count) => sum + Math.min(count, 1), 0)
    map.committedAllocated = map.allocated
  }

  #forget(block: number): void {
    this.#blocks.delete(block)
    this.#fresh.delete(block)
  }
}
