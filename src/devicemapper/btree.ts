/**
 * B-trees of dm-persistent-data, as dm-thin and dm-era keep them (drivers/md/persistent-data/dm-btree-internal.h).
 *
 * One node is one metadata block, little endian:
 *
 *      0        4        8                16         20          24          28       32
 *      ┌────────┬────────┬────────────────┬──────────┬───────────┬───────────┬────────┬─────────────────┬───────────────────┐
 *      │ csum   │ flags  │ own block      │ entries  │ max       │ value     │ unused │ max keys        │ max values        │
 *      │ u32    │ u32    │ number u64     │ u32      │ entries   │ size u32  │ u32    │ u64 each        │ value size each   │
 *      └────────┴────────┴────────────────┴──────────┴───────────┴───────────┴────────┴─────────────────┴───────────────────┘
 *
 * The values of an internal node are block numbers of its children (u64). Its keys are *lower bounds*: a child's first
 * key may be larger than the key its parent has for it, never smaller, and all of a child's keys are below its right
 * neighbour's lower bound. Checking each node against that range is what makes every walk end, whatever the metadata
 * says: a cycle would need a node that lies in two ranges at once.
 */
import { damaged, type BlockReader, type BlockWindow, WINDOW_BLOCKS } from './block-reader.ts'
import { checksumSalt } from './checksum.ts'
import { METADATA_BLOCK_BYTES } from '../units.ts'

const HEADER_BYTES = 32
const KEYS_WORD = HEADER_BYTES / 4
const INTERNAL_NODE = 1
const LEAF_NODE = 2
/** A node's children are block numbers: 8 bytes. So are the mappings of a thin device. */
export const U64_SIZE = 8
/** Deeper than any tree can be: 4,161,600 blocks of at least two entries would need 22. */
export const MAX_DEPTH = 64

/**
 * Where a verified and checked node's content lies in its window. Word indexes count 4-byte words from the window's
 * start.
 */
export interface NodeShape {
  isLeaf: boolean
  entries: number
  /** First word of the keys: key `i` is words `keys + 2i` (low) and `keys + 2i + 1` (high). */
  keys: number
  /** First word of the values: value `i` begins at word `values + i * valueSize / 4`. */
  values: number
}

/** Keys are below this. Beyond it they would no longer be exact; no device has so many blocks. */
const MOST_KEY = 2 ** 53

/** The range a node's keys must lie in: `low` inclusive, `high` exclusive. */
export interface KeyRange {
  low: number
  high: number
}

export const ALL_KEYS: KeyRange = { low: 0, high: Infinity }

/**
 * Checks a node, and returns where its content lies.
 *
 * @param i which of the requested blocks it is
 * @param range the range that its parent gives to its keys
 * @param valueSize bytes per value of this tree's leaves (a multiple of 4)
 * @throws DM_METADATA_DAMAGED naming the block
 */
export function nodeShape(
  window: BlockWindow,
  i: number,
  range: KeyRange,
  valueSize: number,
  reader: BlockReader,
  block: number
): NodeShape {
  const { words } = window
  const base = window.firstWord(i)
  const flags = words[base + 1]
  const entries = words[base + 4]
  const maxEntries = words[base + 5]
  if (flags !== INTERNAL_NODE && flags !== LEAF_NODE) {
    throw damaged(reader.path, block, `its flags (${flags}) mark neither an internal node nor a leaf`)
  }
  const isLeaf = flags === LEAF_NODE
  const size = isLeaf ? valueSize : U64_SIZE
  if (words[base + 6] !== size) {
    throw damaged(reader.path, block, `its values are said to have ${words[base + 6]} bytes where ${size} are due`)
  }
  const most = mostEntries(size)
  if (maxEntries > most || entries > maxEntries) {
    throw damaged(reader.path, block, `it claims ${entries} of ${maxEntries} entries, which cannot fit`)
  }
  // The values begin behind room for so many keys. The kernel's nodes all have the maximum; images that tools made may
  // have less.
  if (reader.isDevice ? maxEntries !== most : maxEntries % 3 !== 0) {
    throw damaged(reader.path, block, `it says that it has room for ${maxEntries} entries, where ${most} are due`)
  }
  // Only a root may be empty: that of a tree without entries. Elsewhere an empty node would hide lost entries.
  const isRoot = range.low === ALL_KEYS.low && range.high === ALL_KEYS.high
  if (entries === 0 && !(isLeaf && isRoot))
    throw damaged(reader.path, block, 'it is empty, and no root of an empty tree')

  const node = { isLeaf, entries, keys: base + KEYS_WORD, values: base + KEYS_WORD + 2 * maxEntries }
  if (entries > 0) checkKeys(window, node, range, reader, block)
  return node
}

/** Entries that fit into a node, always a multiple of three (dm-btree.c, calc_max_entries). */
function mostEntries(valueSize: number): number {
  return 3 * Math.floor((METADATA_BLOCK_BYTES - HEADER_BYTES) / (U64_SIZE + valueSize) / 3)
}

function checkKeys(
  { words, doubles }: BlockWindow,
  node: NodeShape,
  { low, high }: KeyRange,
  reader: BlockReader,
  block: number
): void {
  const { entries } = node
  const [first, last] = [keyAt(words, node, 0), keyAt(words, node, entries - 1)]
  if (first >= low && ascend(doubles, node.keys / 2, entries) && first < MOST_KEY && last < high && last < MOST_KEY) {
    return
  }
  let previous = low - 1
  for (let i = 0; i < entries; i++) {
    const key = keyAt(words, node, i)
    if (key <= previous) {
      throw damaged(reader.path, block, `its key ${key} is out of order or below its parent's ${low}`)
    }
    previous = key
  }
  if (last < high && last < MOST_KEY) return
  throw damaged(reader.path, block, `its key ${last} is beyond what its parent allows (${high})`)
}

/** Whether so many doubles from `at` on ascend: their bits do, if the first is not negative (block-reader.ts). */
function ascend(doubles: Float64Array, at: number, count: number): boolean {
  let previous = doubles[at]
  for (let i = at + 1, end = at + count; i < end; i++) {
    const next = doubles[i]
    if (!(next > previous)) return false
    previous = next
  }
  return true
}

/** The i-th key, exact. */
export function keyAt(words: Uint32Array, node: NodeShape, i: number): number {
  return words[node.keys + 2 * i] + words[node.keys + 2 * i + 1] * 2 ** 32
}

/**
 * The entry after the run of consecutive keys that begins at entry `from`; `to` at most. Keys ascend, so two that are
 * as far apart as their places have all others between them: a long run takes few looks.
 */
export function runEnd(words: Uint32Array, node: NodeShape, from: number, to: number): number {
  const shift = keyAt(words, node, from) - from
  // Mostly all of them.
  if (keyAt(words, node, to - 1) === to - 1 + shift) return to
  let last = from
  let step = 1
  while (last + step < to && keyAt(words, node, last + step) === last + step + shift) {
    last += step
    step *= 2
  }
  let end = Math.min(last + step, to)
  while (end - last > 1) {
    const middle = (last + end) >>> 1
    if (keyAt(words, node, middle) === middle + shift) last = middle
    else end = middle
  }
  return end
}

/** The i-th value of an 8-byte tree as a block number. A value that does not fit a double is refused. */
export function blockAt(words: Uint32Array, node: NodeShape, i: number): number {
  return words[node.values + 2 * i] + words[node.values + 2 * i + 1] * 2 ** 32
}

/** The last entry whose key is not above `key`, or -1. */
function lowerBound(words: Uint32Array, node: NodeShape, key: number): number {
  let below = 0
  let above = node.entries
  while (below < above) {
    const middle = (below + above) >>> 1
    if (keyAt(words, node, middle) <= key) below = middle + 1
    else above = middle
  }
  return below - 1
}

/** A leaf's value for `use`: the window's bytes, and where in them the value begins. */
type UseValue<T> = (bytes: Buffer, offset: number) => T

/**
 * Follows one path from the root to a leaf.
 *
 * @param pick which entry of a node to follow (or, in the leaf, to use); -1 ends the descent with `undefined`
 */
async function descend<T>(
  reader: BlockReader,
  root: number,
  valueSize: number,
  pick: (words: Uint32Array, node: NodeShape) => number,
  use: (window: BlockWindow, node: NodeShape, i: number, range: KeyRange, block: number) => T,
  signal?: AbortSignal
): Promise<T | undefined> {
  let block = root
  let range = ALL_KEYS
  for (let depth = 0; depth < MAX_DEPTH; depth++) {
    const result = await reader.read(
      block,
      checksumSalt.btreeNode,
      (window): { found: T | undefined } | undefined => {
        const { words } = window
        const node = nodeShape(window, 0, range, valueSize, reader, block)
        const i = pick(words, node)
        if (i < 0) return { found: undefined }
        if (node.isLeaf) return { found: use(window, node, i, range, block) }
        range = { low: keyAt(words, node, i), high: i + 1 < node.entries ? keyAt(words, node, i + 1) : range.high }
        block = blockAt(words, node, i)
        return undefined
      },
      signal
    )
    if (result) return result.found
  }
  throw damaged(reader.path, root, `the tree below it is deeper than ${MAX_DEPTH} levels`)
}

/**
 * The value stored under `key`, or undefined.
 *
 * @param use decodes the value while it is in memory
 */
export async function lookup<T>(
  reader: BlockReader,
  root: number,
  key: number,
  valueSize: number,
  use: UseValue<T>,
  signal?: AbortSignal
): Promise<T | undefined> {
  return descend(
    reader,
    root,
    valueSize,
    (words, node) => {
      const i = lowerBound(words, node, key)
      return node.isLeaf && i >= 0 && keyAt(words, node, i) !== key ? -1 : i
    },
    (window, node, i) => use(window.bytes, node.values * 4 + i * valueSize),
    signal
  )
}

/** A leaf as `leafOf` finds it. */
export interface FoundLeaf {
  readonly window: BlockWindow
  readonly node: NodeShape
  /** The keys that are in this leaf or nowhere. */
  readonly range: KeyRange
  readonly block: number
}

/**
 * The leaf that contains `key`, if anything does; undefined when the key is below all keys.
 *
 * @param use takes what it needs from the leaf while it is in memory
 */
export async function leafOf<T>(
  reader: BlockReader,
  root: number,
  key: number,
  valueSize: number,
  use: (leaf: FoundLeaf) => T,
  signal?: AbortSignal
): Promise<T | undefined> {
  return descend(
    reader,
    root,
    valueSize,
    (words, node) => lowerBound(words, node, key),
    (window, node, _i, range, block) => use({ window, node, range, block }),
    signal
  )
}

/** The highest key of a tree, or undefined when it is empty. */
export async function highestKey(
  reader: BlockReader,
  root: number,
  valueSize: number,
  signal?: AbortSignal
): Promise<number | undefined> {
  return descend(
    reader,
    root,
    valueSize,
    (_words, node) => node.entries - 1,
    (window, node, i) => keyAt(window.words, node, i),
    signal
  )
}

/**
 * The number of levels of internal nodes above the leaves; follows the leftmost path from `root`, whose keys lie in
 * `range`.
 */
export async function heightBelow(
  reader: BlockReader,
  root: number,
  range: KeyRange,
  valueSize: number,
  signal?: AbortSignal
): Promise<number> {
  let block = root
  let { low, high } = range
  for (let height = 0; height < MAX_DEPTH; height++) {
    const isLeaf = await reader.read(
      block,
      checksumSalt.btreeNode,
      (window) => {
        const { words } = window
        const node = nodeShape(window, 0, { low, high }, valueSize, reader, block)
        if (node.isLeaf) return true
        low = keyAt(words, node, 0)
        if (node.entries > 1) high = keyAt(words, node, 1)
        block = blockAt(words, node, 0)
        return false
      },
      signal
    )
    if (isLeaf) return height
  }
  throw damaged(reader.path, root, `the tree below it is deeper than ${MAX_DEPTH} levels`)
}

/**
 * Every entry of a tree in ascending order of keys, at most a window of nodes in memory for each level.
 *
 * @param use decodes a value while it is in memory
 */
export async function* entries<T>(
  reader: BlockReader,
  root: number,
  valueSize: number,
  use: UseValue<T>,
  signal?: AbortSignal
): AsyncGenerator<{ key: number; value: T }> {
  yield* below([{ block: root, range: ALL_KEYS }], 0)

  async function* below(
    siblings: { block: number; range: KeyRange }[],
    depth: number
  ): AsyncGenerator<{ key: number; value: T }> {
    if (depth === MAX_DEPTH) throw damaged(reader.path, root, `the tree below it is deeper than ${MAX_DEPTH} levels`)
    for (let start = 0; start < siblings.length; start += WINDOW_BLOCKS) {
      const wanted = siblings.slice(start, start + WINDOW_BLOCKS)
      signal?.throwIfAborted()
      const blocks = wanted.map(({ block }) => block)
      const window = await reader.load(blocks, wanted.length, checksumSalt.btreeNode)
      let content
      try {
        content = wanted.map(({ block, range }, i) => decode(window, i, block, range))
      } finally {
        reader.release(window)
      }
      for (const { children, values } of content) {
        if (children.length > 0) yield* below(children, depth + 1)
        yield* values
      }
    }
  }

  function decode(window: BlockWindow, at: number, block: number, range: KeyRange) {
    const { words, bytes } = window
    const node = nodeShape(window, at, range, valueSize, reader, block)
    const children: { block: number; range: KeyRange }[] = []
    const values: { key: number; value: T }[] = []
    for (let i = 0; i < node.entries; i++) {
      const key = keyAt(words, node, i)
      if (node.isLeaf) values.push({ key, value: use(bytes, node.values * 4 + i * valueSize) })
      else {
        const high = i + 1 < node.entries ? keyAt(words, node, i + 1) : range.high
        children.push({ block: blockAt(words, node, i), range: { low: key, high } })
      }
    }
    return { children, values }
  }
}
