import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import { sharesBlocks } from '../../../src/cli/inspection/shared-blocks.ts'
import { openPoolMetadata } from '../../../src/devicemapper/thin/pool-metadata.ts'
import { writeMetadataImage } from '../../support/metadata-image.ts'
import { PoolModel } from '../../support/pool-model.ts'
import { Random } from '../../support/random.ts'
import { testFolder } from '../../support/test-folder.ts'

const folder = testFolder(test)
const signal = new AbortController().signal

/** Two volumes of 10,000 blocks, and snapshots of the first: `rewritten` of them blocks, from the end, then differ. */
async function pool(rewritten: number): Promise<string> {
  const random = new Random(3)
  const model = new PoolModel({ random, shape: { leafEntries: 252, internalEntries: 252, split: 'middle' } })
  const mappings = (firstBlock: number) =>
    Array.from({ length: 10_000 }, (_, i) => [i, { block: firstBlock + i, time: 0 }] as const)
  model.createThin(1)
  model.load(1, mappings(0), () => 200)
  model.createThin(2)
  model.load(2, mappings(10_000), () => 200)
  model.createSnapshot(3, 1)
  for (let block = 10_000 - rewritten; block < 10_000; block++) model.write(1, block)
  const path = join(folder, `${rewritten}.img`)
  await writeFile(path, writeMetadataImage(model, { random }).bytes)
  return path
}

for (const [rewritten, shared] of [
  [0, true],
  [1, true],
  [4000, true],
  // All that is looked at.
  [5000, false]
] as const) {
  test(`a snapshot and its volume, ${rewritten} blocks later`, async (t) => {
    const metadata = await openPoolMetadata(await pool(rewritten))
    try {
      const snapshot = await metadata.device(3)
      t.is(await sharesBlocks(metadata, snapshot, 1, signal), shared)
      t.false(await sharesBlocks(metadata, snapshot, 2, signal))
      t.true(metadata.statistics.nodesRead < 400)
    } finally {
      await metadata.close()
    }
  })
}
