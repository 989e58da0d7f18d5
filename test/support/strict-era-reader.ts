/**
 * Answers questions from an era metadata image in memory and believes nothing: every rule of the format is checked on every block that the
 * question concerns. Independent of src/, and as plain as can be.
 *
 * It decides what a deliberately damaged image is: where this reader finds no fault, the damage made another valid image, whose answer is as
 * good as any.
 */
import { crc32c } from '@node-rs/crc32'

import { ERA_MAGIC, eraField, eraSalts } from './era-image.ts'
import { BLOCK_BYTES } from './metadata-image.ts'

interface Writeset {
  readonly era: number
  readonly bits: number
  readonly root: bigint
}

interface Superblock {
  readonly blockSectors: number
  readonly blocks: number
  readonly currentEra: number
  readonly current: Writeset | undefined
  readonly writesetTreeRoot: bigint
  readonly eraArrayRoot: bigint
  readonly snapshot: bigint
}

const ALL = 2n ** 64n
const MOST_LEVELS = 64

/** Every method throws an Error that says which rule is broken where. */
export class StrictEraReader {
  readonly #image: Buffer
  readonly #superblock: Superblock
  readonly #lastEra: number
  /** Array blocks that a question came by. */
  readonly #met = new Set<bigint>()

  constructor(image: Buffer, liveRoot: boolean) {
    this.#image = image
    const live = this.#readSuperblock(0n)
    if (liveRoot || live.snapshot === 0n) {
      this.#superblock = live
      this.#lastEra = live.currentEra
    } else {
      const held = this.#readSuperblock(live.snapshot)
      this.#require(
        held.currentEra > 0 && held.currentEra <= live.currentEra,
        'a snapshot of an era that has not begun'
      )
      this.#require(held.blockSectors === live.blockSectors, 'another block size')
      this.#superblock = { ...held, current: undefined }
      this.#lastEra = held.currentEra - 1
    }
  }

  get blocks(): number {
    return this.#superblock.blocks
  }

  get blockBytes(): number {
    return this.#superblock.blockSectors * 512
  }

  written(sinceEra: number): Set<number> {
    this.#require(sinceEra <= this.#lastEra, 'an era that has not begun')
    const { blocks, eraArrayRoot, current } = this.#superblock
    const archived = this.#writesets()
    const all = current ? [...archived, current] : archived
    const written = new Set<number>()
    this.#met.clear()
    const roots = new Set(all.map(({ root }) => root))
    this.#require(roots.size === all.length, 'two writesets begin at one block')
    for (const { era, bits, root } of all) {
      if (era < sinceEra) continue
      const words = this.#array(root, Math.ceil(bits / 64), 8)
      for (let bit = 0; bit < Math.min(64 * Math.ceil(bits / 64), blocks); bit++) {
        if (((words[bit >> 3] ?? 0) >> (bit & 7)) & 1) written.add(bit)
      }
    }
    const [oldest] = all
    if (oldest && oldest.era <= sinceEra) return written
    const newest = archived[0]?.era ?? (current ? current.era - 1 : this.#lastEra)
    const eras = this.#array(eraArrayRoot, blocks, 4)
    for (let block = 0; block < blocks; block++) {
      const era = eras.readUInt32LE(4 * block)
      if (era === 0 || era < sinceEra) continue
      this.#require(era <= newest, `block ${block} in era ${era}`)
      written.add(block)
    }
    return written
  }

  #writesets(): Writeset[] {
    const { writesetTreeRoot, current } = this.#superblock
    const found: Writeset[] = []
    this.#walk(writesetTreeRoot, 12, (key, value) => {
      found.push({ era: Number(key), bits: value.readUInt32LE(0), root: value.readBigUInt64LE(4) })
    })
    const last = current ? current.era - 1 : this.#lastEra
    for (const [i, { era }] of found.entries()) {
      this.#require(
        era === last - (found.length - 1 - i),
        `eras ${found.map((each) => each.era).join(' ')} up to ${last}`
      )
    }
    return found
  }

  /** All elements of an array, side by side. */
  #array(root: bigint, length: number, valueSize: 4 | 8): Buffer {
    const capacity = Math.floor((BLOCK_BYTES - 24) / valueSize)
    const parts: Buffer[] = []
    this.#walk(root, 8, (key, value) => {
      const number = value.readBigUInt64LE(0)
      this.#require(key === BigInt(parts.length), `array block ${key} for ${parts.length}`)
      const block = this.#block(number, 'array')
      const due = Math.min(capacity, length - Number(key) * capacity)
      this.#require(!this.#met.has(number), `block ${number} stands in two places`)
      this.#met.add(number)
      this.#require(block.readBigUInt64LE(16) === number, `block ${number} is another`)
      this.#require(block.readUInt32LE(4) === capacity, `capacity of block ${number}`)
      this.#require(block.readUInt32LE(8) === due, `entries of block ${number}`)
      this.#require(block.readUInt32LE(12) === valueSize, `value size of block ${number}`)
      parts.push(block.subarray(24, 24 + due * valueSize))
    })
    this.#require(parts.length === Math.ceil(length / capacity), `${parts.length} blocks of an array`)
    return Buffer.concat(parts)
  }

  #walk(root: bigint, valueSize: number, visit: (key: bigint, value: Buffer) => void): void {
    const below = (number: bigint, low: bigint, high: bigint, depth: number): void => {
      this.#require(depth < MOST_LEVELS, 'too deep')
      const block = this.#block(number, 'node')
      const [flags, entries, most] = [block.readUInt32LE(4), block.readUInt32LE(16), block.readUInt32LE(20)]
      this.#require(block.readBigUInt64LE(8) === number, `block ${number} is another`)
      this.#require(flags === 1 || flags === 2, `flags of block ${number}`)
      const size = flags === 2 ? valueSize : 8
      this.#require(block.readUInt32LE(24) === size, `value size of block ${number}`)
      this.#require(most * (8 + size) <= BLOCK_BYTES - 32 && entries <= most, `entries of block ${number}`)
      this.#require(entries > 0 || (flags === 2 && low === 0n && high === ALL), `block ${number} is empty`)
      const keys = Array.from({ length: entries }, (_, i) => block.readBigUInt64LE(32 + 8 * i))
      for (const [i, key] of keys.entries()) {
        this.#require(key >= low && key < high && (i === 0 || key > (keys[i - 1] ?? 0n)), `keys of block ${number}`)
        const at = 32 + 8 * most + size * i
        if (flags === 2) visit(key, block.subarray(at, at + size))
        else below(block.readBigUInt64LE(at), key, keys[i + 1] ?? high, depth + 1)
      }
    }
    below(root, 0n, ALL, 0)
  }

  #readSuperblock(number: bigint): Superblock {
    const block = this.#block(number, 'superblock')
    const u32 = (offset: number) => block.readUInt32LE(offset)
    const u64 = (offset: number) => block.readBigUInt64LE(offset)
    this.#require(u64(eraField.blocknr) === number, `superblock ${number} is another`)
    this.#require(u64(eraField.magic) === BigInt(ERA_MAGIC) && u32(eraField.version) === 1, 'magic or version')
    const blockSectors = u32(eraField.blockSectors)
    this.#require(blockSectors > 0 && blockSectors % 8 === 0, 'block size')
    this.#require(u32(eraField.blocks) < 2 ** 31, 'blocks')
    const era = u32(eraField.currentEra)
    const root = u64(eraField.currentRoot)
    return {
      blockSectors,
      blocks: u32(eraField.blocks),
      currentEra: era,
      current: root === 0n ? undefined : { era, bits: u32(eraField.currentBits), root },
      writesetTreeRoot: u64(eraField.writesetTreeRoot),
      eraArrayRoot: u64(eraField.eraArrayRoot),
      snapshot: u64(eraField.metadataSnapshot)
    }
  }

  #block(number: bigint, kind: keyof typeof eraSalts): Buffer {
    this.#require(number < BigInt(Math.floor(this.#image.length / BLOCK_BYTES)), `block ${number} is beyond the end`)
    const block = this.#image.subarray(Number(number) * BLOCK_BYTES, (Number(number) + 1) * BLOCK_BYTES)
    const checksum = (crc32c(block.subarray(4)) ^ 0xffffffff ^ eraSalts[kind]) >>> 0
    this.#require(block.readUInt32LE(0) === checksum, `checksum of block ${number}`)
    return block
  }

  #require(holds: boolean, rule: string): void {
    if (!holds) throw new Error(rule)
  }
}
