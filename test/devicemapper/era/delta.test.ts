import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'

import test from 'ava'
import type { ExecutionContext } from 'ava'

import { openEraMetadata } from '../../../src/devicemapper/era/era-metadata.ts'
import { collectExtents } from '../../support/collect-extents.ts'
import { type EraView, writeEraImage } from '../../support/era-image.ts'
import { extentsOfBlocks } from '../../support/era-model.ts'
import type { Extent } from '../../support/expected.ts'
import { testFolder } from '../../support/test-folder.ts'

const folder = await testFolder(test)
const KIB_64 = 65536
/** 16 TiB of 64 KiB blocks: 263,694 blocks of the era array, 8,241 of a bitset. */
const BLOCKS = 2 ** 28
const digested = [0, 31, 32, 5_000_000, 5_000_001, 130_303, 130_304, BLOCKS - 1]
const marked = [1, 33, 32_575, 32_576, 130_303, 200_000_000, BLOCKS - 2]

const view: EraView = {
  blocks: BLOCKS,
  currentEra: 12,
  current: { era: 12, bits: BLOCKS, marked: new Set([BLOCKS - 3]) },
  // The older one is from before the device has grown.
  writesets: [
    { era: 10, bits: 150_000_000, marked: new Set([140_000_000]) },
    { era: 11, bits: BLOCKS, marked: new Set(marked) }
  ],
  eras: new Map(digested.map((block, i) => [block, i + 2]))
}
const path = join(folder, 'large.img')
test.before(async () => {
  await writeFile(path, writeEraImage(view, { shareEmpty: true }).bytes)
})

async function ask(
  t: ExecutionContext,
  sinceEra: number,
  question: { startingOffset?: number; sizeBytes?: number } = {},
  direct = false
) {
  const metadata = await openEraMetadata(path, { direct })
  t.teardown(() => metadata.close())
  const extents = await collectExtents(await metadata.written({ sinceEra, ...question }))
  return { extents, ...metadata.statistics }
}

function expected(blocks: readonly number[], question = {}): Extent[] {
  return extentsOfBlocks(blocks, { blockBytes: KIB_64, sizeBytes: BLOCKS * KIB_64, ...question })
}

test('a device of 16 TiB, all of it', async (t) => {
  const all = [...digested, ...marked, 140_000_000, BLOCKS - 3]
  t.deepEqual((await ask(t, 1)).extents, expected(all))
  t.deepEqual((await ask(t, 1, {}, true)).extents, expected(all))
  t.deepEqual((await ask(t, 5)).extents, expected(all.filter((each) => ![0, 31, 32].includes(each))))
  t.deepEqual((await ask(t, 11)).extents, expected([...marked, BLOCKS - 3]))
})

test('a walk that begins late reads what lies there, and no more', async (t) => {
  const startingOffset = (BLOCKS - 100) * KIB_64
  const { extents, nodesRead } = await ask(t, 1, { startingOffset })
  t.deepEqual(extents, expected([BLOCKS - 3, BLOCKS - 2, BLOCKS - 1]))
  t.true(nodesRead < 200, `${nodesRead} nodes`)
})

test('a walk that ends early reads what lies there, and no more', async (t) => {
  const sizeBytes = 100 * KIB_64 + 512
  const { extents, nodesRead } = await ask(t, 1, { sizeBytes })
  t.deepEqual(extents, expected([0, 1, 31, 32, 33], { sizeBytes }))
  t.true(nodesRead < 200, `${nodesRead} nodes`)
})

test('the first extents are there before most of it is read', async (t) => {
  const metadata = await openEraMetadata(path)
  t.teardown(() => metadata.close())
  const { batches } = await metadata.written({ sinceEra: 1 })
  const iterator = batches[Symbol.asyncIterator]()
  t.false((await iterator.next()).done)
  t.true(metadata.statistics.nodesRead < 500)
  await iterator.return?.()
})

test('a signal that is aborted ends a walk with its reason', async (t) => {
  const metadata = await openEraMetadata(path)
  t.teardown(() => metadata.close())
  const reason = new Error('enough')
  for (const signal of [AbortSignal.abort(reason), AbortSignal.timeout(50)]) {
    const error = await t.throwsAsync(async () => collectExtents(await metadata.written({ sinceEra: 1, signal })))
    t.true(error === reason || error?.name === 'TimeoutError')
  }
})
