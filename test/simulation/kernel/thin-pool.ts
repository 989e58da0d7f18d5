/**
 * A thin pool as the kernel drives it: dm-thin-metadata.c for what is on disk, dm-thin.c for what becomes of reads, writes and discards.
 *
 *   write     not mapped, or shared (snapshotted since the mapping's time) ─▶ a new data block, mapped with the time of now
 *             its own ─▶ in place: no metadata changes
 *   discard   unmapped in memory; what nobody else maps is passed down at once, before the commit that unmaps it
 *   commit    data device flushed ─▶ nodes written, in any order ─▶ flushed ─▶ superblock ─▶ flushed. In memory everything is ahead of it.
 *
 * Data blocks hold a version, a number for each write ever made, in place of bytes: 0 stands for zeros.
 */
import type { Random } from '../../support/random.ts'
import type { Details, HeldCopy, NodeValue, SuperblockFields } from '../metadata/blocks.ts'
import { decodeSuperblock, encodeSuperblock } from '../metadata/blocks.ts'
import {
  emptyTree,
  entriesOf,
  insert,
  leafToChange,
  lookup,
  noReferences,
  releaseTree,
  remove,
  removeRange,
  type TreeType
} from '../metadata/btree.ts'
import type { MetadataDisk } from '../metadata/disk.ts'
import { MetadataStore, NoSpace } from '../metadata/store.ts'
import { Refused } from './refused.ts'

const TIME = 2 ** 24
const details: TreeType = { valueBytes: 24, ...noReferences }
const mappings: TreeType = {
  valueBytes: 8,
  increment: (store, value) => store.data.add(Math.floor((value as number) / TIME), 1),
  decrement: (store, value) => store.data.add(Math.floor((value as number) / TIME), -1)
}
const devices: TreeType = {
  valueBytes: 8,
  increment: (store, root) => store.metadata.add(root as number, 1),
  decrement: (store, root) => releaseTree(store, root as number, mappings)
}

function readDevices(store: MetadataStore, { detailsRoot, mappingRoot }: SuperblockFields): void {
  store.readTree(detailsRoot)
  store.readTree(mappingRoot, (root) => {
    store.readTree(root as number)
  })
}

/** The pool's data device: a version in each block, and a volatile cache. */
export class DataDevice {
  /** Where it does not, a pool passes none down. */
  readonly takesDiscards: boolean
  readonly #versions: Int32Array
  readonly #durable = new Map<number, number>()

  constructor(blocks: number, { takesDiscards = true } = {}) {
    this.#versions = new Int32Array(blocks)
    this.takesDiscards = takesDiscards
  }

  get blocks(): number {
    return this.#versions.length
  }

  read(block: number): number {
    return this.#versions[block]
  }

  write(block: number, version: number): void {
    if (!this.#durable.has(block)) this.#durable.set(block, this.#versions[block])
    this.#versions[block] = version
  }

  flush(): void {
    this.#durable.clear()
  }

  crash(random: Random): void {
    for (const [block, before] of this.#durable) if (random.chance(0.5)) this.#versions[block] = before
    this.#durable.clear()
  }

  image(): Int32Array {
    return this.#versions.slice()
  }

  restore(image: Int32Array): void {
    this.#versions.set(image)
    this.#durable.clear()
  }
}

/** One write of a commit; `last` is the superblock's. */
export type CommitStep = 'write' | 'flush' | 'superblock' | 'done'

export class ThinPool {
  readonly disk: MetadataDisk
  readonly data: DataDevice
  readonly blockSectors: number
  time = 0
  transactionId = 0
  heldRoot = 0
  #store: MetadataStore
  #mappingRoot = 0
  #detailsRoot = 0
  /** Details that were changed since the last commit (struct dm_thin_device). */
  readonly #changed = new Map<number, Details>()
  #commit: Generator<CommitStep, void> | undefined
  /** Something is to be committed. */
  #isDirty = false

  private constructor(disk: MetadataDisk, data: DataDevice, blockSectors: number, store: MetadataStore) {
    this.disk = disk
    this.data = data
    this.blockSectors = blockSectors
    this.#store = store
  }

  static format(disk: MetadataDisk, data: DataDevice, blockSectors = 128): ThinPool {
    const store = MetadataStore.format(disk, data.blocks)
    const pool = new ThinPool(disk, data, blockSectors, store)
    pool.#mappingRoot = emptyTree(store, devices)
    pool.#detailsRoot = emptyTree(store, details)
    pool.#isDirty = true
    pool.commitNow()
    store.extendData()
    pool.#isDirty = true
    pool.commitNow()
    return pool
  }

  /** What the superblock leads to, and nothing of what was lost. @throws where that is damaged */
  static load(disk: MetadataDisk, data: DataDevice): ThinPool {
    const superblock = decodeSuperblock(disk.read(0), 0)
    const store = MetadataStore.open(disk, superblock.metadataSpaceMap, superblock.dataSpaceMap)
    readDevices(store, superblock)
    if (superblock.heldRoot !== 0) {
      const fields = decodeSuperblock(disk.read(superblock.heldRoot), superblock.heldRoot)
      store.keepHeld(superblock.heldRoot, { kind: 'held', fields })
      readDevices(store, fields)
    }
    const pool = new ThinPool(disk, data, superblock.blockSectors, store)
    pool.time = superblock.time
    pool.transactionId = superblock.transactionId
    pool.heldRoot = superblock.heldRoot
    pool.#mappingRoot = superblock.mappingRoot
    pool.#detailsRoot = superblock.detailsRoot
    return pool
  }

  // Messages, each of which ends with a commit

  createThin(id: number): void {
    this.#refuseKnown(id)
    const root = emptyTree(this.#store, mappings)
    this.#mappingRoot = insert(this.#store, this.#mappingRoot, id, root, devices)
    const { time: creationTime, transactionId } = this
    this.#changed.set(id, { mappedBlocks: 0, transactionId, creationTime, snapshottedTime: creationTime })
    this.#isDirty = true
  }

  createSnap(id: number, origin: number): void {
    this.#refuseKnown(id)
    const of = this.#details(origin)
    const store = this.#store
    const root = lookup(store, this.#mappingRoot, origin) as number
    store.metadata.add(root, 1)
    this.#mappingRoot = insert(store, this.#mappingRoot, id, root, devices)
    this.time++
    const { time, transactionId } = this
    this.#changed.set(id, {
      mappedBlocks: of.mappedBlocks,
      transactionId,
      creationTime: time,
      snapshottedTime: time
    })
    this.#changed.set(origin, { ...of, snapshottedTime: time })
    this.#isDirty = true
  }

  delete(id: number): void {
    this.#details(id)
    this.#changed.delete(id)
    this.#detailsRoot = remove(this.#store, this.#detailsRoot, id, details)
    this.#mappingRoot = remove(this.#store, this.#mappingRoot, id, devices)
    this.#isDirty = true
  }

  setTransactionId(current: number, next: number): void {
    if (current !== this.transactionId) throw new Refused('EINVAL', 'mismatched transaction id')
    this.transactionId = next
    this.#isDirty = true
  }

  /** The first half commits; the copy refers to what that has left (__reserve_metadata_snap). */
  reserve(): void {
    if (this.heldRoot !== 0) throw new Refused('EBUSY', 'Pool metadata snapshot already exists')
    this.commitNow()
    const store = this.#store
    store.metadata.add(0, 1)
    const none = { blocks: 0, allocated: 0, bitmapRoot: 0, referenceCountRoot: 0 }
    const fields = { ...this.#superblock(), dataSpaceMap: none, metadataSpaceMap: none, heldRoot: 0 }
    this.heldRoot = store.allocate({ kind: 'held', fields })
    store.metadata.add(0, -1)
    store.metadata.add(this.#mappingRoot, 1)
    store.metadata.add(this.#detailsRoot, 1)
    this.#isDirty = true
  }

  release(): void {
    if (this.heldRoot === 0) throw new Refused('EINVAL', 'No pool metadata snapshot found')
    const { mappingRoot, detailsRoot } = this.#store.held<HeldCopy>(this.heldRoot, 'held')
    releaseTree(this.#store, mappingRoot, devices)
    releaseTree(this.#store, detailsRoot, details)
    this.#store.release(this.heldRoot)
    this.heldRoot = 0
    this.#isDirty = true
  }

  // What is done to devices

  has(id: number): boolean {
    return this.#changed.has(id) || lookup(this.#store, this.#detailsRoot, id) !== undefined
  }

  detailsOf(id: number): Details {
    return { ...this.#details(id) }
  }

  /** Ids in ascending order. */
  get ids(): number[] {
    const known = [...entriesOf(this.#store, this.#detailsRoot)].map(([id]) => id)
    return [...new Set([...known, ...this.#changed.keys()])].sort((a, b) => a - b)
  }

  read(id: number, block: number): number {
    const mapping = this.#mapping(id, block)
    return mapping === undefined ? 0 : this.data.read(mapping.block)
  }

  /** @returns where it is mapped to, or why not: no block was free */
  write(id: number, block: number, version: number): 'written' | 'no space' {
    const mapping = this.#mapping(id, block)
    const device = this.#details(id)
    if (mapping !== undefined && device.snapshottedTime <= mapping.time) {
      this.data.write(mapping.block, version)
      return 'written'
    }
    const to = this.#allocate()
    if (to === undefined) return 'no space'
    this.data.write(to, version)
    this.#changeTree(id, (root) => insert(this.#store, root, block, to * TIME + this.time, mappings))
    this.#changed.set(id, mapping === undefined ? { ...device, mappedBlocks: device.mappedBlocks + 1 } : device)
    this.#isDirty = true
    return 'written'
  }

  /**
   * Blocks from `first` on. Where discards are passed down, what lies together, there and on the data device, goes at once
   * (break_up_discard_bio); else all of it does, mapped or not (process_discard_cell_no_passdown).
   */
  discard(id: number, first: number, count = 1): void {
    const end = first + count
    if (!this.data.takesDiscards) return void this.#unmap(id, first, end)
    for (let from = first; from < end;) {
      const run = this.#mappedRun(id, from, end)
      if (run.length > 0) this.#unmap(id, from, from + run.length)
      // Only what nobody else maps is passed down. (A leaf that was shared until now has counted its blocks meanwhile.)
      for (const block of run) if (this.#store.data.counts[block] === 0) this.data.write(block, 0)
      from += Math.max(run.length, 1)
    }
  }

  /** The data blocks of a run of mappings. */
  #mappedRun(id: number, from: number, end: number): number[] {
    const found: number[] = []
    let isShared: boolean | undefined
    for (let block = from; block < end; block++) {
      const mapping = this.#mapping(id, block)
      if (mapping === undefined || (found.length > 0 && mapping.block !== found[found.length - 1] + 1)) break
      const shared = mapping.time < this.#details(id).snapshottedTime
      if (shared !== (isShared ??= shared)) break
      found.push(mapping.block)
    }
    return found
  }

  /** The device's tree is taken out of the tree of devices while it changes (__remove_range). */
  #unmap(id: number, from: number, end: number): void {
    const store = this.#store
    const device = this.#details(id)
    const root = lookup(store, this.#mappingRoot, id) as number
    store.metadata.add(root, 1)
    this.#mappingRoot = remove(store, this.#mappingRoot, id, devices)
    const changed = removeRange(store, root, from, end, mappings)
    this.#mappingRoot = insert(store, this.#mappingRoot, id, changed.root, devices)
    this.#changed.set(id, { ...device, mappedBlocks: device.mappedBlocks - changed.removed })
    this.#isDirty = true
  }

  // Commits

  /** A commit is being written: whatever else would change metadata waits for it. */
  get isCommitting(): boolean {
    return this.#commit !== undefined
  }

  get isDirty(): boolean {
    return this.#isDirty
  }

  /** The next write of the commit under way, or the first of a new one. */
  stepCommit(random?: Random): CommitStep {
    this.#commit ??= this.#committing(random)
    const { value, done } = this.#commit.next()
    if (!done) return value
    this.#commit = undefined
    return 'done'
  }

  /** All of a commit, with nothing in between. */
  commitNow(): void {
    if (!this.#isDirty && !this.#commit) return
    while (this.stepCommit() !== 'done');
  }

  /** Writes a block that was changed before its time: dm-bufio may, whenever it wants to. */
  writeBack(random: Random): void {
    const unwritten = this.#store.unwritten
    if (unwritten.length === 0 || this.isCommitting) return
    const block = random.pick(unwritten)
    const bytes = this.#store.encode(block)
    if (bytes) this.disk.write(block, bytes)
  }

  *#committing(random: Random | undefined): Generator<CommitStep, void> {
    const store = this.#store
    this.data.flush()
    for (const [id, device] of this.#changed) {
      this.#detailsRoot = insert(store, this.#detailsRoot, id, device, details)
    }
    this.#changed.clear()
    store.flushSpaceMaps()
    const blocks = random ? random.shuffle(store.unwritten) : store.unwritten
    const superblock = encodeSuperblock(0, this.#superblock())
    store.committed()
    this.#isDirty = false
    for (const block of blocks) {
      const bytes = store.encode(block)
      if (!bytes) continue
      this.disk.write(block, bytes)
      yield 'write'
    }
    this.disk.flush()
    yield 'flush'
    this.disk.write(0, superblock)
    yield 'superblock'
    this.disk.flush()
  }

  // Numbers

  get status(): string {
    const { metadata, data } = this.#store
    const total = metadata.counts.length
    // The kernel keeps some for itself (__set_metadata_reserve), and says that they are used.
    const usedMetadata = Math.min(metadata.allocated + Math.min(4096, Math.floor(total / 10)), total)
    const used = `${usedMetadata}/${total} ${data.allocated}/${data.counts.length}`
    const held = this.heldRoot === 0 ? '-' : this.heldRoot
    // (calc_metadata_threshold, dm-thin.c)
    const lowWater = Math.min(1024, Math.ceil(total / 4))
    return `${this.transactionId} ${used} ${held} rw ${this.data.takesDiscards ? '' : 'no_'}discard_passdown queue_if_no_space - ${lowWater} `
  }

  get freeMetadata(): number {
    return this.#store.metadata.free
  }

  #superblock(): SuperblockFields {
    const map = (of: 'data' | 'metadata') => {
      const { counts, allocated, indexRoot: bitmapRoot, referenceCountRoot } = this.#store[of]
      return { blocks: counts.length, allocated, bitmapRoot, referenceCountRoot }
    }
    const { time, transactionId, heldRoot, blockSectors } = this
    return {
      ...{ needsCheck: false, time, transactionId, heldRoot, blockSectors },
      ...{ dataSpaceMap: map('data'), metadataSpaceMap: map('metadata') },
      ...{ mappingRoot: this.#mappingRoot, detailsRoot: this.#detailsRoot, metadataBlocks: this.disk.blocks }
    }
  }

  /** A data block; what this transaction has freed is there after a commit only. */
  #allocate(): number | undefined {
    for (const isLastTry of [false, true]) {
      try {
        return this.#store.data.take()
      } catch (error) {
        if (!(error instanceof NoSpace)) throw error
        if (!isLastTry) this.commitNow()
      }
    }
    return undefined
  }

  #details(id: number): Details {
    const found = this.#changed.get(id) ?? lookup(this.#store, this.#detailsRoot, id)
    if (found === undefined) throw new Refused('ENODATA', `no thin device ${id}`)
    return found as Details
  }

  #refuseKnown(id: number): void {
    if (this.has(id)) throw new Refused('EEXIST', `thin device ${id} exists`)
  }

  #mapping(id: number, block: number): { block: number; time: number } | undefined {
    const root = lookup(this.#store, this.#mappingRoot, id)
    if (root === undefined) throw new Refused('ENODATA', `no thin device ${id}`)
    const value: NodeValue | undefined = lookup(this.#store, root as number, block)
    if (value === undefined) return undefined
    return { block: Math.floor((value as number) / TIME), time: (value as number) % TIME }
  }

  /** The way to the device's root is shadowed first: where it was shared, the root is too from then on. */
  #changeTree(id: number, change: (root: number) => number): void {
    const { root, leaf, index } = leafToChange(this.#store, this.#mappingRoot, id, devices)
    this.#mappingRoot = root
    leaf.values[index] = change(leaf.values[index] as number)
  }
}
