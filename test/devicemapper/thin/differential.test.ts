/**
 * Two readers that share no line must agree: ours, and Debian's thin_delta and thin_dump, on every device and every ordered pair of random
 * pools. `npm run soak` does the same with many more of them.
 */
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'

import test from 'ava'
import type { ExecutionContext } from 'ava'

import { DeltamapperError } from '../../../src/errors.ts'
import { openPoolMetadata } from '../../../src/devicemapper/thin/pool-metadata.ts'
import { LabUnavailable, ensureLab } from '../../lab/packages.ts'
import { collectExtents } from '../../support/collect-extents.ts'
import { comparePool } from '../../support/compare-pool.ts'
import { writeMetadataImage } from '../../support/metadata-image.ts'
import { modelOracle, toolOracle } from '../../support/oracle.ts'
import { PoolModel } from '../../support/pool-model.ts'
import { flavours, restoredPool, writtenPool } from '../../support/random-pool.ts'
import { Random } from '../../support/random.ts'
import { testFolder } from '../../support/test-folder.ts'
import { thinCheck } from '../../support/thin-tools.ts'

const noTools = await ensureLab().then(
  () => undefined,
  (error: unknown) => {
    if (error instanceof LabUnavailable) return error.message
    throw error
  }
)
const folder = testFolder(test)
/** Pools that have at least four devices and trees of unequal heights. */
const SEEDS = { written: 1000, restored: 2000 }
const KIB_64 = 65536

for (const [index, flavour] of flavours.entries()) {
  test(`every device and pair of a pool with ${flavour} trees`, async (t) => {
    const pool = await writtenPool(SEEDS.written + index, folder, flavour)
    if (noTools !== undefined) t.log(`compared with the model only: ${noTools}`)
    else if (pool.readableByTools) {
      const [written, read] = [modelOracle(pool), await toolOracle(pool)]
      t.deepEqual(new Map([...read.devices].sort(byId)), new Map([...written.devices].sort(byId)), 'thin_dump')
      // thin_check wants to see every data block counted; 2^40 of them are not written out.
      if (flavour !== 'huge numbers') t.is(await thinCheck(pool.path), '')
    }
    const { pairs, answers } = await comparePool({
      ...pool,
      readableByTools: pool.readableByTools && noTools === undefined
    })
    t.log(`${pool.name}: ${pairs} pairs, ${answers} answers`)
    t.true(pairs > 0)
  })
}

for (const seed of [0, 1, 2].map((index) => SEEDS.restored + index)) {
  test(`every device and pair of a pool that thin_restore wrote, seed ${seed}`, async (t) => {
    if (noTools !== undefined) {
      t.log(noTools)
      t.pass()
      return
    }
    const pool = await restoredPool(seed, folder)
    const { pairs, answers } = await comparePool(pool)
    t.log(`${pool.name}: ${pairs} pairs, ${answers} answers`)
    t.true(pairs > 0)
  })
}

test('data blocks differ in their last bit of 40, and the time of a mapping does not matter', async (t) => {
  const model = newModel()
  model.createThin(1)
  model.createThin(2)
  const [highestBlock, highestTime] = [2 ** 40 - 1, 2 ** 24 - 1]
  model.map(1, 5, { block: highestBlock, time: highestTime })
  model.map(2, 5, { block: highestBlock - 1, time: highestTime })
  model.map(1, 7, { block: highestBlock, time: 0 })
  model.map(2, 7, { block: highestBlock, time: highestTime })
  model.map(1, 9, { block: 2 ** 32, time: 1 })
  model.map(2, 9, { block: 0, time: 1 })
  const metadata = await openModel(t, model, 'last-bit.img')
  t.deepEqual(await collectExtents(await metadata.delta({ baseId: 1, targetId: 2 })), [
    [5 * KIB_64, KIB_64],
    [9 * KIB_64, KIB_64]
  ])
})

test('a block that both devices map counts as changed from the end of a smaller base on', async (t) => {
  const model = newModel()
  model.createThin(1)
  for (let block = 0; block < 10; block++) model.write(1, block)
  model.createSnapshot(2, 1)
  const metadata = await openModel(t, model, 'shrunk.img')
  const delta = async (sizes: { sizeBytes?: number; baseSizeBytes?: number }) =>
    collectExtents(await metadata.delta({ baseId: 1, targetId: 2, ...sizes }))
  t.deepEqual(await delta({}), [])
  t.deepEqual(await delta({ baseSizeBytes: 10 * KIB_64 }), [])
  t.deepEqual(await delta({ baseSizeBytes: 4 * KIB_64 }), [[4 * KIB_64, 6 * KIB_64]])
  t.deepEqual(await delta({ baseSizeBytes: 4 * KIB_64 + 1 }), [[4 * KIB_64, 6 * KIB_64]])
  t.deepEqual(await delta({ baseSizeBytes: 4 * KIB_64 - 1 }), [[3 * KIB_64, 7 * KIB_64]])
  t.deepEqual(await delta({ baseSizeBytes: 0, sizeBytes: 7 * KIB_64 + 512 }), [[0, 7 * KIB_64 + 512]])
  t.deepEqual(await delta({ baseSizeBytes: 7 * KIB_64 + 512, sizeBytes: 7 * KIB_64 + 512 }), [])
  t.deepEqual(await delta({ baseSizeBytes: 7 * KIB_64 + 512, sizeBytes: 7 * KIB_64 + 1024 }), [[7 * KIB_64, 1024]])
})

test('what was discarded since the base counts as changed, what neither maps does not', async (t) => {
  const model = newModel()
  model.createThin(1)
  for (const block of [3, 4, 9, 2 ** 33]) model.write(1, block)
  model.createSnapshot(2, 1)
  model.discard(2, 4)
  model.discard(2, 2 ** 33)
  const metadata = await openModel(t, model, 'discarded.img')
  const sizeBytes = 2 ** 34 * KIB_64
  t.deepEqual(await collectExtents(await metadata.delta({ baseId: 1, targetId: 2, sizeBytes })), [
    [4 * KIB_64, KIB_64],
    [2 ** 33 * KIB_64, KIB_64]
  ])
})

test('bytes beyond 2^53 are refused, never rounded', async (t) => {
  const model = newModel()
  model.createThin(1)
  model.createThin(2)
  const firstInexact = 2 ** 53 / KIB_64
  model.write(1, firstInexact - 2)
  model.write(1, firstInexact - 1)
  model.write(1, firstInexact + 1)
  const metadata = await openModel(t, model, 'beyond.img')
  for (const ask of [
    async () => metadata.allocated({ deviceId: 1 }),
    async () => metadata.delta({ baseId: 2, targetId: 1 }),
    async () => metadata.allocated({ deviceId: 1, sizeBytes: 2 ** 53 })
  ]) {
    await t.throwsAsync(async () => collectExtents(await ask()), { instanceOf: DeltamapperError })
  }
  // With a size that is exact, all that lies within it is.
  const sizeBytes = Number.MAX_SAFE_INTEGER
  const start = (firstInexact - 2) * KIB_64
  t.deepEqual(await collectExtents(await metadata.allocated({ deviceId: 1, sizeBytes })), [[start, sizeBytes - start]])
})

function newModel(): PoolModel {
  return new PoolModel({ random: new Random(1), shape: { leafEntries: 6, internalEntries: 6, split: 'middle' } })
}

async function openModel(t: ExecutionContext, model: PoolModel, name: string) {
  const path = join(folder, name)
  await writeFile(path, writeMetadataImage(model, { random: new Random(2) }).bytes)
  const metadata = await openPoolMetadata(path)
  t.teardown(() => metadata.close())
  return metadata
}

function byId([left]: readonly [number, unknown], [right]: readonly [number, unknown]): number {
  return left - right
}
