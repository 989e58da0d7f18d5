import { join } from 'node:path'
import test from 'ava'
import type { ExecutionContext } from 'ava'
import { catalogCalls } from '../../../../src/agent/catalog/calls.ts'
import { type CatalogDatabase, openDatabase } from '../../../../src/agent/catalog/database.ts'
import type { EraWrites, WritesKey, WritesRow } from '../../../../src/agent/catalog/store/era-writes.ts'
import { chunksOf, eraVolume, testFolder } from '../examples.ts'

function opened(t: ExecutionContext): { database: CatalogDatabase; path: string } {
  const path = join(testFolder(t), 'catalog.db')
  const database = openDatabase(path)
  const calls = catalogCalls(database)
  for (const name of ['v', 'w']) {
    calls.eraVolumes.begin({ kind: 'attach', volume: eraVolume(name) }, 0)
    calls.eraVolumes.complete(name)
  }
  return { database, path }
}

/** A bitmap with some blocks at the beginning of its chunk. */
function bitmap(volume: string, chunk: number, seq: number, blocks = 3): WritesRow {
  const [{ bytes }] = chunksOf([0, blocks])
  return { volume: `era:${volume}`, chunk, seq, line: `line of ${volume}`, blocks, bytes }
}

function insert(database: CatalogDatabase, ...rows: readonly WritesRow[]): void {
  database.write(() => {
    for (const each of rows) database.writes.insert(each)
  })
}

/** Everything that is known of a volume. */
function known(writes: EraWrites, volume: string): unknown {
  const id = `era:${volume}`
  const boundaries = writes.boundaries(id).map((each) => ({ ...each, chunks: writes.chunks(id, each.seq) }))
  return { boundaries, totals: writes.totals(id), places: [...writes.places(id, 0, 99, { chunk: 0, seq: 0 })] }
}

test('places come by chunk and boundary, after a base, up to and with a target, from any place on', (t) => {
  const { database } = opened(t)
  for (const seq of [3, 1, 2]) insert(database, bitmap('v', 5, seq), bitmap('v', 0, seq))
  insert(database, bitmap('v', 2, 4), bitmap('w', 1, 2))
  const places = (from: number, to: number, chunk = 0, seq = 0) =>
    [...database.writes.places('era:v', from, to, { chunk, seq })].map((each) => [each.chunk, each.seq])
  const all = [...[1, 2, 3].map((seq) => [0, seq]), ...[[2, 4]], ...[1, 2, 3].map((seq) => [5, seq])]
  t.deepEqual(places(0, 4), all)
  for (const [i, [chunk, seq]] of all.entries()) t.deepEqual(places(0, 4, chunk, seq), all.slice(i + 1))
  t.deepEqual(
    places(1, 3),
    all.filter(([, seq]) => seq > 1 && seq <= 3)
  )
  t.deepEqual(places(4, 9), [])
  t.deepEqual([...database.writes.places('none', 0, 9, { chunk: 0, seq: 0 })], [])
  database.close()
})

test('what is known is what is stored, also after it was opened again, and after a change was undone', (t) => {
  const { database, path } = opened(t)
  insert(database, bitmap('v', 0, 1), bitmap('v', 9, 1), bitmap('v', 9, 2, 70_000), bitmap('w', 0, 7))
  database.write(() => {
    database.writes.delete(database.writes.get({ volume: 'era:v', chunk: 0, seq: 1 }))
    database.writes.update(database.writes.get({ volume: 'era:v', chunk: 9, seq: 1 }), bitmap('v', 9, 1, 40))
  })
  const before = ['v', 'w'].map((each) => known(database.writes, each))
  t.like(before[0], {
    boundaries: [
      { seq: 1, line: 'line of v', chunks: [9] },
      { seq: 2, line: 'line of v', chunks: [9] }
    ],
    totals: { bitmaps: 2, bytes: bitmap('v', 9, 1, 40).bytes.length + bitmap('v', 9, 2, 70_000).bytes.length }
  })
  t.throws(
    () =>
      database.write(() => {
        database.writes.delete(database.writes.get({ volume: 'era:w', chunk: 0, seq: 7 }))
        database.writes.insert(bitmap('v', 1, 1))
        throw new Error('undone')
      }),
    { message: 'undone' }
  )
  t.deepEqual(
    ['v', 'w'].map((each) => known(database.writes, each)),
    before
  )
  database.close()
  const again = openDatabase(path)
  t.deepEqual(
    ['v', 'w'].map((each) => known(again.writes, each)),
    before
  )
  again.close()
})

for (const [what, sql] of [
  ['is gone', 'DELETE FROM era_writes WHERE volume = ? AND chunk = ? AND seq = ?'],
  ['has another key', 'UPDATE era_writes SET chunk = chunk + 1 WHERE volume = ? AND chunk = ? AND seq = ?']
] as const) {
  test(`a bitmap that ${what} is damage, whoever asks for it`, (t) => {
    const { database } = opened(t)
    const row = bitmap('v', 3, 1)
    insert(database, row, bitmap('v', 5, 1))
    const key: WritesKey = { volume: row.volume, chunk: row.chunk, seq: row.seq }
    t.deepEqual(database.writes.get(key), { ...row, bytes: Uint8Array.from(row.bytes) })
    database.statement(sql).run(key.volume, key.chunk, key.seq)
    t.true(database.writes.has(key))
    t.throws(() => database.writes.get(key), {
      code: 'DM_CATALOG_DAMAGED',
      message: /chunk 3 before boundary 1 of tracked volume era/
    })
    for (const change of [
      () => {
        database.writes.delete(row)
      },
      () => {
        database.writes.update(row, bitmap('v', 3, 1, 9))
      }
    ]) {
      t.throws(() => database.write(change), { code: 'DM_CATALOG_DAMAGED' })
    }
    database.close()
  })
}
