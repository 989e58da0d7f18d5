/**
 * Writes dm-era metadata images from a model of an era device: superblock, writeset tree, bitsets, era array, space map and, where there is
 * one, the metadata snapshot; each 4096-byte block with its own number and checksum.
 *
 *   array block   0 csum u32 │ 4 max_entries u32 │ 8 nr_entries u32 │ 12 value_size u32 │ 16 blocknr u64 │ 24 elements
 *
 * Written from the format's description alone and sharing no line with the reader that it tests.
 */
import { crc32c } from '@node-rs/crc32'

import { BLOCK_BYTES, writeU64 } from './metadata-image.ts'
import type { Random } from './random.ts'
import {
  ENTRIES_PER_BITMAP,
  fillBitmap,
  INDEX_ENTRIES,
  type IndexEntry,
  writeIndexEntry,
  writeSpaceMapRoot
} from './space-maps.ts'

export const eraSalts = {
  superblock: 146538381,
  node: 121107,
  array: 595846735,
  bitmap: 240779,
  metadataIndex: 160478
} as const

export type EraBlockKind = keyof typeof eraSalts | 'metadata snapshot' | 'unused'

/** Byte offsets in the era superblock. */
export const eraField = {
  blocknr: 8,
  magic: 32,
  version: 40,
  spaceMapRoot: 44,
  blockSectors: 172,
  metadataBlockSize: 176,
  blocks: 180,
  currentEra: 184,
  currentBits: 188,
  currentRoot: 192,
  writesetTreeRoot: 200,
  eraArrayRoot: 208,
  metadataSnapshot: 216
} as const

export const ERA_MAGIC = 2126579579

/** The writes of an era. `bits`: as many as the device had blocks then. */
export interface WritesetModel {
  readonly era: number
  readonly bits: number
  /** The blocks that were written to; or, for very many, as a bitmap: block b is bit b & 7 of byte b >> 3. */
  readonly marked: ReadonlySet<number> | Uint8Array
}

/** What one superblock leads to. */
export interface EraView {
  readonly blocks: number
  readonly currentEra: number
  readonly current: WritesetModel | undefined
  /** By ascending era. */
  readonly writesets: readonly WritesetModel[]
  /** Era of the last digested write of each block; what is not there was never written to. */
  readonly eras: ReadonlyMap<number, number> | Uint8Array
}

export interface EraImageOptions {
  readonly blockSectors?: number
  readonly random?: Random
  /** Entries in a node of a tree at most: smaller than the kernel's, for trees of several levels. */
  readonly nodeEntries?: number
  /** Blocks one after the other, or anywhere. */
  readonly placement?: 'sequential' | 'scattered'
  readonly held?: EraView
  readonly unusedBlocks?: number
}

export interface EraImage {
  readonly bytes: Buffer
  readonly kinds: ReadonlyMap<number, EraBlockKind>
  /** Block of the metadata snapshot; 0 for none. */
  readonly snapshot: number
}

/** @throws RangeError for more metadata blocks than one bitmap index has room for */
export function writeEraImage(live: EraView, options: EraImageOptions = {}): EraImage {
  return new EraImageWriter(options).write(live)
}

/** Gives a block a matching checksum. */
export function sealEraBlock(block: Buffer, kind: keyof typeof eraSalts): void {
  block.writeUInt32LE((crc32c(block.subarray(4)) ^ 0xffffffff ^ eraSalts[kind]) >>> 0, 0)
}

interface Child {
  readonly key: number
  readonly block: number
}

class EraImageWriter {
  readonly #options: EraImageOptions
  /** Content of each block, in the order in which they were made; sealed at the end, when their places are known. */
  readonly #blocks = new Map<number, { readonly content: Buffer; readonly kind: keyof typeof eraSalts }>()
  readonly #kinds = new Map<number, EraBlockKind>()
  /** Where blocks go, in their order; undefined for one after the other. */
  #places: number[] | undefined
  #next = 0

  constructor(options: EraImageOptions) {
    this.#options = options
  }

  write(live: EraView): EraImage {
    const { held, unusedBlocks = 0, random, placement = 'sequential' } = this.#options
    if (placement === 'scattered' && random) {
      // More than enough: what is left over is unused.
      const views = held ? [live, held] : [live]
      const room = 64 + views.reduce((sum, view) => sum + this.#roomFor(view), 0)
      this.#places = random.shuffle(Array.from({ length: room }, (_, i) => i + 1))
    }

    const snapshot = held ? this.#take() : 0
    const heldRoots = held && this.#writeView(held)
    const liveRoots = this.#writeView(live)
    // Besides what there is by now: itself, its tree, and the superblock.
    const total = (this.#places?.length ?? this.#next + 64) + unusedBlocks + 1
    const spaceMap = this.#writeSpaceMap(total)
    if (held && heldRoots) this.#writeSuperblock(snapshot, held, heldRoots, spaceMap, 0)
    this.#writeSuperblock(0, live, liveRoots, spaceMap, snapshot)

    const bytes = Buffer.alloc(total * BLOCK_BYTES)
    for (const [number, { content, kind }] of this.#blocks) {
      writeU64(content, kind === 'array' ? 16 : 8, number)
      sealEraBlock(content, kind)
      content.copy(bytes, number * BLOCK_BYTES)
    }
    for (let number = 0; number < total; number++) if (!this.#kinds.has(number)) this.#kinds.set(number, 'unused')
    return { bytes, kinds: this.#kinds, snapshot }
  }

  /** Blocks for all arrays and their trees, and some. */
  #roomFor({ blocks, writesets, current }: EraView): number {
    const { nodeEntries = 252 } = this.#options
    const bitsets = [...writesets, ...(current ? [current] : [])].map(({ bits }) => Math.ceil(bits / 32576))
    const arrays = [Math.ceil(blocks / 1018), ...bitsets, writesets.length]
    return arrays.reduce((sum, leaves) => sum + leaves + Math.ceil(leaves / (nodeEntries - 1)) + 16, 0)
  }

  #take(): number {
    const place = this.#places ? this.#places[this.#next++] : ++this.#next
    if (place === undefined) throw new RangeError('the image is too small')
    return place
  }

  #add(kind: keyof typeof eraSalts, block: number, fill: (content: Buffer) => void): number {
    const content = Buffer.alloc(BLOCK_BYTES)
    fill(content)
    this.#blocks.set(block, { content, kind })
    this.#kinds.set(block, kind)
    return block
  }

  #writeView({ blocks, current, writesets, eras }: EraView) {
    const eraArrayRoot = this.#writeArray(blocks, 4, eraFiller(eras))
    const roots = writesets.map((each) => ({ ...each, root: this.#writeBitset(each) }))
    const writesetTreeRoot = this.#writeTree(
      roots.map(({ era, bits, root }) => ({ key: era, value: writesetRecord(bits, root) })),
      12
    )
    return { eraArrayRoot, writesetTreeRoot, currentRoot: current ? this.#writeBitset(current) : 0 }
  }

  #writeBitset({ bits, marked }: WritesetModel): number {
    return this.#writeArray(Math.ceil(bits / 64), 8, bitFiller(marked))
  }

  #writeArray(length: number, valueSize: 4 | 8, fill: Filler): number {
    const capacity = Math.floor((BLOCK_BYTES - 24) / valueSize)
    const entries: { key: number; value: Buffer }[] = []
    for (let from = 0; from < length; from += capacity) {
      const to = Math.min(from + capacity, length)
      const content = Buffer.alloc(BLOCK_BYTES)
      fill(from, to, content)
      content.writeUInt32LE(capacity, 4)
      content.writeUInt32LE(to - from, 8)
      content.writeUInt32LE(valueSize, 12)
      const block = this.#add('array', this.#take(), (written) => content.copy(written))
      entries.push({ key: entries.length, value: u64(block) })
    }
    return this.#writeTree(entries, 8)
  }

  #writeTree(entries: readonly { key: number; value: Buffer }[], valueSize: number): number {
    const { nodeEntries = 252 } = this.#options
    const most = Math.min(nodeEntries, fitting(valueSize))
    let level: Child[] = inParts(entries, most).map((part) => ({
      key: part.at(0)?.key ?? 0,
      block: this.#writeNode(2, part, valueSize)
    }))
    while (level.length > 1) {
      level = inParts(level, nodeEntries).map((part) => {
        const values = part.map(({ key, block }) => ({ key, value: u64(block) }))
        return { key: part[0]?.key ?? 0, block: this.#writeNode(1, values, 8) }
      })
    }
    return level[0]?.block ?? 0
  }

  #writeNode(flags: 1 | 2, entries: readonly { key: number; value: Buffer }[], valueSize: number): number {
    const max = fitting(valueSize)
    return this.#add('node', this.#take(), (content) => {
      content.writeUInt32LE(flags, 4)
      content.writeUInt32LE(entries.length, 16)
      content.writeUInt32LE(max, 20)
      content.writeUInt32LE(valueSize, 24)
      for (const [i, { key, value }] of entries.entries()) {
        writeU64(content, 32 + 8 * i, key)
        value.copy(content, 32 + 8 * max + valueSize * i)
      }
    })
  }

  /** What only the tools look at. Everything that was written by now counts once. */
  #writeSpaceMap(blocks: number): Parameters<typeof writeSpaceMapRoot>[2] {
    const bitmaps = Math.ceil(blocks / ENTRIES_PER_BITMAP)
    if (bitmaps > INDEX_ENTRIES) throw new RangeError(`${blocks} metadata blocks are too many`)
    const places = Array.from({ length: bitmaps }, () => this.#take())
    const indexBlock = this.#take()
    const countRoot = this.#writeNode(2, [], 4)
    const counts = new Map<number, number>([0, indexBlock, ...places, ...this.#blocks.keys()].map((each) => [each, 1]))
    const index: IndexEntry[] = places.map((place, i) => {
      let entry: IndexEntry | undefined
      this.#add('bitmap', place, (content) => {
        entry = fillBitmap(content, place, counts, i * ENTRIES_PER_BITMAP, blocks)
      })
      if (entry === undefined) throw new Error('a bitmap without an entry')
      return entry
    })
    this.#add('metadataIndex', indexBlock, (content) => {
      for (const [i, entry] of index.entries()) writeIndexEntry(content, 16 + 16 * i, entry)
    })
    return { blocks, allocated: counts.size, bitmapRoot: indexBlock, referenceCountRoot: countRoot }
  }

  #writeSuperblock(
    block: number,
    { blocks, currentEra, current }: EraView,
    roots: { eraArrayRoot: number; writesetTreeRoot: number; currentRoot: number },
    spaceMap: Parameters<typeof writeSpaceMapRoot>[2],
    snapshot: number
  ): void {
    const { blockSectors = 128 } = this.#options
    this.#add('superblock', block, (content) => {
      writeU64(content, eraField.magic, ERA_MAGIC)
      content.writeUInt32LE(1, eraField.version)
      writeSpaceMapRoot(content, eraField.spaceMapRoot, spaceMap)
      content.writeUInt32LE(blockSectors, eraField.blockSectors)
      content.writeUInt32LE(8, eraField.metadataBlockSize)
      content.writeUInt32LE(blocks, eraField.blocks)
      content.writeUInt32LE(currentEra, eraField.currentEra)
      content.writeUInt32LE(current?.bits ?? 0, eraField.currentBits)
      writeU64(content, eraField.currentRoot, roots.currentRoot)
      writeU64(content, eraField.writesetTreeRoot, roots.writesetTreeRoot)
      writeU64(content, eraField.eraArrayRoot, roots.eraArrayRoot)
      writeU64(content, eraField.metadataSnapshot, snapshot)
    })
    if (block !== 0) this.#kinds.set(block, 'metadata snapshot')
  }
}

/** In parts of nearly the same length, `most` at most: nodes of the kernel's are never almost empty. One part where there is nothing. */
function inParts<T>(items: readonly T[], most: number): T[][] {
  const count = Math.max(1, Math.ceil(items.length / most))
  const border = (part: number) => Math.floor((part * items.length) / count)
  return Array.from({ length: count }, (_, part) => items.slice(border(part), border(part + 1)))
}

/** Puts elements `[from, to)` into an array block; ascending. */
type Filler = (from: number, to: number, content: Buffer) => void

function eraFiller(eras: EraView['eras']): Filler {
  if (eras instanceof Uint8Array) {
    return (from, to, content) => {
      for (let i = from; i < to; i++) content.writeUInt32LE(eras[i], 24 + 4 * (i - from))
    }
  }
  const ascending = [...eras].sort(([a], [b]) => a - b)
  let next = 0
  return (from, to, content) => {
    for (; next < ascending.length && ascending[next][0] < to; next++) {
      const [block, era] = ascending[next]
      content.writeUInt32LE(era, 24 + 4 * (block - from))
    }
  }
}

function bitFiller(marked: WritesetModel['marked']): Filler {
  if (marked instanceof Uint8Array) {
    return (from, to, content) => {
      content.set(marked.subarray(8 * from, 8 * to), 24)
    }
  }
  const ascending = [...marked].sort((a, b) => a - b)
  let next = 0
  return (from, to, content) => {
    for (; next < ascending.length && ascending[next] < 64 * to; next++) {
      const bit = ascending[next] - 64 * from
      const at = 24 + (bit >> 3)
      content.writeUInt8(content.readUInt8(at) | (1 << (bit & 7)), at)
    }
  }
}

function fitting(valueSize: number): number {
  return Math.floor((BLOCK_BYTES - 32) / (8 + valueSize) / 3) * 3
}

function u64(value: number): Buffer {
  const buffer = Buffer.alloc(8)
  writeU64(buffer, 0, value)
  return buffer
}

function writesetRecord(bits: number, root: number): Buffer {
  const buffer = Buffer.alloc(12)
  buffer.writeUInt32LE(bits, 0)
  writeU64(buffer, 4, root)
  return buffer
}
