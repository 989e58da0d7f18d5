/**
 * Damages metadata images on purpose: bytes flipped as a failing disk would, and wrong structures whose checksums are right, as a defective
 * kernel or tool (or an attacker) would write them.
 */
import { BLOCK_BYTES, seal, superblockField } from './metadata-image.ts'
import type { ChecksumKind, MetadataImage } from './metadata-image.ts'
import type { Random } from './random.ts'

/** One way to spoil an image. `apply` changes the given bytes in place. */
export interface Damage {
  readonly name: string
  /** The block that is changed. */
  readonly block: number
  apply(bytes: Buffer): void
}

export function flipByte(block: number, offset: number, mask: number): Damage {
  return {
    name: `block ${block}: byte ${offset} xor 0x${mask.toString(16)}`,
    block,
    apply(bytes) {
      bytes[block * BLOCK_BYTES + offset] ^= mask
    }
  }
}

/** Changes a block and gives it a matching checksum again. */
export function rewrite(block: number, kind: ChecksumKind, name: string, change: (block: Buffer) => void): Damage {
  return {
    name: `block ${block}: ${name}`,
    block,
    apply(bytes) {
      const part = bytes.subarray(block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES)
      change(part)
      seal(part, kind)
    }
  }
}

/** What a node says of itself, for reading and writing. */
export class NodeFields {
  readonly #block: Buffer

  constructor(block: Buffer) {
    this.#block = block
  }

  get internal(): boolean {
    return this.#block.readUInt32LE(4) === 1
  }

  set flags(value: number) {
    this.#block.writeUInt32LE(value, 4)
  }

  set blocknr(value: bigint) {
    this.#block.writeBigUInt64LE(value, 8)
  }

  get entries(): number {
    return this.#block.readUInt32LE(16)
  }

  set entries(value: number) {
    this.#block.writeUInt32LE(value, 16)
  }

  get maxEntries(): number {
    return this.#block.readUInt32LE(20)
  }

  set maxEntries(value: number) {
    this.#block.writeUInt32LE(value, 20)
  }

  get valueSize(): number {
    return this.#block.readUInt32LE(24)
  }

  set valueSize(value: number) {
    this.#block.writeUInt32LE(value, 24)
  }

  key(index: number): bigint {
    return this.#block.readBigUInt64LE(32 + 8 * index)
  }

  setKey(index: number, key: bigint): void {
    this.#block.writeBigUInt64LE(key, 32 + 8 * index)
  }

  /** The first eight bytes of a value. */
  value(index: number): bigint {
    return this.#block.readBigUInt64LE(this.#valueAt(index))
  }

  setValue(index: number, value: bigint): void {
    this.#block.writeBigUInt64LE(value, this.#valueAt(index))
  }

  /** Copies the whole value `from` to `to`. */
  copyValue(to: number, from: number): void {
    const at = this.#valueAt(from)
    this.#block.copy(this.#block, this.#valueAt(to), at, at + this.valueSize)
  }

  #valueAt(index: number): number {
    return 32 + 8 * this.maxEntries + this.valueSize * index
  }
}

const U32_MAX = 2 ** 32 - 1
const U64_MAX = 2n ** 64n - 1n

/** Everything that can be wrong with one node of the image, each with a right checksum. */
export function* nodeDamages(image: MetadataImage, block: number, random: Random): Generator<Damage> {
  const original = new NodeFields(blockOf(image.bytes, block))
  const { entries, maxEntries, internal } = original
  const node = (name: string, change: (fields: NodeFields) => void) =>
    rewrite(block, 'node', name, (bytes) => change(new NodeFields(bytes)))

  for (const flags of [0, internal ? 2 : 1, 3, 4, U32_MAX]) yield node(`flags ${flags}`, (n) => (n.flags = flags))
  for (const own of [0n, BigInt(block) + 1n, BigInt(block) + 2n ** 32n, U64_MAX]) {
    yield node(`says it is block ${own}`, (n) => (n.blocknr = own))
  }
  for (const count of [0, entries - 1, entries + 1, maxEntries, maxEntries + 1, 507, 508, 2 ** 31, U32_MAX]) {
    if (count !== entries && count >= 0) yield node(`${count} entries for ${entries}`, (n) => (n.entries = count))
  }
  for (const most of [0, 3, maxEntries + 3, 252, 253, 255, 507, 2 ** 29, 2 ** 31, U32_MAX]) {
    if (most !== maxEntries) yield node(`${most} at most for ${maxEntries}`, (n) => (n.maxEntries = most))
  }
  for (const size of [0, 4, 8, 16, 24, 4096, U32_MAX]) {
    if (size !== original.valueSize) yield node(`values of ${size} bytes`, (n) => (n.valueSize = size))
  }
  if (entries === 0) return

  const at = random.integer(0, entries - 1)
  const last = entries - 1
  for (const [index, key] of [
    [0, 0n],
    [at, original.key(at) - 1n],
    [at, original.key(at) + 1n],
    [at, original.key(Math.max(at - 1, 0))],
    [last, original.key(last) + 100_000n],
    [last, 2n ** 53n - 1n],
    [last, 2n ** 53n + 1n],
    [last, U64_MAX],
    [0, U64_MAX]
  ] as const) {
    if (key >= 0n && key !== original.key(index)) yield node(`key ${index} is ${key}`, (n) => n.setKey(index, key))
  }
  if (entries > 1) {
    const first = random.integer(0, entries - 2)
    yield node(`keys ${first} and ${first + 1} swapped`, (n) => swap(n, first, first + 1, 'key'))
    yield node(`values ${first} and ${first + 1} swapped`, (n) => swap(n, first, first + 1, 'value'))
    yield node('keys reversed', (n) => {
      for (let left = 0, right = last; left < right; left++, right--) swap(n, left, right, 'key')
    })
    yield node('values reversed', (n) => {
      for (let left = 0, right = last; left < right; left++, right--) swap(n, left, right, 'value')
    })
  }
  if (internal || image.topLevelNodes().has(block)) {
    for (const [name, number] of pointers(image, block, original.value(at), random)) {
      for (const index of new Set([0, at, last])) {
        yield node(`child ${index} is ${name} (block ${number})`, (n) => n.setValue(index, number))
      }
      yield node(`one child only, ${name} (block ${number})`, (n) => {
        n.entries = 1
        n.setValue(0, number)
      })
    }
  }
}

/** Every field of a superblock that a reader looks at, set to what it must not be; each with a right checksum. */
export function* superblockDamages(image: MetadataImage, block: number, random: Random): Generator<Damage> {
  const total = BigInt(image.bytes.length / BLOCK_BYTES)
  const superblock = (name: string, change: (bytes: Buffer) => void) => rewrite(block, 'superblock', name, change)
  const blocks = [0n, 1n, BigInt(image.superblock()), total - 1n, total, 2n ** 32n, 2n ** 40n, 2n ** 53n + 1n, U64_MAX]
  for (const kind of ['top-level node', 'details node', 'mapping node', 'space map'] as const) {
    const some = [...image.kinds].filter(([, each]) => each === kind).map(([number]) => number)
    blocks.push(...random.shuffle(some).slice(0, 3).map(BigInt))
  }
  for (const field of ['heldRoot', 'mappingRoot', 'detailsRoot', 'metadataBlocks', 'blocknr', 'magic'] as const) {
    for (const value of blocks) {
      yield superblock(`${field} ${value}`, (bytes) => bytes.writeBigUInt64LE(value, superblockField[field]))
    }
  }
  for (const field of ['dataBlockSize', 'metadataBlockSize', 'version', 'flags', 'incompatFlags'] as const) {
    for (const value of [0, 1, 2, 8, 127, 128, 129, 256, 4096, 2097152, 2097280, 2 ** 31, U32_MAX]) {
      yield superblock(`${field} ${value}`, (bytes) => bytes.writeUInt32LE(value, superblockField[field]))
    }
  }
  yield superblock('mapping and details root swapped', (bytes) => {
    const mappingRoot = bytes.readBigUInt64LE(superblockField.mappingRoot)
    bytes.writeBigUInt64LE(bytes.readBigUInt64LE(superblockField.detailsRoot), superblockField.mappingRoot)
    bytes.writeBigUInt64LE(mappingRoot, superblockField.detailsRoot)
  })
}

/** Where a child pointer could wrongly lead. */
function pointers(image: MetadataImage, block: number, child: bigint, random: Random): [name: string, block: bigint][] {
  const total = BigInt(image.bytes.length / BLOCK_BYTES)
  const named: [string, bigint][] = [
    ['itself', BigInt(block)],
    ['the superblock', 0n],
    ['the neighbour of the right one', child + 1n],
    ['the first block beyond the end', total],
    ['far beyond the end', 2n ** 40n],
    ['beyond 2^53', 2n ** 53n + 1n],
    ['the last number there is', U64_MAX],
    ['the right one plus 2^32', child + 2n ** 32n]
  ]
  for (const parent of parentsOf(image, block)) named.push(['its parent', BigInt(parent)])
  for (const root of image.mappingRoots()) named.push(["a device's root", BigInt(root)])
  for (const kind of ['top-level node', 'details node', 'mapping node', 'space map', 'unused'] as const) {
    const some = [...image.kinds].filter(([, each]) => each === kind).map(([number]) => number)
    for (const number of random.shuffle(some).slice(0, kind === 'mapping node' ? 6 : 1))
      named.push([`a ${kind}`, BigInt(number)])
  }
  return named
}

function parentsOf(image: MetadataImage, block: number): number[] {
  return [...image.kinds]
    .filter(([, kind]) => kind.endsWith('node'))
    .map(([number]) => number)
    .filter((number) => {
      const node = new NodeFields(blockOf(image.bytes, number))
      return node.internal && Array.from({ length: node.entries }, (_, at) => node.value(at)).includes(BigInt(block))
    })
}

function swap(node: NodeFields, one: number, other: number, what: 'key' | 'value'): void {
  if (what === 'key') {
    const kept = node.key(one)
    node.setKey(one, node.key(other))
    node.setKey(other, kept)
  } else {
    const kept = node.value(one)
    node.setValue(one, node.value(other))
    node.setValue(other, kept)
  }
}

export function blockOf(bytes: Buffer, block: number): Buffer {
  return bytes.subarray(block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES)
}
