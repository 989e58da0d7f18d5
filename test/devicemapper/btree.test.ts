import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'

import test from 'ava'
import type { ExecutionContext } from 'ava'
import fc from 'fast-check'

import { BlockReader } from '../../src/devicemapper/block-reader.ts'
import { ALL_KEYS, entries, heightBelow, highestKey, lookup, U64_SIZE } from '../../src/devicemapper/btree.ts'
import { DeltamapperError } from '../../src/errors.ts'
import { BLOCK_BYTES, seal, writeMetadataImage } from '../support/metadata-image.ts'
import type { TreeShape } from '../support/persistent-tree.ts'
import { PoolModel } from '../support/pool-model.ts'
import { Random } from '../support/random.ts'
import { testFolder } from '../support/test-folder.ts'

const folder = testFolder(test)
const small: TreeShape = { leafEntries: 6, internalEntries: 6, split: 'anywhere' }

/** Data block of a mapping (dm-thin-metadata.c, pack_block_time). */
function dataBlock(bytes: Buffer, offset: number): number {
  return Number(bytes.readBigUInt64LE(offset) >> 24n)
}

let images = 0

/** A mapping tree with these keys, in a file of its own: a tree of 8-byte values as any other. */
async function treeOf(t: ExecutionContext, keys: Iterable<number>, seed: number, shape = small) {
  const random = new Random(seed)
  const model = new PoolModel({ random, shape })
  const { tree } = model.createThin(1)
  for (const key of keys) model.write(1, key)
  const image = writeMetadataImage(model, { random, placement: 'scattered' })
  const path = join(folder, `tree-${images++}.img`)
  await writeFile(path, image.bytes)
  const reader = await BlockReader.open(path)
  t.teardown(() => reader.close())
  return { reader, root: image.mappingRoot(1), tree }
}

for (const [levels, keys] of [
  [1, 6],
  [2, 20],
  [3, 110],
  [4, 500]
]) {
  test(`a tree of ${levels} levels: every key is found, no other is, at the cost of one path`, async (t) => {
    const random = new Random(levels)
    const chosen = new Set(Array.from({ length: keys }, () => random.integer(0, 5 * keys)))
    const { reader, root, tree } = await treeOf(t, random.shuffle(chosen), levels)
    t.is(tree.height, levels)
    for (let key = 0; key <= 5 * keys + 1; key++) {
      const before = reader.statistics.nodesRead
      t.is(await lookup(reader, root, key, U64_SIZE, dataBlock), tree.get(key)?.block)
      t.true(reader.statistics.nodesRead - before <= levels)
      if (tree.get(key)) t.is(reader.statistics.nodesRead - before, levels)
    }
    t.is(await highestKey(reader, root, U64_SIZE), Math.max(...chosen))
    t.is(await heightBelow(reader, root, ALL_KEYS, U64_SIZE), levels - 1)
    const listed = await Array.fromAsync(entries(reader, root, U64_SIZE, dataBlock))
    t.deepEqual(
      listed,
      [...tree.entries()].map(([key, { block }]) => ({ key, value: block }))
    )
  })
}

test('any set of keys is listed in order, and its highest found', async (t) => {
  const key = fc.oneof(fc.nat({ max: 300 }), fc.integer({ min: 0, max: Number.MAX_SAFE_INTEGER }))
  await fc.assert(
    fc.asyncProperty(fc.uniqueArray(key, { maxLength: 150 }), fc.nat(), async (keys, seed) => {
      const { reader, root } = await treeOf(t, keys, seed)
      const listed = await Array.fromAsync(entries(reader, root, U64_SIZE, dataBlock))
      const sorted = [...keys].sort((one, other) => one - other)
      t.deepEqual(
        listed.map(({ key }) => key),
        sorted
      )
      t.is(await highestKey(reader, root, U64_SIZE), sorted.at(-1))
    }),
    { numRuns: 60 }
  )
})

test('keys are exact up to the last that fits a double', async (t) => {
  const keys = [0, 1, 2 ** 32 - 1, 2 ** 32, 2 ** 32 + 1, 2 ** 40, 2 ** 53 - 2, 2 ** 53 - 1]
  const { reader, root, tree } = await treeOf(t, keys, 5)
  for (const key of keys) t.is(await lookup(reader, root, key, U64_SIZE, dataBlock), tree.get(key)?.block)
  for (const key of [2, 2 ** 32 + 2, 2 ** 53 - 3, 2 ** 53]) {
    t.is(await lookup(reader, root, key, U64_SIZE, dataBlock), undefined)
  }
  t.is(await highestKey(reader, root, U64_SIZE), 2 ** 53 - 1)
})

test('a tree without entries has no keys', async (t) => {
  const { reader, root } = await treeOf(t, [], 6)
  t.is(await lookup(reader, root, 0, U64_SIZE, dataBlock), undefined)
  t.is(await highestKey(reader, root, U64_SIZE), undefined)
  t.is(await heightBelow(reader, root, ALL_KEYS, U64_SIZE), 0)
  t.deepEqual(await Array.fromAsync(entries(reader, root, U64_SIZE, dataBlock)), [])
})

test('a listing reads each node once, a window ahead at the most, and may be left', async (t) => {
  const keys = Array.from({ length: 20_000 }, (_, key) => key)
  const { reader, root, tree } = await treeOf(t, keys, 7)
  const nodes = nodesBelow(tree.root)
  let count = 0
  for await (const { key } of entries(reader, root, U64_SIZE, dataBlock)) t.is(key, count++)
  t.is(reader.statistics.nodesRead, nodes)

  const before = reader.statistics.nodesRead
  for await (const { key } of entries(reader, root, U64_SIZE, dataBlock)) if (key === 10) break
  const cost = reader.statistics.nodesRead - before
  // No level of this tree has more than six children a node: one path, with the siblings on it.
  t.true(cost <= 6 * tree.height, `${cost} nodes of ${nodes} for the first keys`)
})

function nodesBelow(node: { readonly children: readonly unknown[] }): number {
  return (node.children as (typeof node)[]).reduce((sum, child) => sum + nodesBelow(child), 1)
}

test('an aborted signal ends every walk with its reason', async (t) => {
  const { reader, root } = await treeOf(
    t,
    Array.from({ length: 300 }, (_, key) => key),
    8
  )
  const reason = new DeltamapperError('DM_CANCELLED', 'gone', 'nothing')
  const aborted = AbortSignal.abort(reason)
  await t.throwsAsync(lookup(reader, root, 1, U64_SIZE, dataBlock, aborted), { is: reason })
  await t.throwsAsync(highestKey(reader, root, U64_SIZE, aborted), { is: reason })
  await t.throwsAsync(heightBelow(reader, root, ALL_KEYS, U64_SIZE, aborted), { is: reason })
  t.is(reader.statistics.nodesRead, 0)

  const controller = new AbortController()
  const seen: number[] = []
  await t.throwsAsync(
    async () => {
      for await (const { key } of entries(reader, root, U64_SIZE, dataBlock, controller.signal)) {
        seen.push(key)
        if (key === 50) controller.abort(reason)
      }
    },
    { is: reason }
  )
  t.true(seen.length < 100)
})

/** A node as it would be written, right or wrong; the checksum always fits. */
interface Node {
  flags?: number
  valueSize?: number
  maxEntries?: number
  /** How many entries it claims; by default as many as it has keys. */
  entries?: number
  keys?: (number | bigint)[]
  values?: (number | bigint)[]
}

const leaf = (keys: Node['keys'] = [], rest: Node = {}): Node => ({
  flags: 2,
  keys,
  values: keys.map(() => 1n << 24n),
  ...rest
})
const internal = (keys: number[], values: number[], rest: Node = {}): Node => ({ flags: 1, keys, values, ...rest })

/** The nodes as blocks 1, 2, 3…: block 1 is the root. */
async function treeOfNodes(t: ExecutionContext, nodes: readonly Node[]): Promise<BlockReader> {
  const bytes = Buffer.alloc((nodes.length + 1) * BLOCK_BYTES)
  for (const [
    index,
    { flags = 2, valueSize = 8, maxEntries = 252, keys = [], values = [], ...rest }
  ] of nodes.entries()) {
    const block = bytes.subarray((index + 1) * BLOCK_BYTES, (index + 2) * BLOCK_BYTES)
    block.writeUInt32LE(flags, 4)
    block.writeUInt32LE(index + 1, 8)
    block.writeUInt32LE(rest.entries ?? keys.length, 16)
    block.writeUInt32LE(maxEntries, 20)
    block.writeUInt32LE(valueSize, 24)
    const valuesAt = 32 + 8 * (maxEntries > 252 ? 252 : maxEntries)
    for (const [i, key] of keys.entries()) block.writeBigUInt64LE(BigInt(key), 32 + 8 * i)
    for (const [i, value] of values.entries()) block.writeBigUInt64LE(BigInt(value), valuesAt + 8 * i)
    seal(block, 'node')
  }
  const path = join(folder, `nodes-${images++}.img`)
  await writeFile(path, bytes)
  const reader = await BlockReader.open(path)
  t.teardown(() => reader.close())
  return reader
}

/** Each with right checksums; the damage lies on the leftmost and the rightmost path, so that every function comes by. */
const damages: [name: string, nodes: Node[], block: number, says: RegExp][] = [
  ['flags of no kind', [{ flags: 0 }], 1, /flags \(0\)/],
  ['flags of both kinds', [{ flags: 3 }], 1, /flags \(3\)/],
  ['values of another size', [leaf([1], { valueSize: 24 })], 1, /24 bytes where 8 are due/],
  ['children of another size', [internal([0], [2], { valueSize: 4 }), leaf()], 1, /4 bytes where 8 are due/],
  ['more entries than there is room for', [leaf([1], { entries: 7, maxEntries: 6 })], 1, /7 of 6 entries/],
  ['more room than a block has', [leaf([1], { maxEntries: 255 })], 1, /1 of 255 entries/],
  ['absurd room', [leaf([1], { maxEntries: 2 ** 32 - 1 })], 1, /1 of 4294967295 entries/],
  ['absurd entries', [leaf([1], { entries: 2 ** 32 - 1 })], 1, /4294967295 of 252/],
  ['an internal node without children', [internal([], [])], 1, /is empty/],
  ['an empty leaf below a root', [internal([0, 9], [2, 2]), leaf()], 2, /is empty/],
  ['keys out of order', [leaf([1, 3, 2])], 1, /key 2 is out of order/],
  ['the same key twice', [leaf([1, 3, 3])], 1, /key 3 is out of order/],
  ['a key beyond 2^53', [leaf([2n ** 53n])], 1, /key 9007199254740992 is beyond/],
  ['the last key there is', [leaf([2n ** 64n - 1n])], 1, /is beyond/],
  ['keys that rounding makes equal', [leaf([2n ** 53n, 2n ** 53n + 1n])], 1, /damaged/],
  ['a first key that is a negative double', [leaf([0xbff0_0000_0000_0000n, 5])], 1, /key 5 is out of order/],
  ['a key that is a negative double', [leaf([1, 0xbff0_0000_0000_0000n, 5])], 1, /key 5 is out of order/],
  ['a key that is no number as a double', [leaf([1, 0x7ff8_0000_0000_0000n, 5])], 1, /key 5 is out of order/],
  ['a last key that is no number as a double', [leaf([1, 0x7ff8_0000_0000_0000n])], 1, /is beyond/],
  ['a key below what its parent says', [internal([5], [2]), leaf([4, 6])], 2, /below its parent's 5/],
  [
    'a key that is its right neighbour’s',
    [internal([0, 9], [2, 2]), leaf([3, 9])],
    2,
    /(9 is beyond|below its parent's)/
  ],
  ['a child that is not there', [internal([0], [2])], 2, /beyond the end/],
  ['a child beyond 2^53', [internal([0], [Number.MAX_SAFE_INTEGER])], Number.MAX_SAFE_INTEGER, /beyond the end/],
  ['a child that is the superblock', [internal([0], [0])], 0, /checksum is wrong/],
  ['a node that is its own only child', [internal([0], [1])], 1, /deeper than 64 levels/],
  ['two nodes that are each other’s child', [internal([0], [2]), internal([0], [1])], 1, /deeper than 64 levels/],
  ['a node that is its own child among others', [internal([0, 5], [1, 1])], 1, /(is beyond|below its parent's)/]
]

for (const [name, nodes, block, says] of damages) {
  test(`${name}: damage, wherever it is met`, async (t) => {
    const reader = await treeOfNodes(t, nodes)
    for (const [walk, met] of Object.entries({
      lookup: () => lookup(reader, 1, 2 ** 52, U64_SIZE, dataBlock),
      highestKey: () => highestKey(reader, 1, U64_SIZE),
      heightBelow: () => heightBelow(reader, 1, ALL_KEYS, U64_SIZE),
      entries: () => Array.fromAsync(entries(reader, 1, U64_SIZE, dataBlock))
    })) {
      const error = await t.throwsAsync<DeltamapperError>(met, { instanceOf: DeltamapperError }, walk)
      t.is(error?.code, 'DM_METADATA_DAMAGED', walk)
      t.true(error?.message.startsWith(`metadata block ${block} of ${reader.path} is damaged: `), error?.message)
      t.regex(error?.message ?? '', says, walk)
    }
  })
}

test('a damaged subtree leaves what lies before it to be found', async (t) => {
  const reader = await treeOfNodes(t, [internal([0, 10, 20], [2, 3, 4]), leaf([0, 1]), leaf([10]), leaf([21, 5])])
  t.is(await lookup(reader, 1, 10, U64_SIZE, dataBlock), 1)
  await t.throwsAsync(lookup(reader, 1, 21, U64_SIZE, dataBlock), { message: /block 4/ })
})

test('a parent may have a lower key for a child than the child’s own first one', async (t) => {
  const reader = await treeOfNodes(t, [internal([3, 10], [2, 3]), leaf([5, 9]), leaf([12])])
  for (const [key, found] of [
    [0, false],
    [3, false],
    [4, false],
    [5, true],
    [9, true],
    [10, false],
    [12, true],
    [13, false]
  ] as const) {
    t.is((await lookup(reader, 1, key, U64_SIZE, dataBlock)) !== undefined, found, `key ${key}`)
  }
  t.deepEqual(
    (await Array.fromAsync(entries(reader, 1, U64_SIZE, dataBlock))).map(({ key }) => key),
    [5, 9, 12]
  )
})
