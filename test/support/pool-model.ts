/**
 * A thin pool in memory that follows the kernel's rules of sharing: snapshots are a shared root, a write to a block that a snapshot may
 * see gets a new data block and the pool's current time, a discard removes the mapping.
 *
 * It is what metadata images are written from, and the truth they are checked against where Debian's tools cannot read them.
 */
import { PersistentTree } from './persistent-tree.ts'
import type { TreeShape } from './persistent-tree.ts'
import { Random } from './random.ts'

export interface Mapping {
  /** Data block, below 2^40. */
  readonly block: number
  /** The pool's time when it was mapped, below 2^24. */
  readonly time: number
}

export interface DeviceModel {
  readonly tree: PersistentTree<Mapping>
  mappedBlocks: number
  readonly transactionId: number
  readonly creationTime: number
  snapshottedTime: number
}

/** What one superblock leads to: the live pool's, or a held metadata snapshot's. */
export interface PoolView {
  readonly time: number
  readonly transactionId: number
  readonly devices: ReadonlyMap<number, DeviceModel>
}

export interface PoolModelOptions {
  readonly random: Random
  readonly shape: TreeShape
  /** In 512-byte sectors: 128 to 2097152, a multiple of 128. */
  readonly dataBlockSizeSectors?: number
  readonly time?: number
  readonly transactionId?: number
  /** The first data block that is given out; the others follow, with gaps now and then. */
  readonly firstDataBlock?: number
}

export class PoolModel implements PoolView {
  readonly devices = new Map<number, DeviceModel>()
  readonly dataBlockSizeSectors: number
  readonly shape: TreeShape
  time: number
  transactionId: number
  /** The view that a metadata snapshot holds. */
  held: PoolView | undefined
  readonly #random: Random
  #nextDataBlock: number

  constructor(options: PoolModelOptions) {
    this.#random = options.random
    this.shape = options.shape
    this.dataBlockSizeSectors = options.dataBlockSizeSectors ?? 128
    this.time = options.time ?? 0
    this.transactionId = options.transactionId ?? 0
    this.#nextDataBlock = options.firstDataBlock ?? 0
  }

  get blockSizeBytes(): number {
    return this.dataBlockSizeSectors * 512
  }

  /** One more than the highest data block given out. */
  get dataBlocks(): number {
    return this.#nextDataBlock
  }

  device(id: number): DeviceModel {
    const device = this.devices.get(id)
    if (device === undefined) throw new RangeError(`the model has no device ${id}`)
    return device
  }

  createThin(id: number): DeviceModel {
    return this.#add(id, new PersistentTree<Mapping>(this.shape, this.#random.fork()), 0)
  }

  createSnapshot(id: number, originId: number): DeviceModel {
    const origin = this.device(originId)
    this.time += 1
    origin.snapshottedTime = this.time
    return this.#add(id, origin.tree.snapshot(), origin.mappedBlocks)
  }

  delete(id: number): void {
    this.device(id)
    this.devices.delete(id)
    this.transactionId += 1
  }

  /** A write to one virtual block, as the kernel would take it. */
  write(id: number, virtualBlock: number): void {
    const device = this.device(id)
    const mapping = device.tree.get(virtualBlock)
    if (mapping !== undefined && mapping.time >= device.snapshottedTime) return
    this.map(id, virtualBlock, { block: this.#allocate(), time: this.time })
  }

  /** Maps one virtual block to any data block and time. */
  map(id: number, virtualBlock: number, mapping: Mapping): void {
    const device = this.device(id)
    if (device.tree.get(virtualBlock) === undefined) device.mappedBlocks += 1
    device.tree.set(virtualBlock, mapping)
    this.#nextDataBlock = Math.max(this.#nextDataBlock, mapping.block + 1)
  }

  discard(id: number, virtualBlock: number): void {
    const device = this.device(id)
    if (device.tree.delete(virtualBlock)) device.mappedBlocks -= 1
  }

  /** Fills an empty device at once: fast enough for millions of mappings. */
  load(id: number, mappings: readonly (readonly [number, Mapping])[], fill: () => number): void {
    const device = this.device(id)
    device.tree.load(mappings, fill)
    device.mappedBlocks = mappings.length
    for (const [, { block }] of mappings) if (block >= this.#nextDataBlock) this.#nextDataBlock = block + 1
  }

  /** Takes a metadata snapshot: what it leads to does not change any more. */
  holdMetadataSnapshot(): void {
    const devices = new Map<number, DeviceModel>()
    for (const [id, device] of this.devices) devices.set(id, { ...device, tree: device.tree.snapshot() })
    this.held = { time: this.time, transactionId: this.transactionId, devices }
  }

  #add(id: number, tree: PersistentTree<Mapping>, mappedBlocks: number): DeviceModel {
    if (this.devices.has(id)) throw new RangeError(`the model already has a device ${id}`)
    const { transactionId, time } = this
    const device = { tree, mappedBlocks, transactionId, creationTime: time, snapshottedTime: time }
    this.devices.set(id, device)
    this.transactionId += 1
    return device
  }

  /** Mostly the next one, so that runs are contiguous, and sometimes a little further on. */
  #allocate(): number {
    if (this.#random.chance(0.1)) this.#nextDataBlock += this.#random.integer(1, 9)
    return this.#nextDataBlock++
  }
}
