/**
 * A thin pool that is run with dmsetup, without LVM, and what is known of it from outside: which write each block of each device
 * holds. So what an answer has to be follows from what was done to the pool, and not from its metadata.
 */
import { closeSync, constants, openSync, readSync, writeSync } from 'node:fs'
import type { Extent } from '../support/expected.ts'
import {
  alignedBuffer,
  createDevice,
  createLinear,
  removeDevice,
  run,
  sectorBytes,
  sendMessage,
  thinPoolTable,
  thinTable,
  zeroStart
} from './dmsetup.ts'

export const blockBytes = 65536

/** Virtual block → number of the write that it holds; what is not there reads as zeros. */
export type Content = Map<number, number>

export interface RawThin {
  readonly thinId: number
  /** Size in blocks. */
  readonly blocks: number
  readonly content: Content
  readonly isSnapshot?: boolean
}

export interface RawPoolOptions {
  /** Name of the pool's device; those of its parts begin with it. */
  name: string
  /** Device-mapper's; without one, the pool is known by what its metadata and data are on, their tables included. */
  uuid?: string
  /** Where on the disk its metadata and then its data lie, in bytes. */
  offsetBytes: number
  metadataBytes: number
  dataBytes: number
  disk?: string
  features?: readonly string[]
  /** Data goes nowhere: writes cost next to nothing, and nothing can be read back. */
  withoutData?: boolean
  /** Writes are counted from here on, where the pool holds some of an earlier process. */
  writesBefore?: number
}

export class RawPool {
  readonly name: string
  readonly metadata: string
  readonly data: string
  /** Active and inactive devices by name. */
  readonly thins = new Map<string, RawThin>()
  readonly #options: RawPoolOptions
  readonly #files = new Map<string, number>()
  readonly #buffer = alignedBuffer(blockBytes)
  #writes: number

  /** Makes the parts and activates the pool. @param fresh formats it; else what is there is taken */
  constructor(options: RawPoolOptions, { fresh = true }: { fresh?: boolean } = {}) {
    const { name, offsetBytes, metadataBytes, dataBytes, disk = '/dev/ubda', withoutData = false } = options
    this.#options = options
    this.#writes = options.writesBefore ?? 0
    this.name = name
    this.metadata = createLinear(`${name}-metadata`, disk, offsetBytes, metadataBytes)
    this.data = withoutData
      ? createDevice(`${name}-data`, `0 ${dataBytes / sectorBytes} zero`)
      : createLinear(`${name}-data`, disk, offsetBytes + metadataBytes, dataBytes)
    if (fresh) zeroStart(this.metadata)
    this.#create()
  }

  #create(): void {
    const { uuid } = this.#options
    createDevice(this.name, this.table(), ...(uuid === undefined ? [] : ['--uuid', uuid]))
  }

  /** The pool's table, with the size that it has or another one. */
  table(dataBytes = this.#options.dataBytes): string {
    const { features = ['no_discard_passdown', 'error_if_no_space'] } = this.#options
    return thinPoolTable({
      metadataDevice: this.metadata,
      dataDevice: this.data,
      dataBytes,
      blockBytes,
      features
    })
  }

  handle(thin: string): string {
    return `${this.name}/${thin}`
  }

  thin(name: string): RawThin {
    const thin = this.thins.get(name)
    if (thin === undefined) throw new Error(`there is no thin ${name}`)
    return thin
  }

  createVolume(name: string, thinId: number, blocks: number): void {
    sendMessage(this.name, `create_thin ${thinId}`)
    this.thins.set(name, { thinId, blocks, content: new Map() })
    this.activate(name)
  }

  /** As tools should: the origin suspended, the snapshot read-only. */
  snapshot(origin: string, name: string, thinId: number): void {
    const { thinId: originId, blocks, content } = this.thin(origin)
    const isActive = this.#files.has(origin)
    if (isActive) run('dmsetup', ['suspend', origin])
    try {
      sendMessage(this.name, `create_snap ${thinId} ${originId}`)
    } finally {
      if (isActive) run('dmsetup', ['resume', origin])
    }
    this.thins.set(name, { thinId, blocks, content: new Map(content), isSnapshot: true })
    this.activate(name, { readOnly: true })
  }

  activate(name: string, { readOnly = false } = {}): void {
    const { thinId, blocks } = this.thin(name)
    const options = readOnly ? ['--readonly'] : []
    const device = createDevice(name, thinTable(this.name, thinId, blocks * blockBytes), ...options)
    this.#files.set(name, openSync(device, (readOnly ? constants.O_RDONLY : constants.O_RDWR) | constants.O_DIRECT))
  }

  deactivate(name: string): void {
    this.#close(name)
    removeDevice(name)
  }

  remove(name: string): void {
    const { thinId } = this.thin(name)
    if (this.#files.has(name)) this.deactivate(name)
    sendMessage(this.name, `delete ${thinId}`)
    this.thins.delete(name)
  }

  /** Deactivates everything but the devices below the pool. */
  deactivateAll(): void {
    for (const name of [...this.#files.keys()]) this.deactivate(name)
    removeDevice(this.name)
  }

  /** Activates the pool and all its devices: volumes to be written, snapshots not. */
  activateAll(): void {
    this.#create()
    for (const [name, { isSnapshot = false }] of this.thins) this.activate(name, { readOnly: isSnapshot })
  }

  /** Deactivates everything, what is below the pool included. */
  close(): void {
    this.deactivateAll()
    for (const each of [`${this.name}-data`, `${this.name}-metadata`]) removeDevice(each)
  }

  /** Overwrites whole blocks, each with its own write's number, past the page cache. @throws what the device says */
  write(name: string, firstBlock: number, count = 1): void {
    const { content } = this.thin(name)
    const file = this.#file(name)
    // (A part of a block has it mapped as well as the whole does.)
    const bytes = this.#options.withoutData ? 4096 : blockBytes
    for (let block = firstBlock; block < firstBlock + count; block++) {
      const write = ++this.#writes
      fill(this.#buffer, write)
      writeSync(file, this.#buffer, 0, bytes, block * blockBytes)
      content.set(block, write)
    }
  }

  discard(name: string, firstBlock: number, count = 1): void {
    const { content } = this.thin(name)
    const range = ['--offset', String(firstBlock * blockBytes), '--length', String(count * blockBytes)]
    run('blkdiscard', [...range, `/dev/mapper/${name}`])
    for (let block = firstBlock; block < firstBlock + count; block++) content.delete(block)
  }

  /** What a device really holds: the numbers of the writes found in it. @throws where a block is of no single write */
  read(name: string): Content {
    const { blocks } = this.thin(name)
    const file = this.#file(name)
    const found: Content = new Map()
    for (let block = 0; block < blocks; block++) {
      readSync(file, this.#buffer, 0, blockBytes, block * blockBytes)
      const write = writeIn(this.#buffer, `block ${block} of ${name}`)
      if (write !== 0) found.set(block, write)
    }
    return found
  }

  #file(name: string): number {
    const file = this.#files.get(name)
    if (file === undefined) throw new Error(`${name} is not active`)
    return file
  }

  #close(name: string): void {
    closeSync(this.#file(name))
    this.#files.delete(name)
  }
}

/** Every 8 bytes of a block are the number of the write. */
function fill(buffer: Uint8Array, write: number): void {
  new Float64Array(buffer.buffer, buffer.byteOffset, blockBytes / 8).fill(write)
}

function writeIn(buffer: Uint8Array, what: string): number {
  const numbers = new Float64Array(buffer.buffer, buffer.byteOffset, blockBytes / 8)
  if (!numbers.every((each) => each === numbers[0])) throw new Error(`${what} is of more than one write`)
  return numbers[0]
}

/** What an answer has to be: ascending, merged, from the data block on that the offset lies in. */
export function expectedAllocated({ content, blocks }: RawThin, startingOffset = 0): Extent[] {
  return extentsOf(content.keys(), blocks, startingOffset)
}

export function expectedDelta(base: RawThin, target: RawThin, startingOffset = 0): Extent[] {
  const changed = [...new Set([...base.content.keys(), ...target.content.keys()])].filter(
    (block) => base.content.get(block) !== target.content.get(block)
  )
  return extentsOf(changed, target.blocks, startingOffset)
}

function extentsOf(blocks: Iterable<number>, sizeBlocks: number, startingOffset: number): Extent[] {
  const first = startingOffset < sizeBlocks * blockBytes ? Math.floor(startingOffset / blockBytes) : Infinity
  const extents: [number, number][] = []
  let end = -1
  for (const block of [...blocks].sort((a, b) => a - b)) {
    if (block < first || block >= sizeBlocks) continue
    if (block === end) extents[extents.length - 1][1] += blockBytes
    else extents.push([block * blockBytes, blockBytes])
    end = block + 1
  }
  return extents
}
