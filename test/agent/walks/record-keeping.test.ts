/** Records that answers leave behind, and answers that are made from them. */
import { copyFile, readdir, readFile, truncate, writeFile } from 'node:fs/promises'
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import { BaseRecordReader } from '../../../src/devicemapper/thin/base-record/reader.ts'
import { openMedium, type OpenMedium } from '../../../src/devicemapper/metadata-medium.ts'
import { DeltamapperError, type ErrorCode } from '../../../src/errors.ts'
import type { RecordOutcome, RecordWanted } from '../../../src/agent/walks/record-keeping.ts'
import type { Snapshot } from '../../../src/agent/walks/snapshot.ts'
import { type RecordedBase, walkMessages, type WalkRequest } from '../../../src/agent/walks/thin-walk.ts'
import { noStatistics } from '../../../src/agent/walks/walk-messages.ts'
import { writeMetadataImage } from '../../support/metadata-image.ts'
import { PoolModel } from '../../support/pool-model.ts'
import { Random } from '../../support/random.ts'
import { testFolder } from '../../support/test-folder.ts'
import { decode, type Extent, KIB_64 } from '../sample-pool.ts'

const folder = testFolder(test)
let files = 0

/** Snapshots 2, 3 and 4 of device 1, taken one after the other. */
function history(): PoolModel {
  const random = new Random(21)
  const model = new PoolModel({ random, shape: { leafEntries: 6, internalEntries: 6, split: 'middle' } })
  const scatter = (writes: number) => {
    for (let i = 0; i < writes; i++) model.write(1, random.integer(0, 299))
  }
  model.createThin(1)
  scatter(200)
  for (const id of [2, 3, 4]) {
    model.createSnapshot(id, 1)
    scatter(20)
    for (let i = 0; i < 5; i++) model.discard(1, random.integer(0, 299))
  }
  model.createSnapshot(5, 1)
  return model
}

async function image(model: PoolModel): Promise<string> {
  const path = join(folder, `${files++}.img`)
  await writeFile(path, writeMetadataImage(model, { random: new Random(22) }).bytes)
  return path
}

function snapshot(metadataPath: string, thinId: number, more: Partial<Snapshot> = {}): Snapshot {
  return {
    ...{ kind: 'thin' as const, handle: `vg/${thinId}`, identity: `uuid-${thinId}`, volume: 'uuid-1', thinId },
    ...{ sizeBytes: 300 * KIB_64, metadataPath, poolIdentity: 'pool', live: true, ...more }
  }
}

interface Answer {
  readonly extents: Extent[]
  readonly outcomes: RecordOutcome[]
  readonly path: string
}

/** An answer that is to leave a record in a folder of its own. */
async function answer(
  request: Partial<WalkRequest> & Pick<WalkRequest, 'target'>,
  more: Partial<RecordWanted> = {},
  open?: OpenMedium
) {
  const records = join(folder, `records-${files++}`)
  mkdirSync(records)
  const wanted = {
    ...{ folder: records, name: 'made.base', maxBytes: 2 ** 20, poolIdentity: 'pool', baseRecord: undefined },
    ...more
  }
  const outcomes: RecordOutcome[] = []
  const messages = walkMessages(
    { startingOffset: 0, maxResults: 3, direct: false, ...request },
    noStatistics(),
    new AbortController().signal,
    {
      onSeen: async () => wanted,
      onKept: async (outcome) => void outcomes.push(outcome),
      open
    }
  )
  const extents = (await Array.fromAsync(messages)).flatMap((bytes) => decode(bytes).extents)
  return { extents, outcomes, path: join(wanted.folder, 'made.base') } satisfies Answer
}

/** All that a record holds, beside when it was made. */
async function mappings(path: string) {
  const reader = await BaseRecordReader.open(path)
  try {
    const found: number[][] = []
    for (let runs; (runs = await reader.next());) {
      for (let i = 0; i < runs.count; i++) {
        for (let k = 0; k < runs.lengths[i]; k++) found.push([runs.starts[i] + k, runs.data[i] + k, runs.times[i]])
      }
    }
    return { device: reader.header.device, found }
  } finally {
    await reader.close()
  }
}

async function recordedBase(path: string, handle = 'vg/2'): Promise<RecordedBase> {
  const { device } = await mappings(path)
  const { id, creationTime, transactionId, mappedBlocks, sizeBytes } = device
  return { handle, path, pool: 'pool', thinId: id, creationTime, transactionId, mappedBlocks, sizeBytes }
}

async function kept(t: ExecutionContext, made: Answer): Promise<void> {
  t.deepEqual(Object.keys(made.outcomes[0]), ['bytes'], JSON.stringify(made.outcomes))
  t.is(made.outcomes.length, 1)
}

test('whichever answer it comes from, the record of a target is the same', async (t) => {
  const path = await image(history())
  const [base, target] = [snapshot(path, 2), snapshot(path, 3)]
  const full = await answer({ target })
  const ofBase = await answer({ target: base })
  await copyFile(ofBase.path, join(folder, 'base.base'))
  const records: [string, Answer][] = [
    ['allocated', full],
    [
      'a delta, patched into the record of its base',
      await answer({ base, target }, { folder, baseRecord: 'base.base' })
    ],
    ['a delta without a record of its base', await answer({ base, target })],
    ['a delta with the record of another', await answer({ base, target }, { baseRecord: '../made-of-nothing' })],
    ['a resumed answer', await answer({ target, startingOffset: 100 * KIB_64 })],
    ['a resumed delta', await answer({ base, target, startingOffset: 100 * KIB_64 })],
    ['a volume that was made smaller', await answer({ target: { ...target, sizeBytes: 100 * KIB_64 } })]
  ]
  for (const [what, made] of records) {
    await kept(t, made)
    const { found, device } = await mappings(made.path)
    t.deepEqual(found, (await mappings(full.path)).found, what)
    t.is(device.mappedBlocks, found.length)
  }
  t.true((await mappings(full.path)).found.length > 100)
})

test('a base that is gone answers as if it were there, and that answer leaves a record as well', async (t) => {
  const model = history()
  const before = await image(model)
  const base = snapshot(before, 2)
  const { path } = await answer({ target: base })
  const recorded = await recordedBase(path)
  const living = new Map<number, Extent[]>()
  for (const id of [3, 4, 5]) living.set(id, (await answer({ base, target: snapshot(before, id) })).extents)
  model.delete(2)
  const after = await image(model)
  for (const [id, extents] of living) {
    const target = snapshot(after, id)
    const made = await answer({ recorded, target })
    t.deepEqual(made.extents, extents)
    await kept(t, made)
    t.deepEqual((await mappings(made.path)).found, (await mappings((await answer({ target })).path)).found)
    const from = 150 * KIB_64
    const rest = (await answer({ recorded, target, startingOffset: from })).extents
    t.deepEqual(
      rest,
      extents
        .filter(([offset, size]) => offset + size > from)
        .map(([offset, size]) => [Math.max(offset, from), offset + size - Math.max(offset, from)])
    )
  }
})

test('what says that a record is not the base’s, or that the pool did not go on from it, is refused', async (t) => {
  const model = history()
  const before = await image(model)
  const { path } = await answer({ target: snapshot(before, 2) })
  const recorded = await recordedBase(path)
  const refused = async (code: ErrorCode, request: Partial<WalkRequest>, metadataPath?: string) => {
    const target = snapshot(metadataPath ?? before, 5)
    const error = await t.throwsAsync(answer({ recorded, target, ...request }), { instanceOf: DeltamapperError })
    t.is(error.code, code, error.message)
    t.is(error.status, code === 'DM_ORDER_REVERSED' ? 'INVALID_ARGUMENT' : 'FAILED_PRECONDITION')
  }
  await refused('DM_BASE_RECORD_STILL_THERE', {})
  model.delete(2)
  const after = await image(model)
  for (const [field, value] of [
    ['pool', 'another'],
    ['thinId', 9],
    ['creationTime', recorded.creationTime - 1],
    ['transactionId', recorded.transactionId + 1n],
    ['mappedBlocks', recorded.mappedBlocks + 1],
    ['sizeBytes', 1]
  ] as const) {
    await refused('DM_BASE_RECORD_FOREIGN', { recorded: { ...recorded, [field]: value } }, after)
  }
  const origin = { externalOrigin: { identity: 'uuid-0' } }
  await refused('DM_BASE_RECORD_ORIGIN', { target: snapshot(after, 5, origin) })
  const fifth = await recordedBase((await answer({ target: snapshot(after, 5) })).path)
  model.delete(5)
  const later = await image(model)
  await refused('DM_ORDER_REVERSED', { recorded: fifth, target: snapshot(later, 3) })

  // A pool that was put back: its clock is lower than the record's.
  const young = new PoolModel({ random: new Random(1), shape: { leafEntries: 6, internalEntries: 6, split: 'middle' } })
  young.createThin(1)
  young.createSnapshot(5, 1)
  await refused('DM_BASE_RECORD_ROLLED_BACK', { recorded }, await image(young))
})

test('a record has the volumes with metadata and data of its pool, and a pool on others is another', async (t) => {
  const model = history()
  const uuid = (letter: string) => `LVM-${'g'.repeat(32)}${letter.repeat(32)}-tdata`
  const { path } = await answer({ target: snapshot(await image(model), 2, { dataUuid: uuid('a') }) })
  const recorded = await recordedBase(path)
  const reader = await BaseRecordReader.open(path)
  t.is(reader.header.pool.dataUuid, 'aaaaaa-aaaa-aaaa-aaaa-aaaa-aaaa-aaaaaa')
  t.is(reader.header.pool.metadataUuid, undefined)
  await reader.close()
  model.delete(2)
  const after = await image(model)
  t.true((await answer({ recorded, target: snapshot(after, 5, { dataUuid: uuid('a') }) })).extents.length > 0)
  for (const dataUuid of [uuid('b'), '']) {
    const error = await t.throwsAsync(answer({ recorded, target: snapshot(after, 5, { dataUuid }) }))
    t.is((error as DeltamapperError).code, 'DM_BASE_RECORD_REBUILT', error.message)
  }
})

test('a pool whose metadata is on another volume is another', async (t) => {
  const onDevice: OpenMedium = async (path, options) => {
    const medium = await openMedium(path, options)
    return {
      ...{ sizeBytes: medium.sizeBytes, isDirect: medium.isDirect, descriptor: medium.descriptor },
      device: { major: 253, minor: 7 },
      readRuns: async (into, runs) => medium.readRuns(into, runs),
      readNow: (...read) => medium.readNow(...read),
      close: async () => medium.close()
    }
  }
  const on = (letter?: string) => ({
    metadataDevice: {
      ...{ major: 253, minor: 7 },
      uuid: letter === undefined ? '' : `LVM-${'g'.repeat(32)}${letter.repeat(32)}-tmeta`
    }
  })
  const shape = { leafEntries: 252, internalEntries: 252, split: 'middle' as const }
  const model = new PoolModel({ random: new Random(21), shape })
  model.createThin(1)
  for (let block = 0; block < 200; block++) model.write(1, block)
  model.createSnapshot(2, 1)
  model.createSnapshot(5, 1)
  const { path } = await answer({ target: snapshot(await image(model), 2, on('a')) }, {}, onDevice)
  const recorded = await recordedBase(path)
  const reader = await BaseRecordReader.open(path)
  t.is(reader.header.pool.metadataUuid, 'aaaaaa-aaaa-aaaa-aaaa-aaaa-aaaa-aaaaaa')
  await reader.close()
  model.delete(2)
  model.write(1, 3)
  model.createSnapshot(6, 1)
  const after = await image(model)
  const { extents } = await answer({ recorded, target: snapshot(after, 6, on('a')) }, {}, onDevice)
  t.deepEqual(extents, [[3 * KIB_64, KIB_64]])
  for (const now of [on('b'), on()]) {
    const error = await t.throwsAsync(answer({ recorded, target: snapshot(after, 6, now) }, {}, onDevice))
    t.is((error as DeltamapperError).code, 'DM_BASE_RECORD_REBUILT', error.message)
    t.regex(error.message, /the pool's metadata was on/)
  }
})

test('a damaged record is an error, or the same answer', async (t) => {
  const model = history()
  const { path } = await answer({ target: snapshot(await image(model), 2) })
  const recorded = await recordedBase(path)
  model.delete(2)
  const target = snapshot(await image(model), 5)
  const { extents } = await answer({ recorded, target })
  const whole = await readFile(path)
  const random = new Random(23)
  const damaged = join(folder, 'damaged.base')
  for (let i = 0; i < 60; i++) {
    const bytes = Buffer.from(whole)
    bytes[random.integer(0, bytes.length - 1)] ^= 1 << random.integer(0, 7)
    await writeFile(damaged, bytes)
    if (i % 3 === 0) await truncate(damaged, random.integer(0, whole.length - 1))
    const ended = await answer({ recorded: { ...recorded, path: damaged }, target }).catch((error: unknown) => error)
    if (ended instanceof DeltamapperError) t.true(ended.code.startsWith('DM_BASE_RECORD_'), ended.line)
    else t.deepEqual((ended as Answer).extents, extents)
  }
})

test('a record that cannot be kept leaves the answer as it is, and nothing in the folder', async (t) => {
  const path = await image(history())
  const target = snapshot(path, 3)
  const { extents } = await answer({ target })
  for (const [more, why] of [
    [{ folder: join(folder, 'nowhere') }, /ENOENT/],
    [{ maxBytes: 10 }, /more than the 10 bytes/]
  ] as const) {
    const made = await answer({ target }, more)
    t.deepEqual(made.extents, extents)
    t.regex((made.outcomes[0] as { notKept: string }).notKept, why)
    t.deepEqual(await readdir(join(made.path, '..')).catch(() => []), [])
  }
})

test('an answer that is left before its end leaves no record', async (t) => {
  const target = snapshot(await image(history()), 3)
  const records = join(folder, 'left')
  mkdirSync(records)
  const wanted = { folder: records, name: 'x.base', maxBytes: 2 ** 20, poolIdentity: 'pool', baseRecord: undefined }
  const request = { target, startingOffset: 0, maxResults: 1, direct: false }
  const messages = walkMessages(request, noStatistics(), new AbortController().signal, {
    onSeen: async () => wanted,
    onKept: async () => t.fail('it was not complete')
  })
  t.false((await messages.next()).done)
  await messages.return(undefined)
  t.deepEqual(await readdir(records), [])
})
