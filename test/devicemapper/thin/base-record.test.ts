/** A base that is gone is compared through its record, as if it were there still. */
import { mkdir, readdir, readFile, stat, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import fc from 'fast-check'
import type { BaseRecordHeader } from '../../../src/devicemapper/thin/base-record/format.ts'
import { BaseRecordReader } from '../../../src/devicemapper/thin/base-record/reader.ts'
import { PatchedRecordSink, WholeRecordSink } from '../../../src/devicemapper/thin/record-sinks.ts'
import { BaseRecordWriter } from '../../../src/devicemapper/thin/base-record/writer.ts'
import { openPoolMetadata, type PoolMetadata } from '../../../src/devicemapper/thin/pool-metadata.ts'
import { DeltamapperError } from '../../../src/errors.ts'
import { collectExtents } from '../../support/collect-extents.ts'
import { writeMetadataImage } from '../../support/metadata-image.ts'
import type { PoolModel } from '../../support/pool-model.ts'
import { flavours, randomModel } from '../../support/random-pool.ts'
import { Random } from '../../support/random.ts'
import { testFolder } from '../../support/test-folder.ts'

const folder = testFolder(test)
let files = 0

async function opened(model: PoolModel): Promise<PoolMetadata> {
  const image = writeMetadataImage(model, { random: new Random(2), placement: 'scattered' })
  const path = join(folder, `${files++}.img`)
  await writeFile(path, image.bytes)
  return openPoolMetadata(path, { liveRoot: true })
}

async function headerOf(metadata: PoolMetadata, id: number, sizeBytes: number): Promise<BaseRecordHeader> {
  const { details } = await metadata.device(id)
  return {
    pool: {
      identity: undefined,
      dataBlockBytes: metadata.superblock.dataBlockBytes,
      moment: await metadata.moment()
    },
    device: { id, ...details, sizeBytes, identity: undefined, volume: 'origin' },
    handles: ['vg/snap'],
    madeAt: 1
  }
}

async function save(metadata: PoolMetadata, id: number, sizeBytes: number): Promise<string> {
  const path = join(folder, `${files++}.base`)
  const writer = await BaseRecordWriter.begin(path, await headerOf(metadata, id, sizeBytes))
  const answer = await metadata.allocated({ deviceId: id, sizeBytes, sink: new WholeRecordSink(writer) })
  await collectExtents(answer)
  return (await writer.finish()) ? path : ''
}

async function deltaFrom(path: string, metadata: PoolMetadata, targetId: number, startingOffset = 0) {
  const record = await BaseRecordReader.open(path)
  try {
    const sizeBytes = Number.MAX_SAFE_INTEGER
    return await collectExtents(
      await metadata.deltaFromRecord({ record, deviceId: targetId, sizeBytes, startingOffset })
    )
  } finally {
    await record.close()
  }
}

const whole = Number.MAX_SAFE_INTEGER
const modelled = flavours.filter((each) => each !== 'huge numbers' && each !== 'many devices')

test('before and after the base is removed, the answer is the same; patched in, a record is that of the target', async (t) => {
  const history = fc.record({
    seed: fc.nat(),
    flavour: fc.constantFrom(...modelled),
    base: fc.nat(),
    target: fc.nat(),
    offset: fc.option(fc.double({ min: 0, max: 1, noNaN: true }))
  })
  await fc.assert(
    fc.asyncProperty(history, async ({ seed, flavour, base, target, offset }) => {
      const model = randomModel(new Random(seed), flavour)
      const ids = [...model.devices.keys()]
      const origin = ids[base % ids.length]
      let baseId = 0
      while (model.devices.has(baseId)) baseId++
      model.createSnapshot(baseId, origin)
      for (let block = 0; block < 40; block++) {
        const [id, at] = [ids[(target + block) % ids.length], (seed * (block + 3)) % 500]
        if (block % 5 === 0) model.discard(id, at)
        else model.write(id, at)
      }
      const targetId = ids[target % ids.length]
      const before = await opened(model)
      const path = await save(before, baseId, whole)
      const startingOffset = Math.floor((offset ?? 0) * 600) * model.blockSizeBytes

      const patched = join(folder, `${files++}.base`)
      const writer = await BaseRecordWriter.begin(patched, await headerOf(before, targetId, whole))
      const record = await BaseRecordReader.open(path)
      const sink = new PatchedRecordSink(writer, record, Infinity)
      await collectExtents(await before.delta({ baseId, targetId, sizeBytes: whole, sink }))
      await sink.finish()
      await record.close()
      t.true(await writer.finish())
      t.deepEqual(await readFile(patched), await readFile(await save(before, targetId, whole)))

      const living = await collectExtents(await before.delta({ baseId, targetId, sizeBytes: whole, startingOffset }))
      model.delete(baseId)
      const after = await opened(model)
      t.deepEqual(await deltaFrom(path, after, targetId, startingOffset), living)
      await before.close()
      await after.close()
    }),
    { numRuns: 60, includeErrorInReport: true }
  )
})

test('a pair as young as the base counts as changed: whoever holds it could write to it in place', async (t) => {
  const model = randomModel(new Random(5), 'dense')
  const id = [...model.devices.keys()][0]
  model.createSnapshot(1000, id)
  model.write(1000, 3)
  const metadata = await opened(model)
  const path = await save(metadata, 1000, whole)
  const changed = await deltaFrom(path, metadata, 1000)
  t.deepEqual(changed, [[3 * model.blockSizeBytes, model.blockSizeBytes]])
  await metadata.close()
})

test('beyond the end of the base everything mapped counts as changed', async (t) => {
  const model = randomModel(new Random(6), 'dense')
  const id = [...model.devices.keys()][0]
  for (let block = 0; block < 20; block++) model.write(id, block)
  model.createSnapshot(1000, id)
  const metadata = await opened(model)
  const path = join(folder, `${files++}.base`)
  const header = await headerOf(metadata, 1000, 10 * model.blockSizeBytes + 512)
  const writer = await BaseRecordWriter.begin(path, header)
  await collectExtents(
    await metadata.allocated({ deviceId: 1000, sizeBytes: whole, sink: new WholeRecordSink(writer) })
  )
  t.true(await writer.finish())
  const [first] = await deltaFrom(path, metadata, id)
  t.is(first[0], 10 * model.blockSizeBytes)
  await metadata.close()
})

test('a record that lacks a block is not kept', async (t) => {
  const model = randomModel(new Random(7), 'dense')
  const id = [...model.devices.keys()][0]
  const metadata = await opened(model)
  const own = join(folder, 'own')
  await mkdir(own)
  const writer = await BaseRecordWriter.begin(join(own, 'x'), await headerOf(metadata, id, whole))
  const sink = new WholeRecordSink(writer)
  await collectExtents(await metadata.allocated({ deviceId: id, sizeBytes: model.blockSizeBytes, sink }))
  t.false(await writer.finish())
  t.deepEqual(await readdir(own), [])
  await metadata.close()
})

test('flipped bytes and cut-off ends are refused, or change nothing', async (t) => {
  const model = randomModel(new Random(8), 'deep')
  const id = [...model.devices.keys()][0]
  model.createSnapshot(1000, id)
  for (let block = 0; block < 30; block++) model.write(id, 3 * block)
  const metadata = await opened(model)
  const path = await save(metadata, 1000, whole)
  const right = await deltaFrom(path, metadata, id)
  const bytes = await readFile(path)
  const random = new Random(9)
  const trials = Number(process.env['FLIPS'] ?? 600)
  for (let i = 0; i < trials; i++) {
    const spoilt = Buffer.from(bytes)
    const at = i < bytes.length && trials > bytes.length ? i : random.integer(0, bytes.length - 1)
    spoilt[at] ^= 1 << random.integer(0, 7)
    const copy = join(folder, 'spoilt.base')
    await writeFile(copy, spoilt)
    if (i % 4 === 3) {
      await writeFile(copy, bytes)
      await truncate(copy, random.integer(0, bytes.length - 1))
    }
    try {
      t.deepEqual(await deltaFrom(copy, metadata, id), right, `byte ${at}`)
    } catch (error) {
      t.true(error instanceof DeltamapperError, String(error))
      t.regex((error as DeltamapperError).code, /^DM_BASE_RECORD_(DAMAGED|FOREIGN)$/)
    }
  }
  t.true((await stat(path)).size > 0)
  await metadata.close()
})
