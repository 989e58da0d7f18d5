/**
 * Answers questions from a metadata image in memory and believes nothing: every rule of the format is checked on every node that the
 * question concerns. Independent of src/.
 *
 * It decides what a deliberately damaged image is: where this reader finds no fault with what a question concerns, the damage made another
 * valid image, whose answer is as good as any. What the volume's size cuts off does not concern a question, nor do other devices, nor, where two
 * are compared, what stands at the same place in both.
 */
import { BLOCK_BYTES, THIN_MAGIC, checksumOf, superblockField } from './metadata-image.ts'
import type { ChecksumKind } from './metadata-image.ts'
import type { MappingRun } from './thin-tools.ts'

interface StrictNode {
  readonly leaf: boolean
  readonly keys: readonly bigint[]
  readonly values: readonly bigint[]
  /** Upper bound of each entry's keys, exclusive. */
  readonly ends: readonly bigint[]
}

const ALL = 2n ** 64n
const MOST_LEVELS = 64

/** Every method throws an Error that says which rule is broken where. */
export class StrictReader {
  readonly blockSizeBytes: number
  readonly #image: Buffer
  readonly #mappingRoot: bigint
  readonly #detailsRoot: bigint

  constructor(image: Buffer) {
    this.#image = image
    const live = this.#superblock(0n)
    const { mappingRoot, detailsRoot, dataBlockSizeSectors } =
      live.heldRoot === 0n ? live : this.#superblock(live.heldRoot)
    this.#mappingRoot = mappingRoot
    this.#detailsRoot = detailsRoot
    this.blockSizeBytes = dataBlockSizeSectors * 512
  }

  deviceIds(): number[] {
    const ids: number[] = []
    const details: number[] = []
    this.#walk(this.#mappingRoot, 8, ALL, (id) => ids.push(exact(id)))
    this.#walk(this.#detailsRoot, 24, ALL, (id) => details.push(exact(id)))
    if (ids.join() !== details.join()) throw new Error('devices and details differ')
    return ids
  }

  /** Mappings of virtual blocks below `end`, without what is below the `unexamined` places. */
  mappings(deviceId: number, end: number, unexamined: ReadonlySet<string> = new Set()): MappingRun[] {
    const mappings: MappingRun[] = []
    const visit = (begin: bigint, value: bigint) => {
      const [dataBegin, time] = [Number(value >> 24n), Number(value & 0xffffffn)]
      mappings.push({ begin: exact(begin), dataBegin, length: 1, time })
    }
    this.#walk(this.#deviceRoot(deviceId), 8, BigInt(end), visit, (place) => !unexamined.has(place))
    return mappings
  }

  /**
   * Where both devices refer to one block under one key. A reader that compares them need not look below: whatever is there is the same for
   * both. What only stands below such a place in either of them is not met, and so not a place that they share.
   */
  sharedPlaces(oneId: number, otherId: number, end: number): Set<string> {
    const [one, other] = [oneId, otherId].map((id) => this.#deviceRoot(id))
    const anywhere = this.#places(one, end).intersection(this.#places(other, end))
    return this.#places(one, end, anywhere).intersection(this.#places(other, end, anywhere))
  }

  #places(root: bigint, end: number, unexamined: ReadonlySet<string> = new Set()): Set<string> {
    const places = new Set<string>()
    const below = (block: bigint, low: bigint, high: bigint, depth: number): void => {
      const place = placeOf(block, low)
      places.add(place)
      if (unexamined.has(place)) return
      let node: StrictNode
      try {
        node = this.#node(block, 8, low, high, depth)
      } catch {
        return // what is wrong here comes out when it is read for its mappings
      }
      if (node.leaf || depth === MOST_LEVELS) return
      for (const [index, key] of node.keys.entries()) {
        if (key < BigInt(end)) below(node.values[index], key, node.ends[index], depth + 1)
      }
    }
    below(root, 0n, ALL, 0)
    return places
  }

  /** One more than the highest virtual block that is mapped. */
  mappedBlocks(deviceId: number): number {
    let block = this.#deviceRoot(deviceId)
    let low = 0n
    for (let depth = 0; depth < MOST_LEVELS; depth++) {
      const { leaf, keys, values } = this.#node(block, 8, low, ALL, depth)
      const last = keys.length - 1
      if (leaf) return last < 0 ? 0 : exact(keys[last] + 1n)
      low = keys[last]
      block = values[last]
    }
    throw new Error('too deep')
  }

  #deviceRoot(deviceId: number): bigint {
    this.#lookUp(this.#detailsRoot, 24, BigInt(deviceId))
    return this.#lookUp(this.#mappingRoot, 8, BigInt(deviceId))
  }

  #lookUp(root: bigint, valueBytes: number, key: bigint): bigint {
    let block = root
    let [low, high] = [0n, ALL]
    for (let depth = 0; depth < MOST_LEVELS; depth++) {
      const { leaf, keys, values, ends } = this.#node(block, valueBytes, low, high, depth)
      const at = keys.findLastIndex((each) => each <= key)
      if (at < 0 || (leaf && keys[at] !== key)) throw new Error(`no device ${key}`)
      if (leaf) return values[at]
      ;[block, low, high] = [values[at], keys[at], ends[at]]
    }
    throw new Error('too deep')
  }

  /** Visits every entry whose key is below `end`, in ascending order; nodes that can hold none are not looked at. */
  #walk(
    root: bigint,
    valueBytes: number,
    end: bigint,
    visit: (key: bigint, value: bigint) => void,
    examine: (place: string) => boolean = () => true
  ): void {
    let leafDepth: number | undefined
    const below = (block: bigint, low: bigint, high: bigint, depth: number): void => {
      if (!examine(placeOf(block, low))) return
      if (depth > MOST_LEVELS) throw new Error('too deep')
      const { leaf, keys, values, ends } = this.#node(block, valueBytes, low, high, depth)
      if (leaf && (leafDepth ??= depth) !== depth) throw new Error(`block ${block} is a leaf at another depth`)
      for (const [index, key] of keys.entries()) {
        if (key >= end) break
        if (leaf) visit(key, values[index])
        else below(values[index], key, ends[index], depth + 1)
      }
    }
    below(root, 0n, ALL, 0)
  }

  #superblock(number: bigint) {
    const block = this.#block(number, 'superblock')
    if (block.readBigUInt64LE(superblockField.magic) !== BigInt(THIN_MAGIC)) throw new Error('wrong magic')
    if (block.readUInt32LE(superblockField.incompatFlags) !== 0) throw new Error('unknown features')
    const dataBlockSizeSectors = block.readUInt32LE(superblockField.dataBlockSize)
    if (dataBlockSizeSectors < 128 || dataBlockSizeSectors > 2097152 || dataBlockSizeSectors % 128 !== 0) {
      throw new Error('impossible data block size')
    }
    return {
      heldRoot: block.readBigUInt64LE(superblockField.heldRoot),
      mappingRoot: block.readBigUInt64LE(superblockField.mappingRoot),
      detailsRoot: block.readBigUInt64LE(superblockField.detailsRoot),
      dataBlockSizeSectors
    }
  }

  #node(number: bigint, valueBytes: number, low: bigint, high: bigint, depth: number): StrictNode {
    const block = this.#block(number, 'node')
    const flags = block.readUInt32LE(4)
    const entries = block.readUInt32LE(16)
    const maxEntries = block.readUInt32LE(20)
    if (flags !== 1 && flags !== 2) throw new Error(`block ${number} is neither leaf nor internal`)
    const leaf = flags === 2
    const size = leaf ? valueBytes : 8
    if (block.readUInt32LE(24) !== size) throw new Error(`block ${number} has values of another size`)
    if (entries > maxEntries || 32 + maxEntries * (8 + size) > BLOCK_BYTES) throw new Error(`block ${number} overflows`)
    if (entries === 0 && (!leaf || depth > 0)) throw new Error(`block ${number} is empty`)
    const at = Array.from({ length: entries }, (_, index) => index)
    const keys = at.map((index) => block.readBigUInt64LE(32 + 8 * index))
    const values = at.map((index) => block.readBigUInt64LE(32 + 8 * maxEntries + size * index))
    const ends = at.map((index) => keys[index + 1] ?? high)
    for (const [index, key] of keys.entries()) {
      if (key < (index === 0 ? low : keys[index - 1] + 1n) || key >= high) {
        throw new Error(`key ${key} of block ${number} is out of order or range`)
      }
    }
    return { leaf, keys, values, ends }
  }

  #block(number: bigint, kind: ChecksumKind): Buffer {
    if ((number + 1n) * BigInt(BLOCK_BYTES) > this.#image.length) throw new Error(`block ${number} is beyond the end`)
    const start = Number(number) * BLOCK_BYTES
    const block = this.#image.subarray(start, start + BLOCK_BYTES)
    if (block.readUInt32LE(0) !== checksumOf(block, kind)) throw new Error(`block ${number} has a wrong checksum`)
    if (block.readBigUInt64LE(8) !== number) throw new Error(`block ${number} says that it is another`)
    return block
  }
}

function placeOf(block: bigint, low: bigint): string {
  return `${block} at ${low}`
}

function exact(value: bigint): number {
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw new Error(`${value} is beyond 2^53`)
  return Number(value)
}
