import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'

import test from 'ava'
import type { ExecutionContext } from 'ava'
import fc from 'fast-check'

import { BlockReader } from '../../../src/devicemapper/block-reader.ts'
import { ALL_KEYS, type KeyRange } from '../../../src/devicemapper/btree.ts'
import { checksumSalt } from '../../../src/devicemapper/checksum.ts'
import { Frontier, MappingQueue, SubtreeQueue } from '../../../src/devicemapper/thin/frontier.ts'
import { DeltamapperError } from '../../../src/errors.ts'
import { blockOf, NodeFields, rewrite } from '../../support/metadata-damage.ts'
import { writeMetadataImage } from '../../support/metadata-image.ts'
import type { MetadataImage } from '../../support/metadata-image.ts'
import { PoolModel } from '../../support/pool-model.ts'
import { Random } from '../../support/random.ts'
import { testFolder } from '../../support/test-folder.ts'

const folder = testFolder(test)
let images = 0

interface Tree {
  reader: BlockReader
  root: number
  /** Virtual block and data block, in order. */
  mappings: [number, number][]
  height: number
}

/** A tree of small nodes with every third block mapped; `damage` changes its image. */
async function makeTree(
  t: ExecutionContext,
  blocks: number,
  damage: (image: MetadataImage) => void = () => undefined
): Promise<Tree> {
  const random = new Random(1)
  const model = new PoolModel({
    random,
    shape: { leafEntries: 6, internalEntries: 6, split: 'middle' },
    firstDataBlock: 2 ** 39,
    time: 5
  })
  const { tree } = model.createThin(1)
  for (let block = 0; block < blocks; block++) model.write(1, 3 * block)
  const image = writeMetadataImage(model, { random })
  damage(image)
  const path = join(folder, `${images++}.img`)
  await writeFile(path, image.bytes)
  const reader = await BlockReader.open(path)
  t.teardown(() => reader.close())
  return {
    reader,
    root: image.mappingRoot(1),
    mappings: [...tree.entries()].map(([key, { block }]) => [key, block]),
    height: tree.height
  }
}

/** Reads and takes in the node at the head of a depth. */
async function open(frontier: Frontier, reader: BlockReader, depth: number): Promise<void> {
  const queue = frontier.queue(depth)
  queue.asked = queue.head + 1
  await reader.read(queue.blocks[queue.head], checksumSalt.btreeNode, (window) => {
    const leaf = frontier.take(window, 0, depth)
    if (leaf) frontier.addMappings(window.words, leaf, 0, leaf.entries)
  })
}

function known({ mappings: { keys, data, head, tail } }: Frontier): [number, number][] {
  return Array.from({ length: tail - head }, (_, i) => [keys[head + i], data[head + i]])
}

/** Opens all there is, deepest first: the order of keys. */
async function openAll(frontier: Frontier, reader: BlockReader): Promise<void> {
  for (let depth = frontier.queues.length - 1; depth >= 0;) {
    const { head, tail } = frontier.queue(depth)
    if (head === tail) depth--
    else {
      await open(frontier, reader, depth)
      depth = frontier.queues.length - 1
    }
  }
}

function frontierOf({ reader, root }: Tree, range: KeyRange = ALL_KEYS, takenAt?: number): Frontier {
  const frontier = new Frontier(reader, range, takenAt)
  frontier.queue(0).push(root, ALL_KEYS.low, ALL_KEYS.high)
  return frontier
}

test('a queue of subtrees keeps them in order, however it is filled and emptied', (t) => {
  fc.assert(
    fc.property(fc.array(fc.record({ push: fc.nat({ max: 300 }), take: fc.nat({ max: 300 }) })), (steps) => {
      const queue = new SubtreeQueue()
      let pushed = 0
      let taken = 0
      for (const { push, take } of steps) {
        for (let i = 0; i < push; i++, pushed++) queue.push(2 ** 40 + pushed, 2 * pushed, 2 * pushed + 1)
        t.is(queue.tail - queue.head, pushed - taken)
        queue.compared = queue.tail
        for (let i = 0; i < take && taken < pushed; i++, taken++) {
          queue.asked = Math.max(queue.asked, queue.head + 1)
          const at = queue.head++
          const right = queue.blocks[at] === 2 ** 40 + taken && queue.lows[at] === 2 * taken
          if (!right || queue.highs[at] !== 2 * taken + 1) t.fail(`subtree ${taken} is not the next one`)
        }
        t.true(queue.head <= queue.asked && queue.asked <= queue.tail)
      }
      // Its memory follows what waits at one time, not what has ever passed through.
      t.true(queue.blocks.length <= 4 * Math.max(256, ...runningSizes(steps)))
    })
  )
})

function runningSizes(steps: readonly { push: number; take: number }[]): number[] {
  let size = 0
  return steps.map(({ push, take }) => {
    const most = size + push
    size = Math.max(0, most - take)
    return most
  })
}

test('a queue that is moved to make room keeps what is being read and what was compared', (t) => {
  const queue = new SubtreeQueue()
  for (let i = 0; i < 256; i++) queue.push(i, i, i + 1)
  queue.head = 200
  queue.asked = 210
  queue.compared = 256
  queue.push(256, 256, 257)
  t.deepEqual([queue.head, queue.asked, queue.compared, queue.tail], [0, 10, 56, 57])
  t.deepEqual(
    [...queue.blocks.subarray(0, 57)],
    Array.from({ length: 57 }, (_, i) => 200 + i)
  )
})

test('a queue of mappings keeps them in order and finds a bound', (t) => {
  const step = fc.record({
    gaps: fc.array(fc.integer({ min: 1, max: 2 ** 33 }), { maxLength: 252 }),
    take: fc.nat({ max: 300 })
  })
  fc.assert(
    fc.property(
      fc.array(step, { maxLength: 20 }),
      fc.array(fc.double({ min: 0, max: 1, noNaN: true })),
      (steps, at) => {
        const queue = new MappingQueue()
        const expected: number[] = []
        let key = 0
        for (const { gaps, take } of steps) {
          queue.reserve(gaps.length)
          for (const gap of gaps) {
            key += gap
            queue.keys[queue.tail] = key
            queue.data[queue.tail++] = key * 2
            expected.push(key)
          }
          t.deepEqual([...queue.keys.subarray(queue.head, queue.tail)], expected)
          t.true(queue.data.subarray(queue.head, queue.tail).every((data, i) => data === 2 * expected[i]))
          for (const bound of [0, ...at.map((place) => Math.floor(place * key)), key, key + 1, Infinity]) {
            const below = expected.findIndex((each) => each >= bound)
            t.is(queue.indexOf(bound) - queue.head, below < 0 ? expected.length : below)
          }
          const taken = Math.min(take, expected.length)
          expected.splice(0, taken)
          queue.head += taken
        }
      }
    )
  )
})

test('a tree that is opened in order gives all its mappings in order', async (t) => {
  for (const blocks of [0, 1, 6, 7, 40, 300]) {
    const tree = await makeTree(t, blocks)
    const frontier = frontierOf(tree)
    t.is(frontier.mappingHorizon, 0)
    await openAll(frontier, tree.reader)
    t.deepEqual(known(frontier), tree.mappings)
    t.is(frontier.leafDepth, tree.height - 1)
    t.is(frontier.mappingHorizon, Infinity)
  }
})

test('of a leaf, only the entries that matter are added', async (t) => {
  const tree = await makeTree(t, 6)
  const frontier = frontierOf(tree, { low: 3, high: 15 })
  frontier.queue(0).asked = 1
  await tree.reader.read(tree.root, checksumSalt.btreeNode, (window) => {
    const leaf = frontier.take(window, 0, 0)
    t.is(leaf?.entries, 6)
    if (!leaf) return
    t.deepEqual(known(frontier), [])
    frontier.addMappings(window.words, leaf, 0, 2)
    frontier.addMappings(window.words, leaf, 2, 2)
    frontier.addMappings(window.words, leaf, 4, 6)
  })
  t.deepEqual(known(frontier), [tree.mappings[1], tree.mappings[4]])
})

test('the horizon is the lowest key not known yet, at each depth', async (t) => {
  const tree = await makeTree(t, 100)
  t.is(tree.height, 4)
  const frontier = frontierOf(tree)
  t.deepEqual(
    [0, 1, 2, 3, 9].map((depth) => frontier.horizon(depth)),
    [Infinity, 0, 0, 0, 0]
  )
  await open(frontier, tree.reader, 0)
  const { lows } = frontier.queue(1)
  t.deepEqual([frontier.horizon(1), frontier.horizon(2), frontier.mappingHorizon], [Infinity, 0, 0])
  await open(frontier, tree.reader, 1)
  t.is(frontier.horizon(2), lows[1])
  t.is(frontier.horizon(3), 0)
  await open(frontier, tree.reader, 2)
  t.is(frontier.horizon(3), frontier.queue(2).lows[1])
  t.is(frontier.mappingHorizon, 0)
  await open(frontier, tree.reader, 3)
  t.is(frontier.mappingHorizon, frontier.queue(3).lows[1])
  const [keys, end] = [known(frontier).map(([key]) => key), frontier.mappingHorizon]
  t.deepEqual(
    keys,
    tree.mappings.map(([key]) => key).filter((key) => key < end)
  )
})

test('only what lies in the range is kept or followed', async (t) => {
  const tree = await makeTree(t, 300)
  await fc.assert(
    fc.asyncProperty(fc.nat({ max: 950 }), fc.nat({ max: 950 }), async (low, length) => {
      const range = { low, high: low + length }
      const frontier = frontierOf(tree, range)
      const before = tree.reader.statistics.nodesRead
      await openAll(frontier, tree.reader)
      const inside = tree.mappings.filter(([key]) => key >= low && key < range.high)
      t.deepEqual(known(frontier), inside)
      // A node has at least two entries or is an only child; on either side one more may reach into the range.
      const nodes = tree.reader.statistics.nodesRead - before
      t.true(nodes <= tree.height * (Math.ceil(inside.length / 2) + 2), `${nodes} nodes for ${inside.length} mappings`)
    }),
    { numRuns: 50 }
  )
})

test('lowered, a tree stands so many levels deeper and is otherwise the same', async (t) => {
  const tree = await makeTree(t, 40)
  const frontier = frontierOf(tree)
  await open(frontier, tree.reader, 0)
  const [horizon, waiting] = [frontier.horizon(2), frontier.queue(1).tail]
  frontier.lower(2)
  t.is(frontier.queue(3).tail, waiting)
  t.is(frontier.queue(1).tail, 0)
  t.is(frontier.horizon(4), horizon)
  t.is(frontier.leafDepth, undefined)
  await openAll(frontier, tree.reader)
  t.is(frontier.leafDepth, tree.height - 1 + 2)
  t.deepEqual(known(frontier), tree.mappings)
})

test('leaves at different depths are damage', async (t) => {
  const tree = await makeTree(t, 100, (image) => {
    // Blocks in the order of keys, parents first: the last internal node above the leaves becomes a child of the root.
    const lowest = [...image.mappingNodes(1)].findLast((block) => new NodeFields(blockOf(image.bytes, block)).internal)
    rewrite(image.mappingRoot(1), 'node', 'skips a level', (root) => {
      const fields = new NodeFields(root)
      fields.setValue(fields.entries - 1, BigInt(lowest ?? 0))
    }).apply(image.bytes)
  })
  const error = await t.throwsAsync<DeltamapperError>(openAll(frontierOf(tree), tree.reader), {
    instanceOf: DeltamapperError
  })
  t.is(error?.code, 'DM_METADATA_DAMAGED')
  t.regex(error?.message ?? '', /stands at a depth where its tree cannot have such a node/)
})

test('a tree that should have been left alone since some time shows by the times of its mappings whether it was', async (t) => {
  // All its mappings are of time 5.
  const tree = await makeTree(t, 40)
  const untouched = frontierOf(tree, ALL_KEYS, 6)
  await openAll(untouched, tree.reader)
  t.is(known(untouched).length, 40)
  t.is(untouched.writtenBlock, undefined)
  const written = frontierOf(tree, ALL_KEYS, 5)
  await openAll(written, tree.reader)
  t.is(written.writtenBlock, 0)
})
