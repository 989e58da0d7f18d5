/** The switch `reads`: whichever way blocks are read, the answer is the same, and `preadv` leaves the queue alone. */
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import { openMedium, waysToRead } from '../../src/devicemapper/metadata-medium.ts'
import { ReadQueue } from '../../src/devicemapper/read-queue.ts'
import { openPoolMetadata } from '../../src/devicemapper/thin/pool-metadata.ts'
import { collectExtents } from '../support/collect-extents.ts'
import { writeMetadataImage } from '../support/metadata-image.ts'
import { PoolModel } from '../support/pool-model.ts'
import { Random } from '../support/random.ts'
import { testFolder } from '../support/test-folder.ts'

const folder = testFolder(test)

test('every way to read gives the same answer, and only those that say so go through the queue', async (t) => {
  const shape = { leafEntries: 252, internalEntries: 252, split: 'middle' as const }
  const model = new PoolModel({ random: new Random(1), shape })
  model.createThin(1)
  for (let block = 0; block < 20_000; block += 2) model.write(1, block)
  const path = join(folder, 'pool.img')
  await writeFile(path, writeMetadataImage(model, { random: new Random(2), placement: 'scattered' }).bytes)

  const refusal: unknown = await openMedium(path, { direct: true }).then(
    (medium) => medium.close(),
    (error: unknown) => error
  )
  if (refusal !== undefined) return t.log(refusal)

  const queue = await ReadQueue.ofThread()
  const send = queue.send.bind(queue)
  let sent = 0
  queue.send = (...window) => {
    sent++
    return send(...window)
  }
  const answers = new Map<string, unknown>()
  for (const reads of waysToRead) {
    sent = 0
    const metadata = await openPoolMetadata(path, { direct: true, reads })
    const sizeBytes = 20_000 * model.blockSizeBytes
    answers.set(reads, await collectExtents(await metadata.allocated({ deviceId: 1, sizeBytes })))
    await metadata.close()
    t.is(sent > 0, reads !== 'preadv', reads)
  }
  t.is((answers.get('auto') as unknown[]).length, 10_000)
  t.deepEqual(answers.get('aio'), answers.get('auto'))
  t.deepEqual(answers.get('preadv'), answers.get('auto'))
  t.is(queue.placesUsed, 0)
})
