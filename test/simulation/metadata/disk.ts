/**
 * A disk of metadata blocks that has a volatile cache: what was written can be read at once, and survives a power cut for certain only
 * after a flush.
 */
import type { Random } from '../../support/random.ts'
import { BLOCK_BYTES } from './blocks.ts'

const ZEROS = Buffer.alloc(BLOCK_BYTES)

export class MetadataDisk {
  readonly blocks: number
  #content = new Map<number, Buffer>()
  /** What was there at the last flush, of blocks that were written since. */
  readonly #durable = new Map<number, Buffer>()

  /** Blocks of which something else comes back to whoever reads around the kernel, until they are written again. */
  readonly #faults = new Map<number, Buffer>()

  constructor(blocks: number) {
    this.blocks = blocks
  }

  /** The block as it is read now. Not to be changed. */
  read(block: number): Buffer {
    return this.#content.get(block) ?? ZEROS
  }

  /** What comes back to whoever reads around the kernel, which has what it needs in memory. */
  readAround(block: number): Buffer {
    return this.#faults.get(block) ?? this.read(block)
  }

  /** From now on, something else comes back of a block. */
  spoil(block: number, bytes: Buffer): void {
    this.#faults.set(block, bytes)
  }

  /** The blocks that were ever written. */
  get written(): readonly number[] {
    return [...this.#content.keys()]
  }

  /** @param bytes kept; not to be changed afterwards */
  write(block: number, bytes: Buffer): void {
    if (!(block >= 0 && block < this.blocks)) throw new Error(`a write to block ${block} of ${this.blocks}`)
    if (!this.#durable.has(block)) this.#durable.set(block, this.read(block))
    this.#content.set(block, bytes)
    this.#faults.delete(block)
  }

  flush(): void {
    this.#durable.clear()
  }

  /** A power cut: each block that was written since the last flush is what it was, or what it became. */
  crash(random: Random): void {
    for (const [block, before] of this.#durable) if (random.chance(0.5)) this.#content.set(block, before)
    this.#durable.clear()
  }

  /** A copy of the whole disk, as an administrator makes one, and what puts it back. */
  image(): ReadonlyMap<number, Buffer> {
    return new Map(this.#content)
  }

  restore(image: ReadonlyMap<number, Buffer>): void {
    this.#content = new Map(image)
    this.#faults.clear()
    this.#durable.clear()
  }

  toBuffer(): Buffer {
    return Buffer.concat(Array.from({ length: this.blocks }, (_, block) => this.read(block)))
  }
}
