/**
 * Snapshots of tracked volumes as a client of the agent sees them: questions over gRPC, answers from a real catalog.
 */
import test from 'ava'
import type { ExecutionContext } from 'ava'
import type { DeltamapperError, ErrorCode } from '../../../src/errors.ts'
import { CHUNK_BLOCKS } from '../../../src/agent/catalog/store/written-chunks.ts'
import type { CallOptions } from '../../../src/grpc/client.ts'
import { collectExtents } from '../../support/collect-extents.ts'
import { extentsOfBlocks } from '../../support/era-model.ts'
import { Random } from '../../support/random.ts'
import { attach, historyServer, type HistoryServer, take } from './history-server.ts'

const KIB_64 = 65536

async function delta({ client }: HistoryServer, base: string, target: string, options: CallOptions = {}) {
  return collectExtents(await client.delta({ baseSnapshotId: base, targetSnapshotId: target, ...options }))
}

async function refused(t: ExecutionContext, answer: Promise<unknown>, code: ErrorCode, says: RegExp): Promise<void> {
  const error = await t.throwsAsync<DeltamapperError>(answer)
  t.is(error?.code, code, error?.message)
  t.regex(error?.message ?? '', says)
}

test('every pair of a random history is what was written between, from any offset, in messages of any length', async (t) => {
  const server = await historyServer(t)
  const { catalog, client } = server
  const random = new Random(3)
  const sizeBytes = 2.5 * CHUNK_BLOCKS * KIB_64 + 512
  await attach(catalog, 'vol', { sizeBytes })
  const history: number[][] = []
  for (let i = 0; i < 8; i++) {
    const first = random.integer(0, 2 * CHUNK_BLOCKS)
    const blocks = new Set([
      ...Array.from({ length: 200 }, () => random.integer(0, Math.floor(2.5 * CHUNK_BLOCKS))),
      ...Array.from({ length: 100 }, (_, n) => first + n)
    ])
    history.push([...blocks].sort((a, b) => a - b))
    await take(catalog, `vol/s${i}`, history[i], { sizeBytes })
  }
  for (let base = 0; base < 8; base++) {
    for (let target = base; target < 8; target++) {
      const startingOffset = random.chance(0.5) ? 0 : random.integer(0, sizeBytes)
      // An answer that goes on has begun.
      if (startingOffset > 0) await delta(server, `vol/s${base}`, `vol/s${target}`)
      const expected = extentsOfBlocks(history.slice(base + 1, target + 1).flat(), {
        blockBytes: KIB_64,
        ...{ sizeBytes, startingOffset }
      })
      const stream = await client.delta({
        ...{ baseSnapshotId: `vol/s${base}`, targetSnapshotId: `vol/s${target}` },
        ...{ startingOffset, maxResults: random.pick([0, 1, 7]) }
      })
      t.is(stream.capacityBytes, sizeBytes)
      t.deepEqual(await collectExtents(stream), expected, `s${base} to s${target} from ${startingOffset}`)
    }
  }
})

test('what is allocated is the whole volume', async (t) => {
  const { catalog, client } = await historyServer(t)
  const sizeBytes = 10 * KIB_64 + 512
  await attach(catalog, 'vol', { sizeBytes })
  await take(catalog, 'vol/s1', [], { sizeBytes })
  const allocated = async (startingOffset: number) =>
    collectExtents(await client.allocated({ snapshotId: 'vol/s1', startingOffset }))
  t.deepEqual(await allocated(0), [[0, sizeBytes]])
  // Rounded down to a block.
  t.deepEqual(await allocated(3 * KIB_64 + 1), [[3 * KIB_64, sizeBytes - 3 * KIB_64]])
  t.deepEqual(await allocated(sizeBytes), [])
  await refused(t, allocated(sizeBytes + 1), 'DM_OFFSET_OUT_OF_RANGE', /vol\/s1, which has 655872 bytes/)
})

test('a grown range has changed all over, from the block on that the base had a part of; so has one that was cut off and came back', async (t) => {
  const server = await historyServer(t)
  const { catalog } = server
  const small = 10 * KIB_64 + 512
  const large = 20 * KIB_64 + 4096
  await attach(catalog, 'vol', { sizeBytes: small, seenBlocks: 11 })
  await take(catalog, 'vol/small', [], { sizeBytes: small })
  await take(catalog, 'vol/small2', [2, 10], { sizeBytes: small })
  await catalog.eraVolumes.begin({ kind: 'grow', volume: 'vol', sizeBytes: large })
  await catalog.eraVolumes.complete('vol')
  await take(catalog, 'vol/large', [4, 15], { sizeBytes: large })
  await take(catalog, 'vol/large2', [20], { sizeBytes: large })
  t.deepEqual(await delta(server, 'vol/small', 'vol/small2'), [
    [2 * KIB_64, KIB_64],
    [10 * KIB_64, 512]
  ])
  t.deepEqual(await delta(server, 'vol/small2', 'vol/large'), [
    [4 * KIB_64, KIB_64],
    [10 * KIB_64, 10 * KIB_64 + 4096]
  ])
  t.deepEqual(await delta(server, 'vol/large', 'vol/large2'), [[20 * KIB_64, 4096]])
  await catalog.eraVolumes.saw('vol', { seenBlocks: 5 })
  await take(catalog, 'vol/again', [1], { sizeBytes: large })
  t.deepEqual(await delta(server, 'vol/large2', 'vol/again'), [
    [KIB_64, KIB_64],
    [5 * KIB_64, 15 * KIB_64 + 4096]
  ])
  // Smaller than the base: clamped to the target.
  await take(catalog, 'vol/shrunk', [1, 3, 7], { sizeBytes: 3 * KIB_64 + 512 })
  t.deepEqual(await delta(server, 'vol/again', 'vol/shrunk'), [
    [KIB_64, KIB_64],
    [3 * KIB_64, 512]
  ])
})

test('mixed up handles are refused', async (t) => {
  const server = await historyServer(t)
  const { catalog, client } = server
  const sizeBytes = 100 * KIB_64
  for (const volume of ['vol', 'other']) {
    await attach(catalog, volume, { sizeBytes })
    for (const name of ['s1', 's2']) await take(catalog, `${volume}/${name}`, [1], { sizeBytes })
  }
  await refused(t, delta(server, 'vol/s2', 'vol/s1'), 'DM_ORDER_REVERSED', /vol\/s2 was taken after target vol\/s1/)
  await refused(t, delta(server, 'vol/s1', 'other/s2'), 'DM_VOLUMES_DIFFER', /tracked volume vol, other\/s2 of other/)
  await refused(t, delta(server, 'vol/s1', 'vol/s9'), 'DM_SNAPSHOT_NOT_FOUND', /vol has no snapshot s9/)
  await refused(t, delta(server, 'vol/s9', 'vol/s1'), 'DM_SNAPSHOT_NOT_FOUND', /vol has no snapshot s9/)
  await refused(t, client.allocated({ snapshotId: 'vol/s9' }), 'DM_SNAPSHOT_NOT_FOUND', /s9/)
  await refused(
    t,
    delta(server, 'sample/mon', 'vol/s1'),
    'DM_POOLS_DIFFER',
    /sample\/mon is in a thin pool, vol\/s1 .* tracked volume/
  )
  await refused(t, delta(server, 'vol/s1', 'sample/mon'), 'DM_POOLS_DIFFER', /vol\/s1 .* tracked volume, sample\/mon /)
  await refused(t, delta(server, 'vol/s1', 'vol/s2', { startingOffset: sizeBytes + 1 }), 'DM_OFFSET_OUT_OF_RANGE', /s2/)
  t.deepEqual(await delta(server, 'vol/s1', 'vol/s1'), [])
})

test('a history that was broken is a full backup, never a smaller answer; on either side of it all is as before', async (t) => {
  const server = await historyServer(t)
  const { catalog } = server
  const sizeBytes = 100 * KIB_64
  await attach(catalog, 'vol', { sizeBytes })
  for (const [i, block] of [1, 2, 3].entries()) await take(catalog, `vol/s${i}`, [block], { sizeBytes })
  await catalog.eraVolumes.endHistory('vol', 'the metadata is in era 2, and was in era 9 before', {
    newestEra: 2,
    seenBlocks: 100
  })
  for (const [i, block] of [4, 5].entries()) await take(catalog, `vol/t${i}`, [block], { sizeBytes })
  const broken = delta(server, 'vol/s2', 'vol/t0')
  await refused(t, broken, 'DM_HISTORY_BROKEN', /between vol\/s2 and vol\/t0 is not known: the metadata is in era 2/)
  await refused(t, delta(server, 'vol/s0', 'vol/t1'), 'DM_HISTORY_BROKEN', /is not known/)
  const error = await t.throwsAsync<DeltamapperError>(delta(server, 'vol/s0', 'vol/t1'))
  t.is(error?.status, 'FAILED_PRECONDITION')
  await refused(t, delta(server, 'vol/t0', 'vol/s0'), 'DM_ORDER_REVERSED', /t0/)
  t.deepEqual(await delta(server, 'vol/s0', 'vol/s2'), [[2 * KIB_64, 2 * KIB_64]])
  t.deepEqual(await delta(server, 'vol/t0', 'vol/t1'), [[5 * KIB_64, KIB_64]])
})

test('an answer goes on only about the snapshot that it was begun with', async (t) => {
  const server = await historyServer(t)
  const { catalog, client } = server
  const sizeBytes = 100 * KIB_64
  await attach(catalog, 'vol', { sizeBytes })
  await take(catalog, 'vol/base', [], { sizeBytes })
  await take(catalog, 'vol/target', [1], { sizeBytes })
  const middle = { startingOffset: 50 * KIB_64 }
  const allocated = async (options: CallOptions = {}) =>
    collectExtents(await client.allocated({ snapshotId: 'vol/target', ...options }))
  await refused(t, delta(server, 'vol/base', 'vol/target', middle), 'DM_RESUME_REFUSED', /no answer about it was begun/)
  await refused(t, allocated(middle), 'DM_RESUME_REFUSED', /no answer about it was begun/)
  t.deepEqual(await delta(server, 'vol/base', 'vol/target'), [[KIB_64, KIB_64]])
  t.deepEqual(await delta(server, 'vol/base', 'vol/target', middle), [])

  await catalog.eraSnapshots.delete('vol', 'target')
  await take(catalog, 'vol/target', [2, 60], { sizeBytes })
  // From 0 on would be [1], [2] and [60].
  await refused(t, delta(server, 'vol/base', 'vol/target', middle), 'DM_RESUME_REFUSED', /has taken the place of/)
  await refused(t, allocated(middle), 'DM_RESUME_REFUSED', /has taken the place of/)
  t.deepEqual(await delta(server, 'vol/base', 'vol/target'), [
    [KIB_64, 2 * KIB_64],
    [60 * KIB_64, KIB_64]
  ])
})

test('removed snapshots are still compared; forgotten ones are not, and what was written between stays known', async (t) => {
  const server = await historyServer(t)
  const { catalog } = server
  const sizeBytes = 100 * KIB_64
  await attach(catalog, 'vol', { sizeBytes })
  for (let i = 0; i < 6; i++) await take(catalog, `vol/s${i}`, [10 * i], { sizeBytes })
  const expected = extentsOfBlocks([20, 30, 40], { blockBytes: KIB_64, sizeBytes })
  t.deepEqual(await delta(server, 'vol/s1', 'vol/s4'), expected)
  for (let i = 0; i < 6; i++) await catalog.eraSnapshots.delete('vol', `s${i}`)
  t.deepEqual(await delta(server, 'vol/s1', 'vol/s4'), expected)
  t.is(await catalog.eraSnapshots.forget({ before: 0, keep: 5 }), 1)
  await refused(t, delta(server, 'vol/s0', 'vol/s4'), 'DM_SNAPSHOT_NOT_FOUND', /s0/)
  t.deepEqual(await delta(server, 'vol/s1', 'vol/s4'), expected)
})

test('the name of a base that now names another snapshot is found out', async (t) => {
  const server = await historyServer(t)
  const { catalog, client } = server
  const sizeBytes = 100 * KIB_64
  await attach(catalog, 'vol', { sizeBytes })
  await take(catalog, 'vol/daily', [], { sizeBytes })
  t.deepEqual(await collectExtents(await client.allocated({ snapshotId: 'vol/daily' })), [[0, sizeBytes]])
  await take(catalog, 'vol/between', [1], { sizeBytes })
  await catalog.eraSnapshots.delete('vol', 'daily')
  await take(catalog, 'vol/daily', [2], { sizeBytes })
  await take(catalog, 'vol/new', [3], { sizeBytes })
  await refused(t, delta(server, 'vol/daily', 'vol/new'), 'DM_BASE_CHANGED', /another snapshot than the one served/)
  t.deepEqual(await delta(server, 'vol/between', 'vol/new'), [[2 * KIB_64, 2 * KIB_64]])

  // As is that of a volume.
  await catalog.eraVolumes.begin({ kind: 'detach', volume: 'vol' })
  await catalog.eraVolumes.complete('vol')
  await attach(catalog, 'vol', { sizeBytes, id: 'era:another' })
  for (const name of ['between', 'new']) await take(catalog, `vol/${name}`, [1], { sizeBytes })
  await take(catalog, 'vol/newer', [5], { sizeBytes })
  await refused(t, delta(server, 'vol/new', 'vol/newer'), 'DM_BASE_CHANGED', /another snapshot/)
})

test('a name that was another snapshot’s is no base, whether or not that one was ever asked about', async (t) => {
  const server = await historyServer(t)
  const { catalog } = server
  const sizeBytes = 100 * KIB_64
  const used = (name: string) =>
    refused(
      t,
      delta(server, `vol/${name}`, 'vol/last'),
      'DM_BASE_CHANGED',
      /is another snapshot than the one of this name/
    )
  await attach(catalog, 'vol', { sizeBytes })
  for (const name of ['asked', 'never', 'old', 'alone']) await take(catalog, `vol/${name}`, [1], { sizeBytes })
  await take(catalog, 'vol/next', [2], { sizeBytes })
  // As base only.
  t.deepEqual(await delta(server, 'vol/asked', 'vol/next'), [[KIB_64, 2 * KIB_64]])
  for (const name of ['asked', 'never']) {
    await catalog.eraSnapshots.delete('vol', name)
    await take(catalog, `vol/${name}`, [3], { sizeBytes })
  }
  // Forgotten before its name is taken.
  await catalog.eraSnapshots.delete('vol', 'old')
  t.is(await catalog.eraSnapshots.forget({ before: 0, keep: 4 }), 1)
  await take(catalog, 'vol/old', [4], { sizeBytes })
  await take(catalog, 'vol/last', [5], { sizeBytes })
  for (const name of ['asked', 'never', 'old']) await used(name)
  t.deepEqual(await delta(server, 'vol/alone', 'vol/last'), [[2 * KIB_64, 4 * KIB_64]])

  // Of a volume that is no more.
  await catalog.eraVolumes.begin({ kind: 'detach', volume: 'vol' })
  await catalog.eraVolumes.complete('vol')
  await attach(catalog, 'vol', { sizeBytes, id: 'era:another' })
  for (const name of ['alone', 'fresh', 'last']) await take(catalog, `vol/${name}`, [1], { sizeBytes })
  await used('alone')
  t.deepEqual(await delta(server, 'vol/fresh', 'vol/last'), [[KIB_64, KIB_64]])

  // Not for ever.
  t.is(await catalog.eraSnapshots.forgetNames(0), 6)
  t.is(await catalog.eraSnapshots.forgetNames(0), 0)
  t.deepEqual(await delta(server, 'vol/alone', 'vol/last'), [[KIB_64, KIB_64]])
})

test('a client that goes on slowly while everything around it is forgotten gets it all, or an error', async (t) => {
  const server = await historyServer(t)
  const { catalog, client } = server
  const chunks = 8
  const sizeBytes = chunks * CHUNK_BLOCKS * 4096
  await attach(catalog, 'vol', { sizeBytes, blockSectors: 8 })
  // Enough for several pages, and more than is on its way to a client at a time.
  const blocks = Array.from({ length: (chunks * CHUNK_BLOCKS) / 16 }, (_, i) => 16 * i)
  for (let i = 0; i < 5; i++) await take(catalog, `vol/s${i}`, blocks, { sizeBytes })
  const slow = async (meanwhile: () => Promise<unknown>) => {
    const question = { baseSnapshotId: 'vol/s1', targetSnapshotId: 'vol/s4', maxResults: 1000 }
    const { batches } = await client.delta(question)
    let extents = 0
    for await (const { count, offsets } of batches) {
      if (extents === 0) await meanwhile()
      for (let i = 0; i < count; i++) if (offsets[i] !== blocks[extents++] * 4096) throw new Error(`${offsets[i]}`)
    }
    return extents
  }
  const forget = async (name: string, keep: number) => {
    await catalog.eraSnapshots.delete('vol', name)
    t.is(await catalog.eraSnapshots.forget({ before: 0, keep }), 1)
    while ((await catalog.eraSnapshots.compact()) > 0);
  }
  t.is(await slow(() => forget('s3', 4)), blocks.length)
  t.is(await slow(() => forget('s0', 3)), blocks.length)
  await refused(
    t,
    slow(() => forget('s4', 2)),
    'DM_BASE_LOST',
    /forgotten while their history was read/
  )
})
