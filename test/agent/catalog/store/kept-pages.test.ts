/**
 * What flips on the disk while a catalog is open that is larger than SQLite's cache, so that pages of it are read again: every question is
 * answered as before, or with an error that says so.
 */
import { createHash } from 'node:crypto'
import { closeSync, openSync, readFileSync, rmSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import { catalogCalls } from '../../../../src/agent/catalog/calls.ts'
import { type CatalogDatabase, catalogError, openDatabase } from '../../../../src/agent/catalog/database.ts'
import { servedTable } from '../../../../src/agent/catalog/served-targets.ts'
import { CHUNK_BLOCKS } from '../../../../src/agent/catalog/store/written-chunks.ts'
import { Random } from '../../../support/random.ts'
import { chunksOf, eraVolume, fill, servedTarget, testFolder } from '../examples.ts'

/** More for a longer run: how many random flips are tried. */
const TRIALS = Number(process.env['DELTAMAPPER_CATALOG_DAMAGES'] ?? 40)
/** Other flips. */
const SEED = Number(process.env['DELTAMAPPER_CATALOG_SEED'] ?? 1)

const PAGE_BYTES = 4096
/** The cache has room for about a fifth of the history. */
const HISTORY_PAGES = 192
const SNAPSHOTS = 10

let made: Buffer | undefined

/** A catalog with some of everything, and 720 bitmaps of 3 KB. @returns its bytes */
function example(path: string): Buffer {
  if (made === undefined) {
    make(path)
    made = readFileSync(path)
  } else writeFileSync(path, made)
  return made
}

function make(path: string): void {
  const database = openDatabase(path)
  const calls = catalogCalls(database)
  const random = new Random(7)
  fill(database, 60)
  calls.eraVolumes.begin({ kind: 'attach', volume: eraVolume('v') }, 5)
  calls.eraVolumes.complete('v')
  for (let i = 0; i < SNAPSHOTS; i++) {
    const name = `s${i}`
    calls.eraVolumes.begin({ kind: 'snapshot', volume: 'v', snapshot: name, token: name }, 6)
    const since = calls.eraSnapshots.beginHistory('v')
    if (since.boundaryEra !== undefined) {
      const blocks = Array.from({ length: 80 * 1400 }, () => random.integer(0, 80 * CHUNK_BLOCKS - 1))
      const ascending = [...new Set(blocks)].sort((a, b) => a - b)
      calls.eraSnapshots.stageWrites('v', chunksOf(...ascending.map((each) => [each, each + 1] as const)))
    }
    const sizeBytes = 2 ** 44 - (i === 4 ? 2 ** 30 : 0)
    const taken = { name, boundaryEra: 10 + i, sizeBytes, takenAt: i, suspendedMs: 12, lower: `{"lv":"${name}"}` }
    calls.eraSnapshots.record('v', taken, since, true)
  }
  database.close()
}

/** The answers to every question; of bitmaps, only a digest. */
function answers(database: CatalogDatabase): unknown {
  const calls = catalogCalls(database)
  const few = {
    ...{
      view: calls.ownedPools.view(),
      leases: calls.leases.list(),
      era: calls.eraVolumes.view(),
      snapshots: calls.eraSnapshots.list()
    },
    served: Array.from({ length: 62 }, (_, i) => [
      calls.served.find({ handle: `vg/s${i}`, identity: '' }),
      calls.served.find({ handle: '', identity: `lvm:${i}` })
    ]),
    thins: ['v', 's1', 's2', 's3'].map((name) => calls.ownedPools.findThinByName('a', name)),
    lease: calls.leases.find('dm:pool'),
    volumes: ['e', 'v'].map((name) => calls.eraVolumes.find(name)),
    facts: calls.eraSnapshots.facts(),
    rows: calls.file.statistics().rows
  }
  const { snapshots } = few
  const named = snapshots.map(({ volume, name }) => [volume, calls.eraSnapshots.find(volume.slice(4), name)])
  const pairs = snapshots.flatMap((base) => {
    const later = snapshots.filter(({ line, seq }) => line === base.line && seq > base.seq)
    return later.map((target, i) => {
      const least = calls.eraSnapshots.leastSize(base.id, target.id)
      // From the first of a line to the last, which is all there is.
      const isRead = i === later.length - 1 && !snapshots.some(({ line, seq }) => line === base.line && seq < base.seq)
      return [least, isRead ? written(database, base.id, target.id) : undefined]
    })
  })
  return { ...few, named, pairs }
}

function written(database: CatalogDatabase, base: string, target: string): string {
  const digest = createHash('sha1')
  const calls = catalogCalls(database)
  for (let after = { chunk: 0, seq: 0 }; ;) {
    const page = calls.eraSnapshots.writes(base, target, after)
    for (const { chunk, seq, blocks, bytes } of page?.chunks ?? []) {
      digest.update(`${chunk} ${seq} ${blocks} `).update(bytes)
      after = { chunk, seq }
    }
    if (page === undefined || page.last) return digest.digest('hex')
  }
}

function spelt(content: unknown): string {
  return JSON.stringify(content, (_, value: unknown) => (typeof value === 'bigint' ? `${value}n` : value))
}

/** The pages of each table and index. */
function pagesByName(path: string): Map<string, number[]> {
  const database = openDatabase(path)
  const pages = new Map<string, number[]>()
  for (const { name, pageno } of database.statement('SELECT name, pageno FROM dbstat').all()) {
    pages.set(String(name), [...(pages.get(String(name)) ?? []), Number(pageno)])
  }
  database.close()
  return pages
}

/** A place in a page of any table or index, the small ones nearly as often as the large. */
function placeIn(pages: Map<string, number[]>, random: Random): { name: string; place: number } {
  const name = random.pick([...pages.keys(), ...Array<string>(5).fill('era_writes'), 'era_snapshots'])
  const page = random.pick(pages.get(name) ?? [])
  return { name, place: (page - 1) * PAGE_BYTES + random.integer(0, PAGE_BYTES - 1) }
}

function reopened(path: string): CatalogDatabase {
  const database = openDatabase(path, { lockWaitMs: 0, historyPages: HISTORY_PAGES })
  // Whatever is not kept makes room for others.
  answers(database)
  return database
}

test('bits flipped on the disk while a catalog is open that is larger than the cache: an error, or the same answers', (t) => {
  const path = join(testFolder(t), 'catalog.db')
  const bytes = example(path)
  const pages = pagesByName(path)
  t.true(bytes.length > 3 * HISTORY_PAGES * PAGE_BYTES)
  const random = new Random(SEED)
  const verdicts = { same: 0, refused: 0, wrong: 0 }
  const wrong = new Map<string, number>()
  let ofHistory = false
  let database = reopened(path)
  const expected = spelt(answers(database))
  // Stays open until the end: the lock is gone when it is closed (see database.ts).
  const file = openSync(path, 'r+')
  for (let trial = 0; trial < TRIALS; trial++) {
    const { name, place } = placeIn(pages, random)
    const bit = random.integer(0, 7)
    writeSync(file, Buffer.of(bytes[place] ^ (1 << bit)), 0, 1, place)
    let refused = false
    ofHistory ||= name === 'era_writes'
    try {
      if (spelt(answers(database)) === expected) verdicts.same++
      else {
        verdicts.wrong++
        wrong.set(name, (wrong.get(name) ?? 0) + 1)
      }
    } catch (thrown) {
      refused = true
      verdicts.refused++
      const error = catalogError(path, thrown)
      t.is(error.code, 'DM_CATALOG_DAMAGED', `seed ${SEED}, trial ${trial}, bit ${bit} of byte ${place}: ${error.line}`)
      // Only of the history is anything read again. (What was read of it may be noticed later.)
      t.true(ofHistory, `seed ${SEED}, trial ${trial}, byte ${place} of ${name}: ${error.line}`)
    }
    writeSync(file, bytes, place, 1, place)
    if (!refused) continue
    database.close()
    database = reopened(path)
    ofHistory = false
  }
  database.close()
  closeSync(file)
  t.log(verdicts)
  t.deepEqual([...wrong], [])
  t.true(verdicts.refused > TRIALS / 20)
})

test('bits flipped while history is put together and transactions are undone: an error, or the same answers', (t) => {
  const folder = testFolder(t)
  const intact = join(folder, 'intact.db')
  const bytes = example(intact)
  const pages = pagesByName(intact)
  const undone = new Error('undone')
  const change = (database: CatalogDatabase) => {
    const calls = catalogCalls(database)
    for (const name of ['s3', 's6']) calls.eraSnapshots.delete('v', name, 50)
    calls.eraSnapshots.forget({ before: 0, keep: SNAPSHOTS - 2 })
    while (calls.eraSnapshots.compact() > 0);
    calls.served.remember(servedTarget({ handle: 'vg/s61', identity: 'lvm:61' }), 9)
    try {
      database.write(() => {
        servedTable.delete(database, [servedTable.find(database, {})[0]])
        throw undone
      })
    } catch (error) {
      if (error !== undone) throw error
    }
    calls.leases.clear('dm:pool')
  }
  const path = join(folder, 'catalog.db')
  const random = new Random(SEED + 1)
  const verdicts = { same: 0, refused: 0, wrong: 0 }
  const wrong = new Map<string, number>()
  let expected: string | undefined
  for (let trial = 0; trial <= TRIALS / 10; trial++) {
    writeFileSync(path, bytes)
    let database: CatalogDatabase | undefined
    let file: number | undefined
    const { name, place } = placeIn(pages, random)
    try {
      database = reopened(path)
      file = openSync(path, 'r+')
      // The first is not damaged.
      if (expected !== undefined) writeSync(file, Buffer.of(bytes[place] ^ (1 << random.integer(0, 7))), 0, 1, place)
      change(database)
      for (const reopens of [false, true]) {
        if (reopens) {
          database.close()
          database = reopened(path)
        }
        expected ??= spelt(answers(database))
        if (spelt(answers(database)) === expected) verdicts.same++
        else {
          verdicts.wrong++
          wrong.set(name, (wrong.get(name) ?? 0) + 1)
        }
      }
    } catch (thrown) {
      verdicts.refused++
      const error = catalogError(path, thrown)
      t.is(error.code, 'DM_CATALOG_DAMAGED', `seed ${SEED}, trial ${trial}, byte ${place}: ${error.line}`)
    } finally {
      try {
        database?.close()
      } catch {
        // It is damaged.
      }
      if (file !== undefined) closeSync(file)
      for (const each of [path, `${path}-wal`]) rmSync(each, { force: true })
    }
  }
  t.log(verdicts)
  t.deepEqual([...wrong], [])
})

/** Flips a bit of a text wherever the file has it: in keys and in indices. */
function flipText(file: number, bytes: Buffer, text: string): void {
  let found = 0
  for (let at = 0; (at = bytes.indexOf(text, at)) >= 0; at++, found++) {
    writeSync(file, Buffer.of(bytes[at] ^ 1), 0, 1, at)
  }
  if (found === 0) throw new Error(`there is no ${text}`)
}

test('after a transaction that was undone, what is read again is checked', (t) => {
  const path = join(testFolder(t), 'catalog.db')
  const bytes = example(path)
  const database = openDatabase(path)
  const calls = catalogCalls(database)
  const file = openSync(path, 'r+')
  flipText(file, bytes, 'lvm:7')
  t.is(calls.served.find({ handle: '', identity: 'lvm:7' }).length, 1)
  const undo = () =>
    database.write(() => {
      servedTable.delete(database, [servedTable.find(database, {})[0]])
      throw new Error('undone')
    })
  t.throws(undo, { code: 'DM_CATALOG_DAMAGED' })
  database.close()
  closeSync(file)
})

test('what was undone without a change needs no check, and leaves what is known of the history', (t) => {
  const path = join(testFolder(t), 'catalog.db')
  const bytes = example(path)
  const database = openDatabase(path)
  const before = spelt(answers(database))
  const file = openSync(path, 'r+')
  flipText(file, bytes, 'lvm:7')
  t.throws(() => catalogCalls(database).eraVolumes.begin({ kind: 'detach', volume: 'w' }, 0), {
    code: 'DM_NO_SUCH_DEVICE'
  })
  t.is(spelt(answers(database)), before)
  database.close()
  closeSync(file)
})

test('after a transaction that took the room of what is kept, everything is checked', (t) => {
  for (const [historyPages, checked] of [
    [HISTORY_PAGES, true],
    [undefined, false]
  ] as const) {
    const path = join(testFolder(t), 'catalog.db')
    example(path)
    const database = openDatabase(path, { historyPages })
    const calls = catalogCalls(database)
    calls.eraVolumes.begin({ kind: 'detach', volume: 'v' }, 0)
    // Damage that nothing else comes across.
    database.statement("UPDATE served SET mapped_blocks = mapped_blocks + 1 WHERE handle = 'vg/s5'").run()
    const detach = () => {
      calls.eraVolumes.complete('v')
    }
    if (checked) t.throws(detach, { code: 'DM_CATALOG_DAMAGED', message: /a row of its table served/ })
    else t.notThrows(detach)
    database.close()
  }
})

test('a catalog that grows keeps more pages', (t) => {
  const database = openDatabase(join(testFolder(t), 'catalog.db'), { historyPages: HISTORY_PAGES })
  const cachePages = () => Number(database.statement('PRAGMA cache_size').get()?.['cache_size'])
  const before = cachePages()
  t.true(before >= HISTORY_PAGES)
  const row = { ...servedTarget(), role: 'target', variant: 0, firstServedAt: 0, lastServedAt: 0 }
  database.write(() => {
    for (let i = 0; i < 1500; i++) servedTable.insert(database, { ...row, handle: `vg/s${i}`, identity: `lvm:${i}` })
  })
  t.true(cachePages() > before)
  database.close()
})
