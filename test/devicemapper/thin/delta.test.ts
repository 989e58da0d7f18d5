import { truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'

import test from 'ava'
import type { ExecutionContext } from 'ava'
import fc from 'fast-check'

import { BlockReader } from '../../../src/devicemapper/block-reader.ts'
import { changedExtents, type MappingDelta } from '../../../src/devicemapper/thin/delta.ts'
import { DeltamapperError } from '../../../src/errors.ts'
import { collectExtents } from '../../support/collect-extents.ts'
import { blockOf, flipByte, NodeFields, rewrite } from '../../support/metadata-damage.ts'
import { writeMetadataImage } from '../../support/metadata-image.ts'
import type { MetadataImage } from '../../support/metadata-image.ts'
import type { TreeShape } from '../../support/persistent-tree.ts'
import { PoolModel } from '../../support/pool-model.ts'
import { flavours, randomModel } from '../../support/random-pool.ts'
import { Random } from '../../support/random.ts'
import { testFolder } from '../../support/test-folder.ts'

type Extent = readonly [offset: number, size: number]

const KIB_64 = 65536
const small: TreeShape = { leafEntries: 6, internalEntries: 6, split: 'middle' }
const kernel: TreeShape = { leafEntries: 252, internalEntries: 252, split: 'middle' }
const folder = testFolder(test)
let images = 0

function newModel(shape = small): PoolModel {
  return new PoolModel({ random: new Random(1), shape })
}

/** A pool in a file, and its reader with a count of what it has under way. */
class Pool {
  readonly model: PoolModel
  readonly image: MetadataImage
  readonly path: string
  readonly reader: BlockReader
  /** Windows that are being read, and windows that were handed out and not given back. */
  readonly open = { reads: 0, windows: 0 }

  private constructor(model: PoolModel, image: MetadataImage, path: string, reader: BlockReader) {
    this.model = model
    this.image = image
    this.path = path
    this.reader = reader
    const [load, release] = [reader.load.bind(reader), reader.release.bind(reader)]
    reader.load = async (...args) => {
      this.open.reads++
      // A load that fails gives its window back itself.
      this.open.windows++
      try {
        return await load(...args)
      } finally {
        this.open.reads--
      }
    }
    reader.release = (window) => {
      this.open.windows--
      release(window)
    }
  }

  static async write(
    t: ExecutionContext,
    model: PoolModel,
    damage: (image: MetadataImage) => void = () => undefined
  ): Promise<Pool> {
    const image = writeMetadataImage(model, { random: new Random(2), placement: 'scattered' })
    damage(image)
    const path = join(folder, `${images++}.img`)
    await writeFile(path, image.bytes)
    const reader = await BlockReader.open(path)
    t.teardown(() => reader.close())
    return new Pool(model, image, path, reader)
  }

  get nodesRead(): number {
    return this.reader.statistics.nodesRead
  }

  question(baseId: number | undefined, targetId: number, more: Partial<MappingDelta> = {}): MappingDelta {
    return {
      reader: this.reader,
      baseRoot: baseId === undefined ? undefined : this.image.mappingRoot(baseId),
      targetRoot: this.image.mappingRoot(targetId),
      blockBytes: this.model.blockSizeBytes,
      sizeBytes: Number.MAX_SAFE_INTEGER,
      firstBlock: 0,
      baseEndBlock: Infinity,
      targetTakenAt: Infinity,
      baseTakenAt: Infinity,
      originBlocks: 0,
      ...more
    }
  }

  async ask(...question: Parameters<Pool['question']>): Promise<Extent[]> {
    const delta = this.question(...question)
    return collectExtents({ capacityBytes: delta.sizeBytes, batches: changedExtents(delta) })
  }

  /** Nodes that one of two trees has and the other has not. */
  nodesThatDiffer(baseId: number, targetId: number): number {
    return this.image.mappingNodes(baseId).symmetricDifference(this.image.mappingNodes(targetId)).size
  }
}

/** The rule itself, block by block. */
function naive(model: PoolModel, baseId: number | undefined, targetId: number, delta: MappingDelta): Extent[] {
  const base = new Map(baseId === undefined ? [] : [...model.device(baseId).tree.entries()])
  const target = new Map(model.device(targetId).tree.entries())
  const end = Math.ceil(delta.sizeBytes / delta.blockBytes)
  const changed = new Set<number>()
  for (let block = 0; block < Math.min(delta.originBlocks, end); block++) changed.add(block)
  for (const block of new Set([...base.keys(), ...target.keys()])) {
    const differs = base.get(block)?.block !== target.get(block)?.block
    if (differs || (target.has(block) && block >= delta.baseEndBlock)) changed.add(block)
  }
  const extents: [number, number][] = []
  for (const block of [...changed].sort((one, other) => one - other)) {
    if (block < delta.firstBlock || block >= end) continue
    const begin = block * delta.blockBytes
    const size = Math.min(begin + delta.blockBytes, delta.sizeBytes) - begin
    const last = extents.at(-1)
    if (last && last[0] + last[1] === begin) last[1] += size
    else extents.push([begin, size])
  }
  return extents
}

test('whatever happened between two devices, exactly what differs is said', async (t) => {
  const place = fc.double({ min: 0, max: 1.2, noNaN: true })
  const history = fc.record({
    seed: fc.nat(),
    flavour: fc.constantFrom(...flavours.filter((each) => each !== 'huge numbers' && each !== 'many devices')),
    base: fc.option(fc.nat()),
    target: fc.nat(),
    size: place,
    first: fc.option(place),
    baseEnd: fc.option(place),
    origin: fc.option(place)
  })
  await fc.assert(
    fc.asyncProperty(history, async ({ seed, flavour, base, target, size, first, baseEnd, origin }) => {
      const pool = await Pool.write(t, randomModel(new Random(seed), flavour))
      const ids = [...pool.model.devices.keys()]
      const [baseId, targetId] = [base === null ? undefined : ids[base % ids.length], ids[target % ids.length]]
      const blocks = 1 + Math.max(0, ...[...pool.model.device(targetId).tree.entries()].map(([key]) => key))
      const at = (place: number | null, otherwise: number) => (place === null ? otherwise : Math.floor(place * blocks))
      const delta = pool.question(baseId, targetId, {
        sizeBytes: Math.floor(size * blocks * pool.model.blockSizeBytes),
        firstBlock: at(first, 0),
        // Without a base there is nothing that it could be smaller than.
        baseEndBlock: baseId === undefined ? Infinity : at(baseEnd, Infinity),
        originBlocks: at(origin, 0)
      })
      const extents = await collectExtents({ capacityBytes: delta.sizeBytes, batches: changedExtents(delta) })
      t.deepEqual(extents, naive(pool.model, baseId, targetId, delta))
      t.deepEqual(pool.open, { reads: 0, windows: 0 })
    }),
    { numRuns: 80 }
  )
})

test('a tree of any height is compared with one of any other', async (t) => {
  const model = newModel()
  const sizes = [0, 1, 6, 7, 30, 130, 600]
  for (const [index, size] of sizes.entries()) {
    model.createThin(index)
    for (let block = 0; block < size; block++) model.write(index, 2 * block)
  }
  const pool = await Pool.write(t, model)
  const heights = new Set(sizes.map((_, id) => model.device(id).tree.height))
  t.true(heights.size >= 5, `heights ${[...heights].join()}`)
  for (const baseId of sizes.keys()) {
    for (const targetId of sizes.keys()) {
      if (baseId === targetId) continue
      const most = Math.max(sizes[baseId], sizes[targetId])
      const expected = Array.from({ length: most }, (_, block) => [2 * block * KIB_64, KIB_64])
      t.deepEqual(await pool.ask(baseId, targetId), expected as [number, number][], `${baseId} to ${targetId}`)
    }
  }
})

test('one root costs nothing, one changed block two paths, wherever it is', async (t) => {
  const model = newModel()
  model.createThin(1)
  for (let block = 0; block < 2000; block++) model.write(1, block)
  model.createSnapshot(2, 1)
  const changed = [0, 1, 777, 1998, 1999]
  for (const [index, block] of changed.entries()) {
    model.createSnapshot(10 + index, 2)
    model.write(10 + index, block)
  }
  const pool = await Pool.write(t, model)
  const { height } = model.device(1).tree
  t.true(height >= 5)

  t.deepEqual(await pool.ask(1, 2), [])
  t.deepEqual(await pool.ask(2, 2), [])
  t.deepEqual(pool.reader.statistics, { nodesRead: 0, bytesRead: 0, readCalls: 0 })

  for (const [index, block] of changed.entries()) {
    for (const [baseId, targetId] of [
      [2, 10 + index],
      [10 + index, 2]
    ]) {
      const before = pool.nodesRead
      t.deepEqual(await pool.ask(baseId, targetId), [[block * KIB_64, KIB_64]])
      t.is(pool.nodesRead - before, 2 * height)
    }
  }
})

test('a tree that has grown taller or shorter still shares what it shares', async (t) => {
  const model = newModel()
  model.createThin(1)
  for (let block = 0; block < 400; block++) model.write(1, 10 * block)
  model.createSnapshot(2, 1)
  const { height } = model.device(1).tree
  let block = 2000
  while (model.device(1).tree.height === height) model.write(1, block++)
  model.createSnapshot(3, 2)
  for (let block = 399; model.device(3).tree.height === height; block--) model.discard(3, 10 * block)
  const pool = await Pool.write(t, model)
  t.deepEqual(
    [1, 2, 3].map((id) => model.device(id).tree.height - height),
    [1, 0, -1]
  )
  for (const [baseId, targetId] of [
    [2, 1],
    [1, 2],
    [2, 3],
    [3, 2],
    [1, 3],
    [3, 1]
  ]) {
    const before = pool.nodesRead
    const extents = await pool.ask(baseId, targetId)
    t.deepEqual(extents, naive(model, baseId, targetId, pool.question(baseId, targetId)))
    // Beyond what differs, finding out which tree is taller costs one path in each at the most.
    const cost = pool.nodesRead - before
    const most = pool.nodesThatDiffer(baseId, targetId) + 2 * height
    t.true(cost <= most, `${baseId} to ${targetId}: ${cost} nodes read, ${most} expected at the most`)
  }
})

test('a sparse tree does not make a full one pile up: extents leave as the walk goes on', async (t) => {
  const model = newModel(kernel)
  const blocks = 600_000
  model.createThin(1)
  model.load(
    1,
    Array.from({ length: blocks / 2 }, (_, key) => [2 * key, { block: key, time: 0 }]),
    () => 126
  )
  // Two leaves that span half of the volume each.
  model.createThin(2)
  for (let key = 0; key < 300; key++) model.write(2, 2000 * key)
  const pool = await Pool.write(t, model)
  const nodes = pool.image.mappingNodes(1).size
  t.is(model.device(2).tree.height, 2)
  for (const [baseId, targetId] of [
    [1, 2],
    [2, 1]
  ]) {
    const start = pool.nodesRead
    let reached = 0
    for await (const { count, offsets, sizes } of changedExtents(pool.question(baseId, targetId))) {
      reached = (offsets[count - 1] + sizes[count - 1]) / KIB_64
      // Read by now: what led here, and three windows ahead.
      const [cost, share] = [pool.nodesRead - start, reached / blocks]
      t.true(cost <= share * nodes + 450, `${cost} nodes of ${nodes} were read for ${share} of the volume`)
    }
    t.is(reached, blocks - 1)
  }
})

test('batches stay small, however many extents there are', async (t) => {
  const model = newModel(kernel)
  model.createThin(1)
  model.load(
    1,
    Array.from({ length: 200_000 }, (_, key) => [2 * key, { block: key, time: 0 }]),
    () => 252
  )
  const pool = await Pool.write(t, model)
  const counts: number[] = []
  let windows = 0
  for await (const { count } of changedExtents(pool.question(undefined, 1))) {
    counts.push(count)
    windows = Math.max(windows, pool.open.windows)
  }
  t.is(
    counts.reduce((sum, count) => sum + count),
    200_000
  )
  t.true(counts[0] <= 64 * 252, `the first batch has ${counts[0]} extents`)
  t.true(Math.max(...counts) <= 128 * 252)
  t.true(windows <= 3, `${windows} windows were open at once`)
})

/** A walk with several windows of leaves ahead of it. */
async function longWalk(t: ExecutionContext, damage?: (image: MetadataImage) => void) {
  const model = newModel()
  model.createThin(1)
  for (let key = 0; key < 40_000; key++) model.write(1, 2 * key)
  return Pool.write(t, model, damage)
}

test('a walk that is left has nothing under way any more, and the file can be closed', async (t) => {
  const pool = await longWalk(t)
  for (const batches of [1, 2, 5]) {
    let seen = 0
    for await (const { count } of changedExtents(pool.question(undefined, 1))) {
      t.true(count > 0)
      if (++seen === batches) break
    }
    t.deepEqual(pool.open, { reads: 0, windows: 0 })
  }
  const never = changedExtents(pool.question(undefined, 1))
  await never.return(false)
  t.true((await never.next()).done)
  await pool.reader.close()
})

test('an abort ends a walk at once, with its reason', async (t) => {
  const pool = await longWalk(t)
  const reason = new DeltamapperError('DM_DEADLINE_EXCEEDED', 'too late', 'be earlier')
  for (const after of [0, 1, 3]) {
    const controller = new AbortController()
    const walk = changedExtents(pool.question(undefined, 1, { signal: controller.signal }))
    for (let batch = 0; batch < after; batch++) t.false((await walk.next()).done)
    const before = pool.nodesRead
    controller.abort(reason)
    await t.throwsAsync(walk.next(), { is: reason })
    t.is(pool.nodesRead, before, 'nothing is read after it')
    t.deepEqual(pool.open, { reads: 0, windows: 0 })
    t.true((await walk.next()).done)
  }
  // While a read is under way.
  const controller = new AbortController()
  const walk = changedExtents(pool.question(undefined, 1, { signal: controller.signal }))
  const next = walk.next()
  setImmediate(() => controller.abort(reason))
  const error: unknown = await next.then(
    () => walk.next().then(String, (thrown: unknown) => thrown),
    (thrown: unknown) => thrown
  )
  t.is(error, reason)
  t.deepEqual(pool.open, { reads: 0, windows: 0 })
})

test('damage further on does not spoil what came before, and ends the walk when it is reached', async (t) => {
  const whole = await (await longWalk(t)).ask(undefined, 1)
  let damaged = 0
  const pool = await longWalk(t, (image) => {
    const leaves = [...image.mappingNodes(1)].filter((block) => !new NodeFields(blockOf(image.bytes, block)).internal)
    damaged = leaves[Math.floor(leaves.length * 0.9)]
    flipByte(damaged, 100, 4).apply(image.bytes)
  })
  const extents: Extent[] = []
  const error = await t.throwsAsync<DeltamapperError>(
    async () => {
      for await (const { count, offsets, sizes } of changedExtents(pool.question(undefined, 1))) {
        for (let i = 0; i < count; i++) extents.push([offsets[i], sizes[i]])
      }
    },
    { instanceOf: DeltamapperError }
  )
  t.is(error?.code, 'DM_METADATA_DAMAGED')
  t.true(error?.message.startsWith(`metadata block ${damaged} of ${pool.path} `))
  t.deepEqual(extents, whole.slice(0, extents.length))
  t.true(extents.length > whole.length / 2)
  t.deepEqual(pool.open, { reads: 0, windows: 0 })
})

test('a read that fails ends the walk, with nothing left under way', async (t) => {
  const pool = await longWalk(t)
  const walk = changedExtents(pool.question(undefined, 1))
  t.false((await walk.next()).done)
  await truncate(pool.path, 0)
  const error = await t.throwsAsync<DeltamapperError>(
    async () => {
      while (!(await walk.next()).done);
    },
    { instanceOf: DeltamapperError }
  )
  t.is(error?.code, 'DM_READ_FAILED')
  t.deepEqual(pool.open, { reads: 0, windows: 0 })
})

test('what the target maps beyond a smaller base is changed, also in nodes that both share', async (t) => {
  const model = newModel()
  model.createThin(1)
  for (let block = 0; block < 100; block++) model.write(1, block)
  model.createSnapshot(2, 1)
  model.discard(2, 90)
  const pool = await Pool.write(t, model)
  t.deepEqual(await pool.ask(1, 2, { baseEndBlock: 100 }), [[90 * KIB_64, KIB_64]])
  t.deepEqual(await pool.ask(1, 2, { baseEndBlock: 95 }), [
    [90 * KIB_64, KIB_64],
    [95 * KIB_64, 5 * KIB_64]
  ])
  // 90 is changed because the base maps it and the target does not, not because of where the base ends.
  t.deepEqual(await pool.ask(1, 2, { baseEndBlock: 0 }), [[0, 100 * KIB_64]])
  t.deepEqual(await pool.ask(2, 2, { baseEndBlock: 40 }), [
    [40 * KIB_64, 50 * KIB_64],
    [91 * KIB_64, 9 * KIB_64]
  ])
  t.deepEqual(await pool.ask(2, 2, { baseEndBlock: 40, firstBlock: 60, sizeBytes: 92 * KIB_64 + 1 }), [
    [60 * KIB_64, 30 * KIB_64],
    [91 * KIB_64, KIB_64 + 1]
  ])
})

test('the shared part below a smaller base is still not read', async (t) => {
  const model = newModel()
  model.createThin(1)
  for (let block = 0; block < 2000; block++) model.write(1, block)
  model.createSnapshot(2, 1)
  const pool = await Pool.write(t, model)
  t.deepEqual(await pool.ask(1, 2, { baseEndBlock: 1999 }), [[1999 * KIB_64, KIB_64]])
  const { height } = model.device(1).tree
  t.true(pool.nodesRead <= 3 * height, `${pool.nodesRead} nodes read`)
})

test('nothing is read for a range that holds nothing', async (t) => {
  const pool = await longWalk(t)
  t.deepEqual(await pool.ask(undefined, 1, { sizeBytes: 0 }), [])
  t.deepEqual(await pool.ask(undefined, 1, { sizeBytes: 10 * KIB_64, firstBlock: 10 }), [])
  t.deepEqual(await pool.ask(undefined, 1, { firstBlock: Infinity }), [])
  t.is(pool.nodesRead, 0)
})

test('a base that was written to since it was taken is found out', async (t) => {
  const model = newModel()
  model.createThin(1)
  for (let block = 0; block < 50; block++) model.write(1, block)
  const base = model.createSnapshot(2, 1)
  model.write(1, 7)
  const target = model.createSnapshot(3, 1)
  const before = await Pool.write(t, model)
  const taken = { baseTakenAt: base.creationTime }
  t.true(target.creationTime > base.creationTime)
  t.deepEqual(await before.ask(2, 3, taken), [[7 * KIB_64, KIB_64]])

  model.write(2, 30)
  const after = await Pool.write(t, model)
  const error = await t.throwsAsync<DeltamapperError>(after.ask(2, 3, taken), { instanceOf: DeltamapperError })
  t.is(error?.code, 'DM_BASE_CHANGED')
  t.regex(error?.message ?? '', /data block 30\b/)
  t.deepEqual(await after.ask(2, 3), [
    [7 * KIB_64, KIB_64],
    [30 * KIB_64, KIB_64]
  ])
})

test('mappings are the same where their bits are, and not where they would be equal as doubles', async (t) => {
  const model = newModel()
  model.createThin(1)
  for (let block = 0; block < 5; block++) model.write(1, block)
  model.createSnapshot(2, 1)
  model.write(2, 4)
  const [zero, minusZero, noNumber] = [0n, 1n << 63n, 0x7ff8_0000_0000_0000n]
  for (const [base, target, isMoved] of [
    [zero, minusZero, true],
    [minusZero, zero, true],
    [noNumber, noNumber + (1n << 24n), true],
    [noNumber, noNumber + 1n, false],
    [noNumber, noNumber, false],
    [minusZero, minusZero, false],
    [zero, zero, false]
  ] as const) {
    const pool = await Pool.write(t, model, (image) => {
      for (const [id, value] of [
        [1, base],
        [2, target]
      ] as const) {
        const root = image.mappingRoot(id)
        rewrite(root, 'node', '', (bytes) => new NodeFields(bytes).setValue(1, value)).apply(image.bytes)
      }
    })
    const expected: Extent[] = [...(isMoved ? [[KIB_64, KIB_64] as const] : []), [4 * KIB_64, KIB_64]]
    t.deepEqual(await pool.ask(1, 2), expected, `${base} and ${target}`)
  }
})

test('what rests on a base that was written to does not leave before the damage behind it', async (t) => {
  const model = newModel(kernel)
  model.createThin(1)
  for (let block = 0; block < 800; block++) model.write(1, block)
  const base = model.createSnapshot(2, 1)
  for (let block = 0; block < 800; block += 3) model.write(1, block)
  model.createSnapshot(3, 1)
  model.write(2, 1)
  const pool = await Pool.write(t, model, (image) => {
    const leaves = [...image.mappingNodes(3)].filter((block) => !new NodeFields(blockOf(image.bytes, block)).internal)
    rewrite(leaves.at(-1)!, 'node', 'no leaf', (bytes) => (new NodeFields(bytes).flags = 0)).apply(image.bytes)
  })
  const walk = changedExtents(pool.question(2, 3, { baseTakenAt: base.creationTime }))
  await t.throwsAsync(walk.next())
  const unaware = changedExtents(pool.question(2, 3))
  t.false((await unaware.next()).done, 'otherwise something would')
  await unaware.return(false)
})

test('what an external origin provides is there, mapped or not', async (t) => {
  const model = newModel()
  model.createThin(1)
  for (const block of [3, 12, 20]) model.write(1, block)
  const pool = await Pool.write(t, model)
  t.deepEqual(await pool.ask(undefined, 1, { originBlocks: 12 }), [
    [0, 13 * KIB_64],
    [20 * KIB_64, KIB_64]
  ])
  t.deepEqual(await pool.ask(undefined, 1, { originBlocks: 30, sizeBytes: 25 * KIB_64 + 5, firstBlock: 2 }), [
    [2 * KIB_64, 23 * KIB_64 + 5]
  ])
})

test('trees that share a node but not its height are damage', async (t) => {
  const model = newModel()
  model.createThin(1)
  for (let block = 0; block < 100; block++) model.write(1, block)
  model.createSnapshot(2, 1)
  model.write(2, 99)
  // What is left of the target's own nodes is one leaf, a level higher than it was; all the others are shared, and not read.
  const pool = await Pool.write(t, model, (image) => {
    const node = (block: number | bigint) => new NodeFields(blockOf(image.bytes, Number(block)))
    rewrite(image.mappingRoot(2), 'node', 'the last child skips a level', (bytes) => {
      const root = new NodeFields(bytes)
      const last = node(root.value(root.entries - 1))
      root.setValue(root.entries - 1, last.value(last.entries - 1))
    }).apply(image.bytes)
  })
  for (const [baseId, targetId] of [
    [1, 2],
    [2, 1]
  ]) {
    const error = await t.throwsAsync<DeltamapperError>(pool.ask(baseId, targetId), { instanceOf: DeltamapperError })
    t.is(error?.code, 'DM_METADATA_DAMAGED')
    t.regex(error?.message ?? '', /leaves at odd depths/)
  }
})
