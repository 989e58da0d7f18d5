/**
 * The history of tracked volumes, against a model that remembers every block written: whatever is forgotten, put together, broken off and taken
 * again, what is answered for a pair has everything that was written between the two, and, where it says so, nothing else.
 */
import { closeSync, openSync, readFileSync, rmSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import type { ExecutionContext } from 'ava'
import fc from 'fast-check'
import { catalogCalls, type CatalogCalls } from '../../../src/agent/catalog/calls.ts'
import { type CatalogDatabase, openDatabase } from '../../../src/agent/catalog/database.ts'
import type { EraSnapshot } from '../../../src/agent/catalog/era-snapshots.ts'
import { eraSnapshotsTable } from '../../../src/agent/catalog/store/era-tables.ts'
import { CHUNK_BLOCKS, ChunkUnion } from '../../../src/agent/catalog/store/written-chunks.ts'
import { DeltamapperError } from '../../../src/errors.ts'
import { Random } from '../../support/random.ts'
import { chunksOf, eraVolume, testFolder } from './examples.ts'

const MIB = 2 ** 20

function attach(calls: CatalogCalls, name = 'v', sizeBytes = 64 * MIB): void {
  calls.eraVolumes.begin({ kind: 'attach', volume: eraVolume(name, { sizeBytes }) }, 0)
  calls.eraVolumes.complete(name)
}

interface Taking {
  readonly volume?: string
  readonly sizeBytes?: number
  readonly exact?: boolean
  readonly boundaryEra?: number
  readonly takenAt?: number
}

/** Takes a snapshot after these blocks were written. */
function take(calls: CatalogCalls, name: string, blocks: readonly number[], taking: Taking = {}): EraSnapshot {
  const { volume = 'v', sizeBytes = 64 * MIB, exact = true, takenAt = 1 } = taking
  calls.eraVolumes.begin({ kind: 'snapshot', volume, snapshot: name, token: name }, 0)
  const since = calls.eraSnapshots.beginHistory(volume)
  const ascending = [...new Set(blocks)].sort((a, b) => a - b)
  if (since.boundaryEra !== undefined) {
    for (const chunk of chunksOf(...ascending.map((each) => [each, each + 1] as const))) {
      calls.eraSnapshots.stageWrites(volume, [chunk])
    }
  }
  const { boundaryEra = (since.boundaryEra ?? 1) + 1 } = taking
  const taken = { name, boundaryEra, sizeBytes, takenAt, suspendedMs: 3, lower: '' }
  return calls.eraSnapshots.record(volume, taken, since, exact)
}

/** What is on record as written between two, read in pieces. */
function written(calls: CatalogCalls, base: EraSnapshot, target: EraSnapshot): number[] | undefined {
  const blocks = new Set<number>()
  let after = { chunk: 0, seq: 0 }
  for (;;) {
    const page = calls.eraSnapshots.writes(base.id, target.id, after)
    if (page === undefined) return undefined
    for (const each of page.chunks) {
      using union = new ChunkUnion(each.chunk)
      union.add(each)
      for (const block of union.blocks()) blocks.add(each.chunk * CHUNK_BLOCKS + block)
      after = each
    }
    if (page.last) return [...blocks].sort((a, b) => a - b)
  }
}

function opened(t: ExecutionContext): { database: CatalogDatabase; calls: CatalogCalls; path: string } {
  const path = join(testFolder(t), 'catalog.db')
  const database = openDatabase(path)
  t.teardown(() => {
    database.close()
  })
  return { database, calls: catalogCalls(database), path }
}

test('a pair is the union of what was written between, also after the database was closed', (t) => {
  const { database, calls, path } = opened(t)
  attach(calls)
  const all = [
    take(calls, 's1', [1, 2, 3]),
    take(calls, 's2', [5, 2 * CHUNK_BLOCKS]),
    take(calls, 's3', []),
    take(calls, 's4', [5, 6, CHUNK_BLOCKS])
  ]
  const [s1, s2, s3, s4] = all
  const check = (now: CatalogCalls) => {
    t.deepEqual(now.eraSnapshots.list('v'), all)
    t.deepEqual(written(now, s1, s4), [5, 6, CHUNK_BLOCKS, 2 * CHUNK_BLOCKS])
    t.deepEqual(written(now, s1, s2), [5, 2 * CHUNK_BLOCKS])
    t.deepEqual(written(now, s2, s3), [])
    t.deepEqual(written(now, s3, s4), [5, 6, CHUNK_BLOCKS])
    t.deepEqual(written(now, s4, s4), [])
  }
  check(calls)
  database.close()
  const again = openDatabase(path)
  check(catalogCalls(again))
  again.close()
})

test('the first of a line has no bitmap, and another line is not compared', (t) => {
  const { calls } = opened(t)
  attach(calls)
  const s1 = take(calls, 's1', [1])
  take(calls, 's2', [2])
  const broken = calls.eraVolumes.endHistory('v', 'the metadata was formatted anew', { newestEra: 1, seenBlocks: 1024 })
  t.not(broken.line, s1.line)
  const s3 = take(calls, 's3', [3], { boundaryEra: 2 })
  t.is(s3.line, broken.line)
  t.is(s3.lineBecause, 'the metadata was formatted anew')
  t.is(s3.seq, 3)
  const s4 = take(calls, 's4', [4])
  t.deepEqual(written(calls, s3, s4), [4])
  t.throws(() => calls.eraSnapshots.writes(s1.id, s3.id, { chunk: 0, seq: 0 }), { code: 'DM_INTERNAL' })
  t.throws(() => calls.eraSnapshots.writes(s4.id, s3.id, { chunk: 0, seq: 0 }), { code: 'DM_INTERNAL' })
  t.is(calls.eraSnapshots.facts()[0].earlierLines, 1)
})

test('an era that goes back is refused, and nothing is recorded', (t) => {
  const { calls } = opened(t)
  attach(calls)
  take(calls, 's1', [], { boundaryEra: 7 })
  t.throws(() => take(calls, 's2', [1], { boundaryEra: 6 }), { code: 'DM_HISTORY_BROKEN' })
  t.is(calls.eraSnapshots.find('v', 's2'), undefined)
  calls.eraVolumes.rollBack('v')
  t.is(calls.eraSnapshots.facts()[0].bitmaps, 0)
})

test('what was stored for a snapshot that never came counts for nothing', (t) => {
  const { calls } = opened(t)
  attach(calls)
  const s1 = take(calls, 's1', [])
  calls.eraVolumes.begin({ kind: 'snapshot', volume: 'v', snapshot: 'lost', token: 'x' }, 0)
  calls.eraSnapshots.beginHistory('v')
  calls.eraSnapshots.stageWrites('v', chunksOf([100, 200]))
  // The same attempt, begun again after a crash.
  calls.eraSnapshots.beginHistory('v')
  calls.eraSnapshots.stageWrites('v', chunksOf([100, 150]))
  t.throws(() => calls.eraVolumes.complete('v'), { code: 'DM_INTERNAL' })
  calls.eraVolumes.rollBack('v')
  t.is(calls.eraSnapshots.facts()[0].bitmaps, 0)
  const s2 = take(calls, 's2', [7])
  t.deepEqual(written(calls, s1, s2), [7])
})

test('a name is free again when the data are gone, and then means the new one', (t) => {
  const { calls } = opened(t)
  attach(calls)
  const [s1, old] = [take(calls, 's1', []), take(calls, 'daily', [1])]
  t.throws(() => take(calls, 'daily', [2]), { code: 'DM_NAME_TAKEN' })
  calls.eraSnapshots.delete('v', 'daily', 99)
  t.is(calls.eraSnapshots.find('v', 'daily')?.removedAt, 99)
  t.deepEqual(written(calls, s1, old), [1])
  const s3 = take(calls, 's3', [3])
  t.deepEqual(written(calls, old, s3), [3], 'a base whose data are gone is still a base')
  const now = take(calls, 'daily', [4])
  t.not(now.id, old.id)
  t.is(written(calls, old, s3), undefined)
  t.deepEqual(written(calls, s1, s3), [1, 3])
  t.deepEqual(written(calls, s1, now), [1, 3, 4])
})

test('the last one, taken again under its own name, loses nothing of what was written', (t) => {
  const { calls } = opened(t)
  attach(calls)
  const s1 = take(calls, 's1', [])
  take(calls, 'daily', [1])
  calls.eraSnapshots.delete('v', 'daily', 1)
  const daily = take(calls, 'daily', [2])
  t.deepEqual(written(calls, s1, daily), [1, 2])
  while (calls.eraSnapshots.compact() > 0);
  t.deepEqual(written(calls, s1, daily), [1, 2])
  // The only one there is.
  calls.eraSnapshots.delete('v', 's1', 1)
  t.is(calls.eraSnapshots.forget({ before: 0, keep: 1 }), 1)
  calls.eraSnapshots.delete('v', 'daily', 1)
  const only = take(calls, 'daily', [3])
  t.deepEqual(calls.eraSnapshots.list('v'), [only])
  while (calls.eraSnapshots.compact() > 0);
  t.deepEqual(written(calls, only, take(calls, 's5', [4])), [4])
})

test('the least size in between is known, whatever is forgotten', (t) => {
  const { calls } = opened(t)
  attach(calls)
  const s1 = take(calls, 's1', [])
  const grow = (sizeBytes: number) => {
    calls.eraVolumes.begin({ kind: 'grow', volume: 'v', sizeBytes }, 0)
    calls.eraVolumes.complete('v')
  }
  grow(96 * MIB)
  const s2 = take(calls, 's2', [], { sizeBytes: 96 * MIB })
  t.is(calls.eraSnapshots.leastSize(s1.id, s2.id), 64 * MIB)
  // Cut off and grown again between two snapshots of the same size.
  calls.eraVolumes.saw('v', { seenBlocks: 1024 })
  calls.eraVolumes.saw('v', { seenBlocks: 512 })
  const s3 = take(calls, 's3', [], { sizeBytes: 96 * MIB })
  const s4 = take(calls, 's4', [], { sizeBytes: 96 * MIB })
  const least = (base: EraSnapshot, target: EraSnapshot) => calls.eraSnapshots.leastSize(base.id, target.id)
  t.is(least(s2, s3), 32 * MIB)
  t.is(least(s3, s4), 96 * MIB)
  t.is(least(s2, s4), 32 * MIB)
  calls.eraSnapshots.delete('v', 's3', 1)
  t.is(calls.eraSnapshots.forget({ before: 0, keep: 3 }), 1)
  t.is(least(s2, s4), 32 * MIB)
  t.is(least(s2, s3), undefined)
})

test('detaching forgets everything', (t) => {
  const { calls, database } = opened(t)
  attach(calls)
  attach(calls, 'w')
  for (const volume of ['v', 'w']) for (const name of ['s1', 's2']) take(calls, name, [1], { volume })
  calls.eraVolumes.begin({ kind: 'detach', volume: 'v' }, 0)
  t.throws(() => calls.eraVolumes.begin({ kind: 'grow', volume: 'v', sizeBytes: 1 }, 0), { code: 'DM_DEVICE_BUSY' })
  calls.eraVolumes.complete('v')
  t.is(calls.eraVolumes.find('v'), undefined)
  t.throws(() => calls.eraSnapshots.list('v'), { code: 'DM_NO_SUCH_DEVICE' })
  t.is(calls.eraSnapshots.list().length, 2)
  const { rows } = database.statistics()
  t.deepEqual([rows['era_volumes'], rows['era_snapshots'], rows['era_writes']], [1, 2, 1])
})

test('an attachment that is rolled back leaves nothing; names are looked at', (t) => {
  const { calls } = opened(t)
  calls.eraVolumes.begin({ kind: 'attach', volume: eraVolume('v') }, 3)
  t.deepEqual(calls.eraVolumes.view().intents, [{ kind: 'attach', volume: 'v' }])
  calls.eraVolumes.rollBack('v')
  t.deepEqual(calls.eraVolumes.view(), { volumes: [], intents: [] })
  t.throws(() => calls.eraVolumes.begin({ kind: 'attach', volume: eraVolume('../v') }, 0), {
    code: 'DM_ARGUMENT_INVALID'
  })
  attach(calls)
  t.throws(() => calls.eraVolumes.begin({ kind: 'attach', volume: eraVolume('v') }, 0), { code: 'DM_NAME_TAKEN' })
  t.throws(() => calls.eraVolumes.begin({ kind: 'attach', volume: eraVolume('w', { dmName: 'v-era' }) }, 0), {
    code: 'DM_NAME_TAKEN'
  })
  // The guards' names, either way round: an inactive volume could not be activated any more.
  calls.eraVolumes.begin({ kind: 'attach', volume: eraVolume('x', { dmName: 'y-guard' }) }, 0)
  for (const [dmName, whose] of [
    ['v-era-guard', 'v'],
    ['y', 'x']
  ]) {
    t.throws(() => calls.eraVolumes.begin({ kind: 'attach', volume: eraVolume('w', { dmName }) }, 0), {
      code: 'DM_NAME_TAKEN',
      message: `the device-mapper name ${dmName === 'y' ? 'y-guard' : dmName} belongs to tracked volume ${whose}`
    })
  }
  t.throws(() => take(calls, 'a/b', []), { code: 'DM_ARGUMENT_INVALID' })
  t.throws(() => calls.eraVolumes.begin({ kind: 'detach', volume: 'w' }, 0), { code: 'DM_NO_SUCH_DEVICE' })
})

test('by age and number: first those without data, and what was written between the rest stays known', (t) => {
  const { calls } = opened(t)
  attach(calls)
  const all = Array.from({ length: 8 }, (_, i) => take(calls, `s${i}`, [i, 1000 + i], { takenAt: 100 * i }))
  calls.eraSnapshots.delete('v', 's5', 1)
  t.is(calls.eraSnapshots.forget({ before: 150, keep: 5 }), 3)
  t.deepEqual(
    calls.eraSnapshots.list('v').map(({ name }) => name),
    ['s2', 's3', 's4', 's6', 's7']
  )
  const before = calls.eraSnapshots.facts()[0]
  while (calls.eraSnapshots.compact() > 0);
  const after = calls.eraSnapshots.facts()[0]
  t.is(before.bitmaps, 7)
  t.is(after.bitmaps, 4)
  t.is(after.snapshots, 5)
  t.deepEqual(written(calls, all[4], all[7]), [5, 6, 7, 1005, 1006, 1007])
  t.deepEqual(written(calls, all[2], all[3]), [3, 1003])
  t.is(written(calls, all[1], all[3]), undefined)
  t.is(calls.eraSnapshots.forget({ before: 0, keep: 0 }), 5)
  while (calls.eraSnapshots.compact() > 0);
  t.is(calls.eraSnapshots.facts()[0].bitmaps, 0)
})

/** Every order of these. */
function orders<T>(all: readonly T[]): T[][] {
  if (all.length === 0) return [[]]
  return all.flatMap((first, i) => orders(all.toSpliced(i, 1)).map((rest) => [first, ...rest]))
}

/** Every choice of some of these, none and all included. */
function choices<T>(all: readonly T[]): T[][] {
  return all.reduce<T[][]>((some, each) => [...some, ...some.map((chosen) => [...chosen, each])], [[]])
}

/** Snapshots of a volume that grew and shrank between them, and what is to be known of each pair. */
function changingSizes(
  calls: CatalogCalls,
  volume: string,
  names: readonly string[]
): (present: readonly EraSnapshot[], t: ExecutionContext, what: string) => void {
  attach(calls, volume, 64 * MIB)
  const happened: { seq: number; blocks: number[]; leastBytes: number }[] = []
  const taken = (name: string, blocks: number[], sizeBytes: number, leastBytes: number) => {
    const { seq } = take(calls, name, blocks, { volume, sizeBytes })
    happened.push({ seq, blocks, leastBytes })
  }
  const grow = (sizeBytes: number) => {
    calls.eraVolumes.begin({ kind: 'grow', volume, sizeBytes }, 0)
    calls.eraVolumes.complete(volume)
  }
  taken('a', [1], 64 * MIB, 64 * MIB)
  grow(96 * MIB)
  taken('b', [2, 3], 96 * MIB, 64 * MIB)
  calls.eraVolumes.saw(volume, { seenBlocks: 512 })
  grow(128 * MIB)
  taken('c', [4], 128 * MIB, 32 * MIB)
  taken('d', [3, 5, CHUNK_BLOCKS], 128 * MIB, 128 * MIB)
  if (names.length > 4) {
    grow(160 * MIB)
    taken('e', [6], 160 * MIB, 128 * MIB)
  }
  return (present, t, what) => {
    for (const base of present) {
      for (const target of present.filter(({ seq }) => seq >= base.seq)) {
        const between = happened.filter(({ seq }) => seq > base.seq && seq <= target.seq)
        const expected = [...new Set(between.flatMap(({ blocks }) => blocks))].sort((a, b) => a - b)
        t.deepEqual(written(calls, base, target), expected, `${what}: ${base.name} to ${target.name}`)
        const least = Math.min(base.sizeBytes, ...between.map(({ leastBytes }) => leastBytes))
        t.is(calls.eraSnapshots.leastSize(base.id, target.id), least, `${what}: ${base.name} to ${target.name}`)
      }
    }
  }
}

test('in whichever order snapshots of a volume that grows and shrinks are forgotten, the rest is known as before', (t) => {
  const { database, calls, path } = opened(t)
  // Every commit waits for the disk.
  const names = 'DELTAMAPPER_ERA_HISTORIES' in process.env ? ['a', 'b', 'c', 'd', 'e'] : ['a', 'b', 'c', 'd']
  let volumes = 0
  const ended = (volume: string) => {
    calls.eraVolumes.begin({ kind: 'detach', volume }, 0)
    calls.eraVolumes.complete(volume)
  }
  for (const order of orders(names)) {
    const volume = `v${volumes++}`
    const check = changingSizes(calls, volume, names)
    for (const [i, name] of order.entries()) {
      calls.eraSnapshots.delete(volume, name, 1)
      t.is(calls.eraSnapshots.forget({ before: 0, keep: names.length - i - 1 }), 1)
      if (i % 2 === 1) calls.eraSnapshots.compact()
      check(calls.eraSnapshots.list(volume), t, `${order.join('')}, up to ${name}`)
    }
    if (volumes % 20 > 0) ended(volume)
  }
  // Several at once, as retention does.
  for (const removed of choices(names)) {
    for (let keep = 0; keep < names.length; keep++) {
      const volume = `v${volumes++}`
      const check = changingSizes(calls, volume, names)
      for (const name of removed) calls.eraSnapshots.delete(volume, name, 1)
      // Of this one only: the others have no more.
      t.is(calls.eraSnapshots.forget({ before: 0, keep }), names.length - keep)
      check(calls.eraSnapshots.list(volume), t, `${removed.join('')} removed, ${keep} kept`)
      while (calls.eraSnapshots.compact() > 0);
      check(calls.eraSnapshots.list(volume), t, `${removed.join('')} removed, ${keep} kept, put together`)
      ended(volume)
    }
  }
  database.close()
  openDatabase(path).close()
})

test('a row that is not any more what it was when it was read is neither changed nor removed', (t) => {
  const { database, calls, path } = opened(t)
  attach(calls)
  take(calls, 's1', [])
  const stale = eraSnapshotsTable.find(database, {})
  calls.eraSnapshots.delete('v', 's1', 7)
  const refusal = { code: 'DM_INTERNAL', message: /era_snapshots was to be changed as it was before/ }
  t.throws(() => database.write(() => eraSnapshotsTable.delete(database, stale)), refusal)
  t.throws(() => database.write(() => eraSnapshotsTable.update(database, stale[0], { removedAt: 9 })), refusal)
  t.is(calls.eraSnapshots.find('v', 's1')?.removedAt, 7)
  database.close()
  openDatabase(path).close()
})

// Against a model

const block = fc.oneof(fc.nat({ max: 40 }), fc.constantFrom(CHUNK_BLOCKS - 1, CHUNK_BLOCKS, 5 * CHUNK_BLOCKS))
const steps = fc.array(
  fc.oneof(
    {
      weight: 6,
      arbitrary: fc.record({
        do: fc.constant('take' as const),
        blocks: fc.array(block, { maxLength: 8 }),
        exact: fc.boolean(),
        name: fc.nat({ max: 12 })
      })
    },
    {
      weight: 4,
      arbitrary: fc.record({ do: fc.constantFrom('remove' as const, 'forget' as const), which: fc.nat() })
    },
    { weight: 2, arbitrary: fc.record({ do: fc.constantFrom('compact' as const, 'break' as const, 'lose' as const) }) }
  ),
  { maxLength: 25 }
)

/** Everything that ever happened. */
interface Happened {
  readonly seq: number
  readonly line: number
  readonly blocks: readonly number[]
  readonly exact: boolean
}

test('whatever happens, no pair misses a block, and none has one too many that is called exact', (t) => {
  const { calls } = opened(t)
  let volumes = 0
  fc.assert(
    fc.property(steps, (all) => {
      const volume = `v${volumes++}`
      attach(calls, volume)
      const happened: Happened[] = []
      let line = 0
      for (const step of all) {
        const present = calls.eraSnapshots.list(volume)
        if (step.do === 'take') {
          const name = `s${step.name}`
          const known = present.find((each) => each.name === name)
          if (known && known.removedAt === undefined) continue
          const { seq } = take(calls, name, step.blocks, { volume, exact: step.exact })
          happened.push({ seq, line, blocks: step.blocks, exact: step.exact })
        } else if (step.do === 'remove' || step.do === 'forget') {
          if (present.length === 0) continue
          const { name } = present[step.which % present.length]
          calls.eraSnapshots.delete(volume, name, 1)
          // The removed ones are the first to go.
          if (step.do === 'forget') calls.eraSnapshots.forget({ before: 0, keep: Math.max(1, present.length - 1) })
        } else if (step.do === 'compact') calls.eraSnapshots.compact()
        else if (step.do === 'break') {
          calls.eraVolumes.endHistory(volume, 'a test', { newestEra: 1, seenBlocks: 1 })
          line++
        } else {
          calls.eraVolumes.begin({ kind: 'snapshot', volume, snapshot: 'lost', token: '' }, 0)
          calls.eraSnapshots.beginHistory(volume)
          calls.eraSnapshots.stageWrites(volume, chunksOf([3, 9]))
          calls.eraVolumes.rollBack(volume)
        }
      }
      const present = calls.eraSnapshots.list(volume)
      for (const base of present) {
        for (const target of present) {
          if (target.seq < base.seq || target.line !== base.line) continue
          const between = happened.filter(({ seq }) => seq > base.seq && seq <= target.seq)
          const expected = [...new Set(between.flatMap(({ blocks }) => blocks))].sort((a, b) => a - b)
          t.deepEqual(written(calls, base, target), expected)
          const claimed = present.filter(({ seq }) => seq > base.seq && seq <= target.seq).every(({ exact }) => exact)
          if (claimed) t.true(between.every(({ exact }) => exact))
        }
      }
      calls.eraVolumes.begin({ kind: 'detach', volume }, 0)
      calls.eraVolumes.complete(volume)
    }),
    { numRuns: Number(process.env['DELTAMAPPER_ERA_HISTORIES'] ?? 40) }
  )
})

test('what is forgotten and put together while a pair is read piece by piece loses nothing', (t) => {
  const { calls } = opened(t)
  attach(calls)
  const random = new Random(5)
  const some = () => Array.from({ length: 30 }, () => random.integer(0, 3) * CHUNK_BLOCKS + random.integer(0, 100))
  const blocks = Array.from({ length: 12 }, some)
  const all = blocks.map((each, i) => take(calls, `s${i}`, each))
  const expected = new Set(blocks.slice(2, 11).flat())
  const found = new Set<number>()
  let after = { chunk: 0, seq: 0 }
  for (let pieces = 0; ; pieces++) {
    const page = calls.eraSnapshots.writes(all[1].id, all[10].id, after)
    // A page may end anywhere: here after its first bitmap.
    const first = page?.chunks.at(0)
    if (first === undefined) break
    using union = new ChunkUnion(first.chunk)
    union.add(first)
    for (const each of union.blocks()) found.add(first.chunk * CHUNK_BLOCKS + each)
    after = first
    if (pieces % 3 === 0) {
      const name = `s${random.integer(2, 9)}`
      if (calls.eraSnapshots.find('v', name) === undefined) continue
      calls.eraSnapshots.delete('v', name, 1)
      calls.eraSnapshots.forget({ before: 0, keep: calls.eraSnapshots.list('v').length - 1 })
      calls.eraSnapshots.compact()
    }
  }
  t.true(calls.eraSnapshots.list('v').length < 11)
  t.true(expected.isSubsetOf(found))
  t.deepEqual([...found.difference(new Set(blocks.slice(1, 12).flat()))], [])
  calls.eraSnapshots.delete('v', 's10', 1)
  calls.eraSnapshots.forget({ before: 0, keep: calls.eraSnapshots.list('v').length - 1 })
  t.is(calls.eraSnapshots.writes(all[1].id, all[10].id, { chunk: 0, seq: 0 }), undefined)
})

test('bytes flipped anywhere in a history: an error that says so, or the same answers', (t) => {
  const path = join(testFolder(t), 'catalog.db')
  const database = openDatabase(path)
  const calls = catalogCalls(database)
  attach(calls)
  const random = new Random(Number(process.env['DELTAMAPPER_CATALOG_SEED'] ?? 1))
  const blocks = () => Array.from({ length: 25_000 }, () => random.integer(0, 2 * CHUNK_BLOCKS))
  const all = Array.from({ length: 6 }, (_, i) => take(calls, `s${i}`, blocks()))
  const content = (now: CatalogCalls) => ({
    snapshots: now.eraSnapshots.list(),
    pairs: [0, 4].map((i) => ({
      least: now.eraSnapshots.leastSize(all[i].id, all[5].id),
      written: now.eraSnapshots.writes(all[i].id, all[5].id, { chunk: 0, seq: 0 })
    }))
  })
  const before = content(calls)
  const flipped = join(testFolder(t), 'flipped.db')
  database.close()
  const bytes = readFileSync(path)
  const verdicts = { same: 0, error: 0 }
  for (let trial = 0; trial < Number(process.env['DELTAMAPPER_CATALOG_DAMAGES'] ?? 25); trial++) {
    const damaged = Buffer.from(bytes)
    const place = random.integer(0, bytes.length - 1)
    damaged[place] ^= 1 << random.integer(0, 7)
    writeFileSync(flipped, damaged)
    let opened: CatalogDatabase | undefined
    try {
      opened = openDatabase(flipped, { lockWaitMs: 0 })
      t.deepEqual(content(catalogCalls(opened)), before, `byte ${place}`)
      verdicts.same++
    } catch (error) {
      if (!(error instanceof DeltamapperError)) throw error
      verdicts.error++
    } finally {
      opened?.close()
      for (const each of [flipped, `${flipped}-wal`]) rmSync(each, { force: true })
    }
  }
  t.log(verdicts)
  // Most of the file is history.
  t.true(verdicts.error > verdicts.same)
})

test('bytes flipped on the disk while the catalog is open: the same answers, from what was checked when it was opened', (t) => {
  const path = join(testFolder(t), 'catalog.db')
  const first = openDatabase(path)
  attach(catalogCalls(first))
  const random = new Random(Number(process.env['DELTAMAPPER_CATALOG_SEED'] ?? 1))
  const blocks = () => Array.from({ length: 500 }, () => random.integer(0, 12 * CHUNK_BLOCKS))
  const all = Array.from({ length: 8 }, (_, i) => take(catalogCalls(first), `s${i}`, blocks()))
  first.close()
  const bytes = readFileSync(path)
  const database = openDatabase(path)
  const calls = catalogCalls(database)
  const content = () =>
    [0, 3].map((i) => [
      calls.eraSnapshots.leastSize(all[i].id, all[7].id),
      calls.eraSnapshots.writes(all[i].id, all[7].id, { chunk: 0, seq: 0 })
    ])
  const before = content()
  const file = openSync(path, 'r+')
  for (let trial = 0; trial < Number(process.env['DELTAMAPPER_CATALOG_DAMAGES'] ?? 25); trial++) {
    const place = random.integer(0, bytes.length - 1)
    writeSync(file, Buffer.of(bytes[place] ^ (1 << random.integer(0, 7))), 0, 1, place)
    t.deepEqual(content(), before, `byte ${place}`)
    writeSync(file, bytes, place, 1, place)
  }
  closeSync(file)
  database.close()
})
