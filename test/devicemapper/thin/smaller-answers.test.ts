/**
 * Damage under a right checksum that would make an answer smaller: what metadata says of itself is held against what is found, so that such
 * an answer does not end well. The first three are what a field trial found.
 */
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'

import test from 'ava'
import type { ExecutionContext } from 'ava'

import type { ExtentAnswer } from '../../../src/devicemapper/extents.ts'
import { openPoolMetadata, type PoolMetadata } from '../../../src/devicemapper/thin/pool-metadata.ts'
import { DeltamapperError } from '../../../src/errors.ts'
import { collectExtents } from '../../support/collect-extents.ts'
import { blockOf, NodeFields, rewrite } from '../../support/metadata-damage.ts'
import { type MetadataImage, writeMetadataImage } from '../../support/metadata-image.ts'
import { PoolModel } from '../../support/pool-model.ts'
import { Random } from '../../support/random.ts'
import { testFolder } from '../../support/test-folder.ts'

const folder = testFolder(test)
const KIB_64 = 65536
const MAPPED = 400
const WHOLE = MAPPED * KIB_64
let images = 0

/**
 * Device 1 with one mapping; device 2, its snapshot, with 400 in a root and three leaves; device 3, a snapshot of that, and device 4, one
 * of that, of which block 0 was written to and block 399 discarded; device 5 has the tree of device 4.
 */
function model(): PoolModel {
  const pool = new PoolModel({
    random: new Random(12),
    shape: { leafEntries: 252, internalEntries: 252, split: 'middle' }
  })
  pool.createThin(1)
  pool.write(1, 0)
  pool.createSnapshot(2, 1)
  for (let block = 0; block < MAPPED; block++) pool.write(2, block)
  pool.createSnapshot(3, 2)
  pool.createSnapshot(4, 3)
  pool.write(4, 0)
  pool.discard(4, MAPPED - 1)
  pool.createSnapshot(5, 4)
  return pool
}

async function damagedPool(
  t: ExecutionContext,
  damage: (image: MetadataImage) => void = () => undefined
): Promise<PoolMetadata> {
  const image = writeMetadataImage(model(), { random: new Random(3) })
  damage(image)
  const path = join(folder, `${images++}.img`)
  await writeFile(path, image.bytes)
  const metadata = await openPoolMetadata(path)
  t.teardown(() => metadata.close())
  return metadata
}

function change(image: MetadataImage, block: number, what: (node: NodeFields) => void): void {
  rewrite(block, 'node', 'changed', (bytes) => what(new NodeFields(bytes))).apply(image.bytes)
}

const nodeOf = (image: MetadataImage, block: number) => new NodeFields(blockOf(image.bytes, block))

/** The leaves of a device, in order. */
const leavesOf = (image: MetadataImage, deviceId: number) =>
  [...image.mappingNodes(deviceId)].filter((block) => !nodeOf(image, block).internal)

async function isDamage(t: ExecutionContext, ask: () => Promise<ExtentAnswer>, says: RegExp) {
  const error = await t.throwsAsync(
    async () => {
      await collectExtents(await ask())
    },
    { instanceOf: DeltamapperError }
  )
  t.is(error?.code, 'DM_METADATA_DAMAGED')
  t.regex(error?.message ?? '', /^metadata block \d+ /)
  t.regex(error?.message ?? '', says)
}

test('undamaged, everything adds up', async (t) => {
  const metadata = await damagedPool(t)
  t.deepEqual(await collectExtents(await metadata.allocated({ deviceId: 2 })), [[0, WHOLE]])
  for (const sizeBytes of [undefined, WHOLE, 2 * WHOLE, 252 * KIB_64, 130 * KIB_64, KIB_64, 0]) {
    const size = sizeBytes ?? WHOLE
    const cut = size === 0 ? [] : [[0, Math.min(size, WHOLE)]]
    t.deepEqual(await collectExtents(await metadata.allocated({ deviceId: 2, sizeBytes })), cut as never)
    t.deepEqual(await collectExtents(await metadata.delta({ baseId: 2, targetId: 3, sizeBytes })), [])
    t.deepEqual(await collectExtents(await metadata.delta({ baseId: 4, targetId: 5, sizeBytes })), [])
    const [one, other] = [
      await collectExtents(await metadata.delta({ baseId: 2, targetId: 4, sizeBytes: size })),
      await collectExtents(await metadata.delta({ baseId: 4, targetId: 2, sizeBytes: size }))
    ]
    t.deepEqual(one, other)
    t.is(one.length, size === 0 ? 0 : size < WHOLE ? 1 : 2)
  }
})

test('a key of an internal node beyond the size is looked into', async (t) => {
  const metadata = await damagedPool(t, (image) => {
    change(image, image.mappingRoot(2), (root) => root.setKey(root.entries - 1, root.key(root.entries - 1) + 2n ** 20n))
  })
  for (const sizeBytes of [WHOLE, WHOLE + 1, 2 ** 40]) {
    await isDamage(t, () => metadata.allocated({ deviceId: 2, sizeBytes }), /its parent's/)
    await isDamage(t, () => metadata.delta({ baseId: 1, targetId: 2, sizeBytes }), /its parent's/)
    await isDamage(t, () => metadata.delta({ baseId: 4, targetId: 2, sizeBytes }), /its parent's/)
    await isDamage(t, () => metadata.delta({ baseId: 2, targetId: 4, sizeBytes }), /its parent's/)
  }
})

test('a leaf that claims fewer entries than it has', async (t) => {
  const metadata = await damagedPool(t, (image) => {
    const [, , last] = leavesOf(image, 2)
    change(image, last, (leaf) => (leaf.entries -= 48))
  })
  for (const sizeBytes of [undefined, WHOLE, 2 ** 40]) {
    await isDamage(t, () => metadata.allocated({ deviceId: 2, sizeBytes }), /maps 352 data blocks, .* say 400/)
    await isDamage(t, () => metadata.delta({ baseId: 1, targetId: 2, sizeBytes }), /351 data blocks more .* 400 and 1$/)
    await isDamage(t, () => metadata.delta({ baseId: 2, targetId: 1, sizeBytes }), /351 data blocks less .* 1 and 400$/)
    await isDamage(
      t,
      () => metadata.delta({ baseId: 2, targetId: 4, sizeBytes }),
      /47 data blocks more .* 399 and 400$/
    )
  }
  // What both share is the same in both, whatever it is.
  t.deepEqual(await collectExtents(await metadata.delta({ baseId: 2, targetId: 3 })), [])
})

test("a device that begins at another's root", async (t) => {
  const metadata = await damagedPool(t, (image) => {
    const [topLevel] = image.topLevelNodes()
    change(image, topLevel, (node) => node.setValue(1, BigInt(image.mappingRoot(1))))
  })
  for (const sizeBytes of [undefined, KIB_64, WHOLE]) {
    const question = { baseId: 1, targetId: 2, sizeBytes }
    await isDamage(
      t,
      () => metadata.delta(question),
      /the two devices whose tree begins there .* 1 and 400 data blocks$/
    )
  }
  // Wherever it begins, and also where nothing is left to ask.
  const startingOffset = KIB_64
  await isDamage(t, () => metadata.delta({ baseId: 1, targetId: 2, sizeBytes: WHOLE, startingOffset }), /1 and 400/)
  await isDamage(t, () => metadata.allocated({ deviceId: 2, sizeBytes: WHOLE }), /maps 1 data blocks, .* say 400$/)
  await isDamage(t, () => metadata.delta({ baseId: 4, targetId: 2, sizeBytes: WHOLE }), /399 and 400|400 and 399/)
})

test('a device that begins in the middle of its tree', async (t) => {
  const metadata = await damagedPool(t, (image) => {
    const [topLevel] = image.topLevelNodes()
    change(image, topLevel, (node) => node.setValue(1, nodeOf(image, image.mappingRoot(2)).value(0)))
  })
  await isDamage(t, () => metadata.allocated({ deviceId: 2 }), /say 400$/)
  await isDamage(t, () => metadata.delta({ baseId: 4, targetId: 2 }), /399/)
})

test('a count in the device details that the tree does not bear out', async (t) => {
  const metadata = await damagedPool(t, (image) => {
    const [details] = image.detailsNodes()
    change(image, details, (node) => node.setValue(1, 401n))
  })
  await isDamage(t, () => metadata.allocated({ deviceId: 2 }), /maps 400 data blocks, .* say 401$/)
  await isDamage(t, () => metadata.delta({ baseId: 2, targetId: 3 }), /401 and 400 data blocks$/)
  await isDamage(t, () => metadata.delta({ baseId: 4, targetId: 2 }), /1 data block more .* 401 and 399$/)
  // Whose count it is not, that may be asked about; so may a part of it, which nothing is counted for.
  t.deepEqual(await collectExtents(await metadata.allocated({ deviceId: 3 })), [[0, WHOLE]])
  t.deepEqual(await collectExtents(await metadata.allocated({ deviceId: 2, sizeBytes: KIB_64 })), [[0, KIB_64]])
})

test('more than the details say is as wrong, also where a size cuts off the rest', async (t) => {
  const metadata = await damagedPool(t, (image) => {
    const [details] = image.detailsNodes()
    change(image, details, (node) => node.setValue(1, 100n))
  })
  await isDamage(
    t,
    () => metadata.allocated({ deviceId: 2, sizeBytes: 150 * KIB_64 }),
    /maps \d+ data blocks.*, .* say 100$/
  )
})

test('what a size cuts off costs a block at each level, and nothing where both have it', async (t) => {
  const pool = new PoolModel({ random: new Random(4), shape: { leafEntries: 6, internalEntries: 6, split: 'middle' } })
  pool.createThin(1)
  for (let block = 0; block < 1000; block++) pool.write(1, block)
  pool.createSnapshot(2, 1)
  pool.write(2, 0)
  const path = join(folder, 'cut.img')
  await writeFile(path, writeMetadataImage(pool, { random: new Random(5) }).bytes)
  const metadata = await openPoolMetadata(path)
  t.teardown(() => metadata.close())
  const { height } = pool.device(1).tree
  const cost = async (ask: () => Promise<ExtentAnswer>) => {
    const stream = await ask()
    const before = metadata.statistics.nodesRead
    await collectExtents(stream)
    return metadata.statistics.nodesRead - before
  }
  t.true(height >= 4)
  t.is(await cost(() => metadata.delta({ baseId: 1, targetId: 2, sizeBytes: 4 * KIB_64 })), 2 * height)
  t.true((await cost(() => metadata.allocated({ deviceId: 1, sizeBytes: KIB_64 }))) <= 2 * height - 1)
})
