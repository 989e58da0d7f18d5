/**
 * Random lives of an origin with classic snapshots, as a model: what each holds at any moment, and which entries its store has for it. Blocks of
 * 4 KiB, each of which holds a number; 0 where nobody has written.
 */
import { Random } from './random.ts'
import { writeCowStore } from './cow-image.ts'

export const BLOCK_BYTES = 4096

export class ModelSnapshot {
  readonly chunkBlocks: number
  readonly sizeBlocks: number
  readonly path: string
  /** In order of time: chunk → what it holds for this snapshot. */
  readonly exceptions = new Map<number, number[]>()
  /** What it held when it was taken. */
  readonly taken: readonly number[]
  isWritten = false
  readonly #origin: ModelOrigin

  constructor(origin: ModelOrigin, chunkBlocks: number, path: string) {
    this.#origin = origin
    this.chunkBlocks = chunkBlocks
    this.path = path
    this.sizeBlocks = origin.blocks.length
    this.taken = [...origin.blocks]
  }

  /** What a reader finds in it now. */
  content(): number[] {
    const content = this.#origin.blocks.slice(0, this.sizeBlocks)
    for (const [chunk, blocks] of this.exceptions) {
      for (const [i, value] of blocks.entries()) {
        const at = chunk * this.chunkBlocks + i
        if (at < this.sizeBlocks) content[at] = value
      }
    }
    return content
  }

  /** Keeps what the origin has of a block's chunk. */
  copy(block: number): number[] {
    const chunk = Math.floor(block / this.chunkBlocks)
    const start = chunk * this.chunkBlocks
    const kept =
      this.exceptions.get(chunk) ??
      this.#origin.blocks.slice(start, Math.min(start + this.chunkBlocks, this.sizeBlocks))
    this.exceptions.set(chunk, kept)
    return kept
  }

  write(block: number, value: number): void {
    this.copy(block)[block % this.chunkBlocks] = value
    this.isWritten = true
  }

  /** Its store, as a file. What a chunk holds beyond the end of the volume is whatever was there before. */
  save(garbage: number): void {
    const lists = [...this.exceptions.values()]
    writeCowStore(this.path, {
      chunkBytes: this.chunkBlocks * BLOCK_BYTES,
      chunks: [...this.exceptions.keys()],
      contents: (index) => Buffer.concat([...lists[index], garbage].slice(0, this.chunkBlocks).map(contentOf))
    })
  }
}

export class ModelOrigin {
  readonly blocks: number[]
  readonly snapshots: ModelSnapshot[] = []
  #lastValue = 0

  constructor(sizeBlocks: number) {
    this.blocks = new Array<number>(sizeBlocks).fill(0)
  }

  take(chunkBlocks: number, path: string): void {
    this.snapshots.push(new ModelSnapshot(this, chunkBlocks, path))
  }

  write(block: number, value = ++this.#lastValue): void {
    for (const each of this.snapshots) if (block < each.sizeBlocks) each.copy(block)
    this.blocks[block] = value
  }

  writeSnapshot(snapshot: ModelSnapshot, block: number): void {
    snapshot.write(block, ++this.#lastValue)
  }

  grow(byBlocks: number): void {
    for (let i = 0; i < byBlocks; i++) this.blocks.push(++this.#lastValue)
  }
}

function contentOf(value: number): Buffer {
  const block = Buffer.alloc(BLOCK_BYTES)
  block.writeUInt32LE(value, 4 * (value % 1000))
  return block
}

export interface LifeOptions {
  readonly seed: number
  readonly pathOf: (snapshot: number) => string
  /** The sizes, in blocks, of which each snapshot's chunk is one. */
  readonly chunkBlocks: readonly number[]
  readonly writesIntoSnapshots: boolean
  readonly grows: boolean
}

/** An origin with two to four snapshots, whose stores are saved. */
export function randomLife({ seed, pathOf, chunkBlocks, writesIntoSnapshots, grows }: LifeOptions): ModelOrigin {
  const random = new Random(seed)
  const origin = new ModelOrigin(random.integer(1, random.pick([40, 900])))
  const snapshots = random.integer(2, 4)
  for (let i = 0; i < snapshots; i++) {
    writeSome(origin, random, writesIntoSnapshots)
    // (The kernel lets an inactive origin grow that has snapshots.)
    if (grows && random.chance(0.4)) origin.grow(random.integer(1, 60))
    origin.take(random.pick(chunkBlocks), pathOf(i))
  }
  writeSome(origin, random, writesIntoSnapshots)
  for (const each of origin.snapshots) each.save(random.integer(1, 1e6))
  return origin
}

function writeSome(origin: ModelOrigin, random: Random, intoSnapshots: boolean): void {
  for (let i = random.integer(0, 12); i > 0; i--) {
    const begin = random.integer(0, origin.blocks.length - 1)
    const end = Math.min(begin + random.pick([1, 2, 5, 60, 300]), origin.blocks.length)
    for (let block = begin; block < end; block++) origin.write(block)
    if (!intoSnapshots || origin.snapshots.length === 0 || !random.chance(0.3)) continue
    const snapshot = random.pick(origin.snapshots)
    origin.writeSnapshot(snapshot, random.integer(0, snapshot.sizeBlocks - 1))
  }
}
