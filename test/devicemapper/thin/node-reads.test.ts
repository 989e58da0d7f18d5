/**
 * The cost of an answer follows the change, not the volume: a node that both trees hold is never read, one that only one of them holds is
 * read once. What must be read is known exactly, because the images are written from a model.
 */
import { rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'

import test from 'ava'
import type { ExecutionContext } from 'ava'

import { openPoolMetadata } from '../../../src/devicemapper/thin/pool-metadata.ts'
import type { DeltaQuestion, PoolMetadata } from '../../../src/devicemapper/thin/pool-metadata.ts'
import { collectExtents } from '../../support/collect-extents.ts'
import { writeMetadataImage } from '../../support/metadata-image.ts'
import type { MetadataImage } from '../../support/metadata-image.ts'
import { PoolModel } from '../../support/pool-model.ts'
import { flavours, writtenPool } from '../../support/random-pool.ts'
import type { ModelledPool } from '../../support/random-pool.ts'
import { Random } from '../../support/random.ts'
import { testFolder } from '../../support/test-folder.ts'

const folder = testFolder(test)
/** Sizes that cut nothing off and need no search for the highest mapping. */
const EVERYTHING = { sizeBytes: Number.MAX_SAFE_INTEGER, baseSizeBytes: Number.MAX_SAFE_INTEGER }
const KIB_64 = 65536

test('one changed block in a million costs two paths, and none costs nothing', async (t) => {
  const model = millionMappings()
  model.createSnapshot(2, 1)
  model.createSnapshot(3, 1)
  model.write(1, 654_321)
  const { metadata } = await openModel(t, model, 'one-changed.img')
  const { height } = model.device(1).tree
  t.is(height, 3)

  t.deepEqual(await costOf(metadata, { baseId: 2, targetId: 3, ...EVERYTHING }), { nodes: 0, extents: [] })
  for (const [baseId, targetId] of [
    [2, 1],
    [1, 3]
  ]) {
    const { nodes, extents } = await costOf(metadata, { baseId, targetId, ...EVERYTHING })
    t.deepEqual(extents, [[654_321 * KIB_64, KIB_64]])
    t.is(nodes, 2 * height)
  }
  const behind = { ...EVERYTHING, startingOffset: 654_322 * KIB_64 }
  const { nodes } = await costOf(metadata, { baseId: 2, targetId: 1, ...behind })
  t.true(nodes <= 2 * height)
})

test('ten thousand changed blocks in a million: the nodes that differ, and hardly one more', async (t) => {
  for (const [name, changed] of [
    ['scattered', (index: number) => (index * 104_729) % 1_000_000],
    ['clustered', (index: number) => 500_000 + index]
  ] as const) {
    const model = millionMappings()
    model.createSnapshot(2, 1)
    for (let index = 0; index < 10_000; index++) model.write(1, changed(index))
    const { metadata, image } = await openModel(t, model, `${name}.img`)
    for (const [baseId, targetId] of [
      [2, 1],
      [1, 2]
    ]) {
      const { nodes } = await costOf(metadata, { baseId, targetId, ...EVERYTHING })
      const expected = nodesThatDiffer(image, baseId, targetId, false)
      t.true(nodes >= expected && nodes <= 1.05 * expected, `${name}: read ${nodes} nodes for ${expected}`)
    }
  }
})

for (const flavour of flavours.filter((each) => each !== 'loose keys')) {
  test(`the nodes that only one of two trees has are read, and no others: ${flavour}`, async (t) => {
    for (let seed = 3000; seed < 3004; seed++) {
      const pool = await writtenPool(seed, folder, flavour)
      const metadata = await openPoolMetadata(pool.path, { liveRoot: !pool.metadataSnapshot })
      t.teardown(() => metadata.close())
      for (const baseId of pool.deviceIds) {
        for (const targetId of pool.deviceIds) {
          const { nodes } = await costOf(metadata, { baseId, targetId, ...EVERYTHING })
          const expected = nodesThatDiffer(pool.image, baseId, targetId, pool.metadataSnapshot)
          t.true(nodes >= expected, `${pool.name}: ${baseId} to ${targetId} read ${nodes} nodes of ${expected}`)
          // Finding out which of two trees is taller may take one look down each.
          const most = 1.05 * expected + (baseId === targetId ? 0 : heightOf(pool, baseId) + heightOf(pool, targetId))
          t.true(nodes <= most, `${pool.name}: ${baseId} to ${targetId} read ${nodes} nodes for ${expected}`)
        }
      }
      await rm(pool.path)
    }
  })
}

test('allocated reads every node of the tree once, and a seek only what lies ahead', async (t) => {
  const pool = await writtenPool(3100, folder, 'dense')
  const metadata = await openPoolMetadata(pool.path, { liveRoot: !pool.metadataSnapshot })
  t.teardown(() => metadata.close())
  for (const deviceId of pool.deviceIds) {
    const all = pool.image.mappingNodes(deviceId, pool.metadataSnapshot ? 'metadata-snapshot' : 'live').size
    const before = metadata.statistics.nodesRead
    await metadata.device(deviceId)
    const lookup = metadata.statistics.nodesRead - before
    await collectExtents(await metadata.allocated({ deviceId, sizeBytes: EVERYTHING.sizeBytes }))
    t.is(metadata.statistics.nodesRead - before - 2 * lookup, all)

    const beforeSeek = metadata.statistics.nodesRead
    await collectExtents(
      await metadata.allocated({ deviceId, sizeBytes: EVERYTHING.sizeBytes, startingOffset: EVERYTHING.sizeBytes - 1 })
    )
    const { height } = (pool.metadataSnapshot ? pool.model.held : pool.model)?.devices.get(deviceId)?.tree ?? {
      height: 0
    }
    t.is(metadata.statistics.nodesRead - beforeSeek - lookup, height)
  }
})

/** Device 1 with a million mappings, in nodes between a third full and full. */
function millionMappings(): PoolModel {
  const random = new Random(1)
  const model = new PoolModel({ random, shape: { leafEntries: 252, internalEntries: 252, split: 'middle' } })
  model.createThin(1)
  const mappings = Array.from({ length: 1_000_000 }, (_, key) => [key, { block: key, time: 0 }] as const)
  model.load(1, mappings, () => random.integer(84, 252))
  return model
}

async function openModel(t: ExecutionContext, model: PoolModel, name: string) {
  const image = writeMetadataImage(model, { random: new Random(2), placement: 'scattered' })
  const path = join(folder, name)
  await writeFile(path, image.bytes)
  const metadata = await openPoolMetadata(path)
  t.teardown(() => metadata.close())
  return { metadata, image }
}

function heightOf(pool: ModelledPool, deviceId: number): number {
  const device = (pool.metadataSnapshot ? pool.model.held : pool.model)?.devices.get(deviceId)
  return device?.tree.height ?? 0
}

/** What a delta reads of the two mapping trees: all that it reads, less what finding the two devices takes. */
async function costOf(metadata: PoolMetadata, question: DeltaQuestion) {
  const start = metadata.statistics.nodesRead
  await metadata.device(question.baseId)
  await metadata.device(question.targetId)
  const lookups = metadata.statistics.nodesRead - start
  const extents = await collectExtents(await metadata.delta(question))
  return { nodes: metadata.statistics.nodesRead - start - 2 * lookups, extents }
}

function nodesThatDiffer(image: MetadataImage, baseId: number, targetId: number, metadataSnapshot: boolean): number {
  const view = metadataSnapshot ? 'metadata-snapshot' : 'live'
  return image.mappingNodes(baseId, view).symmetricDifference(image.mappingNodes(targetId, view)).size
}
