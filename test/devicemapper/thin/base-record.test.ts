/** A base that is gone is compared through its record, as if it were there still. */
import { mkdir, readdir, readFile, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import fc from 'fast-check'
import { type BaseRecordHeader, frameChecksum } from '../../../src/devicemapper/thin/base-record/format.ts'
import { dataBlockAt, timeAt } from '../../../src/devicemapper/thin/base-record/recorded-pairs.ts'
import { BaseRecordReader } from '../../../src/devicemapper/thin/base-record/reader.ts'
import type { MappingSink } from '../../../src/devicemapper/thin/mapping-sink.ts'
import { PatchedRecordSink, WholeRecordSink } from '../../../src/devicemapper/thin/record-sinks.ts'
import { BaseRecordWriter } from '../../../src/devicemapper/thin/base-record/writer.ts'
import {
  type MappingStream,
  openPoolMetadata,
  type PoolMetadata
} from '../../../src/devicemapper/thin/pool-metadata.ts'
import { DeltamapperError } from '../../../src/errors.ts'
import { collectExtents } from '../../support/collect-extents.ts'
import { writeMetadataImage } from '../../support/metadata-image.ts'
import type { PoolModel } from '../../support/pool-model.ts'
import { flavours, randomModel } from '../../support/random-pool.ts'
import { Random } from '../../support/random.ts'
import { testFolder } from '../../support/test-folder.ts'

const folder = testFolder(test)
const fixtures = join(import.meta.dirname, '../../fixtures')
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

/** @param most runs or mappings in a frame: few make several frames of either kind */
async function save(metadata: PoolMetadata, id: number, sizeBytes: number, most?: number): Promise<string> {
  const path = join(folder, `${files++}.base`)
  const writer = await BaseRecordWriter.begin(path, await headerOf(metadata, id, sizeBytes), most)
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
    offset: fc.option(fc.double({ min: 0, max: 1, noNaN: true })),
    most: fc.constantFrom(undefined, 1, 3, 7, 20, 100)
  })
  await fc.assert(
    fc.asyncProperty(history, async ({ seed, flavour, base, target, offset, most }) => {
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
      const path = await save(before, baseId, whole, most)
      const startingOffset = Math.floor((offset ?? 0) * 600) * model.blockSizeBytes

      const patched = join(folder, `${files++}.base`)
      const writer = await BaseRecordWriter.begin(patched, await headerOf(before, targetId, whole), most)
      const record = await BaseRecordReader.open(path)
      const sink = new PatchedRecordSink(writer, record)
      await collectExtents(await before.delta({ baseId, targetId, sizeBytes: whole, sink }))
      await sink.finish()
      await record.close()
      t.true(await writer.finish())
      t.deepEqual(await readFile(patched), await readFile(await save(before, targetId, whole, most)))

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

test('whatever order blocks have, in small frames and large ones, what was written is read, by either way in', async (t) => {
  const random = new Random(31)
  for (const most of [5, 400, undefined]) {
    const entries = someMappings(random, most === undefined ? 33_000 : 3 * most + 17)
    const words = new Uint32Array(entries.flatMap(([block]) => [block % 2 ** 32, Math.floor(block / 2 ** 32)]))
    const values = entries.flatMap(([, data, time]) => [
      ((data % 256) * 2 ** 24 + time) % 2 ** 32,
      Math.floor(data / 256)
    ])
    const leaf = { isLeaf: true, entries: entries.length, keys: 0, values: words.length }
    const all = new Uint32Array([...words, ...values])
    const ways: ((writer: BaseRecordWriter) => void)[] = [
      (writer) => entries.forEach(([block, data, time]) => writer.add(block, 1, data, time)),
      (writer) => {
        for (let from = 0; from < entries.length; from += 126) {
          writer.addEntries(all, leaf, from, Math.min(from + 126, entries.length))
        }
      }
    ]
    const files = await Promise.all(ways.map((way) => written(entries.length, most, way)))
    t.deepEqual(files[0], files[1])
    const path = join(folder, 'mixed.base')
    await writeFile(path, files[0])
    t.deepEqual(await readMappings(path, 0), entries)
    const middle = entries[Math.floor(entries.length / 2)][0]
    t.deepEqual(
      (await readMappings(path, middle)).filter(([block]) => block >= middle),
      entries.filter(([block]) => block >= middle)
    )
    t.is(files[0].readUInt32LE(16), 4)
  }
})

for (const version of [2, 3]) {
  test(`records of version ${version} are read as they were written`, async (t) => {
    const path = join(fixtures, `base-record-${version}.base`)
    t.is((await readFile(path)).readUInt32LE(16), version)
    // By this rule it was made, in frames of 10.
    const expected: [number, number, number][] = []
    for (let i = 0, block = 0; i < 120; i++) {
      const isScattered = Math.floor(i / 20) % 2 === 1
      block += i % 17 === 3 ? 5 : 1
      expected.push(isScattered ? [block, (i * 7919) % 100_003, (i * 31) % 9] : [block, 1000 + i, 4])
    }
    t.deepEqual(await readMappings(path, 0), expected)
    const [middle] = expected[70]
    t.deepEqual(
      (await readMappings(path, middle)).filter(([block]) => block >= middle),
      expected.slice(70)
    )
  })
}

test('in a record of version 2, a frame that is as long as its runs is a compressed one as well', async (t) => {
  const path = join(fixtures, 'base-record-2.base')
  const bytes = await readFile(path)
  const frames = 28 + bytes.readUInt32LE(20)
  bytes.writeUInt32LE(bytes.readUInt32LE(frames), frames + 4)
  bytes.writeUInt32LE(
    frameChecksum(
      bytes.subarray(frames, frames + 28),
      bytes.subarray(frames + 28, frames + 28 + bytes.readUInt32LE(frames)),
      bytes.readUInt32LE(24)
    ),
    frames + 24
  )
  const spoilt = join(folder, 'spoilt-2.base')
  await writeFile(spoilt, bytes)
  const error = await t.throwsAsync(readMappings(spoilt, 0), { instanceOf: DeltamapperError })
  t.is(error.code, 'DM_BASE_RECORD_DAMAGED')
})

/** Stretches in order and in none, with gaps, large numbers and times of all sizes. */
function someMappings(random: Random, count: number): [block: number, data: number, time: number][] {
  const mappings: [number, number, number][] = []
  let [block, data, time, isInOrder] = [0, 0, 1, true]
  while (mappings.length < count) {
    if (random.chance(0.002)) isInOrder = !isInOrder
    if (random.chance(isInOrder ? 0.01 : 0.7)) data = random.integer(0, random.chance(0.01) ? 2 ** 40 - 2 : 5_000_000)
    if (random.chance(0.01)) time = random.integer(0, random.chance(0.1) ? 2 ** 24 - 1 : 300)
    if (random.chance(0.05)) block += random.integer(1, random.chance(0.01) ? 2 ** 33 : 50)
    mappings.push([block++, data++, time])
  }
  return mappings
}

/** The file that comes of it. */
async function written(mappedBlocks: number, most: number | undefined, add: (writer: BaseRecordWriter) => void) {
  const path = join(folder, `${files++}.base`)
  const model = randomModel(new Random(5), 'dense')
  const metadata = await opened(model)
  const header = await headerOf(metadata, [...model.devices.keys()][0], whole)
  await metadata.close()
  const writer = await BaseRecordWriter.begin(path, { ...header, device: { ...header.device, mappedBlocks } }, most)
  add(writer)
  await writer.drain()
  if (!(await writer.finish())) throw new Error('it is not whole')
  return readFile(path)
}

async function readMappings(path: string, from: number): Promise<[number, number, number][]> {
  const reader = await BaseRecordReader.open(path)
  const found: [number, number, number][] = []
  try {
    await reader.startAt(from)
    for (let frame; (frame = await reader.next());) {
      const { starts, lengths, data, times, pairs } = frame
      for (let i = 0; i < frame.count; i++) {
        for (let k = 0; k < lengths[i]; k++) {
          const at = data[i] + k
          const [block, time] = pairs ? [dataBlockAt(pairs, at), timeAt(pairs, at)] : [at, times[i]]
          found.push([starts[i] + k, block, time])
        }
      }
    }
    return found
  } finally {
    await reader.close()
  }
}

test('a record that lacks a block is not kept', async (t) => {
  const model = randomModel(new Random(7), 'dense')
  const id = [...model.devices.keys()][0]
  model.write(id, 0)
  const metadata = await opened(model)
  const own = join(folder, 'own')
  await mkdir(own)
  const writer = await BaseRecordWriter.begin(join(own, 'x'), await headerOf(metadata, id, whole))
  const sink = new WholeRecordSink(writer)
  const startingOffset = model.blockSizeBytes
  await collectExtents(await metadata.allocated({ deviceId: id, sizeBytes: whole, startingOffset, sink }))
  t.false(await writer.finish())
  t.deepEqual(await readdir(own), [])
  await metadata.close()
})

/** A volume of `dense` blocks that was larger once, a snapshot of it, and a later one. */
async function shrunkVolume(seed: number) {
  const model = randomModel(new Random(seed), 'dense')
  const id = [...model.devices.keys()][0]
  for (let block = 0; block < 60; block++) model.write(id, block)
  model.createSnapshot(1000, id)
  for (const block of [2, 17, 18, 40, 55]) model.write(id, block)
  for (const block of [3, 19, 59]) model.discard(id, block)
  model.createSnapshot(1001, id)
  return { model, metadata: await opened(model), sizeBytes: 20 * model.blockSizeBytes - 512 }
}

/** The record that a sink makes of what `ask` answers. */
async function recordedBy(
  header: BaseRecordHeader,
  made: (writer: BaseRecordWriter) => MappingSink & { finish?(): Promise<void> },
  ask: (sink: MappingSink) => Promise<MappingStream>
): Promise<{ path: string; extents: unknown }> {
  const path = join(folder, `${files++}.base`)
  const writer = await BaseRecordWriter.begin(path, header)
  const sink = made(writer)
  const extents = await collectExtents(await ask(sink))
  await sink.finish?.()
  return { path: (await writer.finish()) ? path : '', extents }
}

test('a record has also what lies beyond the size, and below an external origin, and the answer stays the same', async (t) => {
  const { metadata, sizeBytes, model } = await shrunkVolume(11)
  const whole = await readFile(await save(metadata, 1001, Number.MAX_SAFE_INTEGER))
  const base = await save(metadata, 1000, Number.MAX_SAFE_INTEGER)
  const header = await headerOf(metadata, 1001, Number.MAX_SAFE_INTEGER)
  const reader = await BaseRecordReader.open(base)
  for (const externalOriginBytes of [undefined, 7 * model.blockSizeBytes - 512, 40 * model.blockSizeBytes]) {
    const question = { deviceId: 1001, sizeBytes, externalOriginBytes }
    const allocated = await recordedBy(
      header,
      (writer) => new WholeRecordSink(writer),
      (sink) => metadata.allocated({ ...question, sink })
    )
    t.deepEqual(allocated.extents, await collectExtents(await metadata.allocated(question)))
    t.deepEqual(await readFile(allocated.path), whole)
    const pair = { baseId: 1000, targetId: 1001, sizeBytes, externalOriginBytes }
    const patched = await recordedBy(
      header,
      (writer) => new PatchedRecordSink(writer, reader),
      (sink) => metadata.delta({ ...pair, sink })
    )
    t.deepEqual(patched.extents, await collectExtents(await metadata.delta(pair)))
    t.deepEqual(await readFile(patched.path), whole)
    // A target compared with a record has a record of its own from that very walk.
    const again = await recordedBy(
      header,
      (writer) => new WholeRecordSink(writer),
      (sink) => metadata.deltaFromRecord({ ...question, record: reader, sink })
    )
    t.deepEqual(await readFile(again.path), whole)
  }
  await reader.close()
  await metadata.close()
})

test('flipped bytes and cut-off ends are refused, or change nothing', async (t) => {
  const model = randomModel(new Random(8), 'deep')
  const id = [...model.devices.keys()][0]
  model.createSnapshot(1000, id)
  for (let block = 0; block < 30; block++) model.write(id, 3 * block)
  const metadata = await opened(model)
  const path = await save(metadata, 1000, whole, 20)
  const offset = 45 * model.blockSizeBytes
  const right = await deltaFrom(path, metadata, id)
  const rightFrom = await deltaFrom(path, metadata, id, offset)
  const bytes = await readFile(path)
  const { RECORD_SEED = '9', RECORD_DAMAGES = '400' } = process.env
  const random = new Random(Number(RECORD_SEED))
  const trials = Number(RECORD_DAMAGES)
  const verdicts = { refused: 0, same: 0 }
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
      if (i % 2 === 0) t.deepEqual(await deltaFrom(copy, metadata, id), right, `byte ${at}`)
      else t.deepEqual(await deltaFrom(copy, metadata, id, offset), rightFrom, `byte ${at}`)
      verdicts.same++
    } catch (error) {
      t.true(error instanceof DeltamapperError, String(error))
      t.regex((error as DeltamapperError).code, /^DM_BASE_RECORD_(DAMAGED|FOREIGN)$/)
      verdicts.refused++
    }
  }
  t.log(JSON.stringify(verdicts))
  await metadata.close()
})
