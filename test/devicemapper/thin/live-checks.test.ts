/**
 * When the devices of an answer from live metadata are looked at again: once for each batch, after the last node that it rests on.
 */
import { open, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setImmediate } from 'node:timers/promises'
import test from 'ava'
import type { OpenMedium } from '../../../src/devicemapper/metadata-medium.ts'
import type { ReadRuns } from '../../../src/devicemapper/read-runs.ts'
import { openPoolMetadata } from '../../../src/devicemapper/thin/pool-metadata.ts'
import { BLOCK_BYTES, writeMetadataImage } from '../../support/metadata-image.ts'
import { PoolModel } from '../../support/pool-model.ts'
import { Random } from '../../support/random.ts'
import { testFolder } from '../../support/test-folder.ts'

const folder = testFolder(test)

/** A read of a block, and when it was begun and had ended: by counting reads. */
interface Seen {
  readonly block: number
  readonly begun: number
  ended: number
}

/** An image that is read as a device is, each read a turn of the event loop later. */
function asDevice(seen: Seen[]): OpenMedium {
  let moment = 0
  return async (path) => {
    const file = await open(path)
    const { size } = await file.stat()
    return {
      ...{ sizeBytes: size, device: { major: 254, minor: 1 }, isDirect: true, descriptor: file.fd },
      async readRuns(into: Uint8Array, { count, starts, lengths, positions }: ReadRuns) {
        const reads: Seen[] = []
        for (let run = 0; run < count; run++) {
          for (let at = 0; at < lengths[run]; at += BLOCK_BYTES) {
            reads.push({ block: (positions[run] + at) / BLOCK_BYTES, begun: moment, ended: Infinity })
          }
        }
        seen.push(...reads)
        moment++
        await setImmediate()
        for (let run = 0; run < count; run++) await file.read(into, starts[run], lengths[run], positions[run])
        for (const read of reads) read.ended = moment
        moment++
        return undefined
      },
      readNow: () => 0,
      close: () => file.close()
    }
  }
}

test('devices are looked at again for each batch, not for each window, and after its last node', async (t) => {
  const extents = 60_000
  const model = new PoolModel({
    random: new Random(1),
    shape: { leafEntries: 252, internalEntries: 252, split: 'middle' }
  })
  model.createThin(1)
  const mappings = Array.from({ length: extents }, (_, i) => [2 * i, { block: i, time: 0 }] as const)
  model.load(
    1,
    mappings.map(([key, mapping]) => [key, mapping]),
    () => 126
  )
  const image = writeMetadataImage(model, { random: new Random(2), placement: 'scattered' })
  const path = join(folder, 'pool.img')
  await writeFile(path, image.bytes)
  const seen: Seen[] = []
  const metadata = await openPoolMetadata(path, { open: asDevice(seen) })
  t.teardown(() => metadata.close())
  const { batches } = await metadata.allocated({ deviceId: 1, sizeBytes: 2 * extents * model.blockSizeBytes })

  const leaves = [...image.mappingNodes(1)].filter((block) => isLeaf(image.bytes, Number(block)))
  let [batchCount, found, checks] = [0, 0, superblockReads(seen)]
  for await (const { count } of batches) {
    batchCount++
    found += count
    const now = superblockReads(seen)
    t.true(now - checks >= 2, `batch ${batchCount} left after ${now - checks} reads of the superblock`)
    checks = now
    // The leaves of what has left are lowest in order; each had come back when the last look began.
    const [first] = seen.filter(({ block }) => block === 0).slice(-2)
    const done = new Set(seen.filter(({ ended }) => ended <= first.begun).map(({ block }) => block))
    const rested = leaves.filter((block) => firstKey(image.bytes, Number(block)) < 2 * found)
    t.true(
      rested.every((block) => done.has(Number(block))),
      `batch ${batchCount} rests on a leaf that had not come back`
    )
  }
  t.is(found, extents)
  // A message has 8192 extents at most.
  t.true(batchCount <= Math.ceil(extents / 8192) + 2, `${batchCount} batches`)
})

function superblockReads(seen: readonly Seen[]): number {
  return seen.filter(({ block }) => block === 0).length
}

function isLeaf(bytes: Buffer, block: number): boolean {
  return bytes.readUInt32LE(block * BLOCK_BYTES + 4) === 2
}

function firstKey(bytes: Buffer, block: number): number {
  return Number(bytes.readBigUInt64LE(block * BLOCK_BYTES + 32))
}
