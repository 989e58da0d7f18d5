/**
 * A catalog as an earlier version has left it: what is on record there still speaks for the same snapshots, or against them.
 *
 * catalog-schema-2.db.gz was written by the code of commit 99b6de5: four snapshots that were served and found untouched, one of which was served
 * again with other content. They were LVM's by its names and by device-mapper's, and a pool's that dmsetup had made.
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { gunzipSync } from 'node:zlib'
import test, { type ExecutionContext } from 'ava'
import { type CatalogDatabase, openDatabase } from '../../../src/agent/catalog/database.ts'
import { checkBase, checkResumed } from '../../../src/agent/catalog/fingerprint.ts'
import { migrations } from '../../../src/agent/catalog/store/migrations.ts'
import { findServed, remember, servedTable } from '../../../src/agent/catalog/served-targets.ts'
import { servedTarget } from '../../../src/agent/answers/served-target.ts'
import type { Snapshot } from '../../../src/agent/walks/snapshot.ts'
import { testFolder } from './examples.ts'

const lvm = {
  identity: 'Ab3dEf-0000-1111-2222-3333-4444-555566',
  volume: 'Vo1ume-0000-1111-2222-3333-4444-555566',
  metadataPath: '/dev/mapper/vg-pool_tmeta',
  poolIdentity: 'Po0ool-0000-1111-2222-3333-4444-555566'
}

function open(t: ExecutionContext): CatalogDatabase {
  const path = join(testFolder(t), 'catalog.db')
  writeFileSync(path, gunzipSync(readFileSync(new URL('../../fixtures/catalog-schema-2.db.gz', import.meta.url))))
  const database = openDatabase(path)
  t.teardown(() => database.close())
  t.deepEqual(database.opening, { created: false, schemaBefore: 2, schema: migrations.length })
  return database
}

/** A snapshot as today's sources and metadata have it. */
function now(snapshot: Partial<Snapshot> & { handle: string }, creationTime: number, mappedBlocks: number, tx = 0n) {
  return servedTarget({
    snapshot: {
      kind: 'thin',
      thinId: 2,
      sizeBytes: 2 ** 30,
      live: true,
      metadataPath: '/dev/mapper/raw-metadata',
      ...snapshot
    },
    transactionId: tx,
    fingerprint: { creationTime, mappedBlocks }
  })
}

test('every record of an earlier catalog is there, as a target, and nothing more is concluded from it', (t) => {
  const database = open(t)
  const rows = servedTable.find(database, {})
  t.deepEqual(
    rows.map(({ handle, role, mappedBlocks, firstServedAt }) => [handle, role, mappedBlocks, firstServedAt]),
    [
      ['raw-pool/snap', 'target', 300, 1_700_000_200_000],
      ['vg-pool-tpool/vg-by--device', 'target', 200, 1_700_000_100_000],
      ['vg/by-lvm', 'target', 100, 1_700_000_000_000],
      ['vg/written', 'target', 400, 1_700_000_300_000],
      ['vg/written', 'target', 401, 1_700_000_400_000]
    ]
  )
  t.notThrows(() => servedTable.verify(database))
})

test("a snapshot of LVM's that was served by an earlier version is a base by any name, and none once it is trimmed", (t) => {
  const database = open(t)
  const byDevice = { ...lvm, identity: 'Se0ond-0000-1111-2222-3333-4444-555566', thinId: 3 }
  for (const [snapshot, creationTime, mapped, tx] of [
    [lvm, 1, 100, 3n],
    [byDevice, 2, 200, 4n]
  ] as const) {
    for (const handle of ['vg/by-lvm', 'vg-pool-tpool/vg-by--device', '*/new-name', 'other/new-name']) {
      const same = now({ ...snapshot, handle }, creationTime, mapped, tx)
      const others = findServed(database, same).filter(({ thinId }) => thinId !== same.thinId)
      if (others.length > 0) t.throws(() => checkBase(findServed(database, same), same), { code: 'DM_BASE_CHANGED' })
      else t.is(checkBase(findServed(database, same), same), 'unchanged', handle)
      const trimmed = { ...same, mappedBlocks: mapped - 1 }
      t.throws(() => checkBase(findServed(database, trimmed), trimmed), { code: 'DM_BASE_CHANGED' }, handle)
    }
  }
})

test('a snapshot that an earlier version has served with two contents is no base', (t) => {
  const database = open(t)
  for (const mapped of [400, 401]) {
    const each = now(
      { ...lvm, identity: 'Wr1tten-000-1111-2222-3333-4444-555566', handle: 'vg/written', thinId: 5 },
      ...([4, mapped, 5n] as const)
    )
    t.throws(() => checkBase(findServed(database, each), each), { code: 'DM_BASE_CHANGED' })
    t.throws(() => checkResumed(findServed(database, each), each), { code: 'DM_RESUME_REFUSED' })
  }
})

test('a pool that an earlier version knew by its path alone may be another now: what was served there is no base by any name', (t) => {
  const database = open(t)
  for (const handle of ['raw-pool/snap', 'raw-pool/renamed', 'renamed/snap']) {
    for (const mapped of [300, 299]) {
      const each = now({ handle, thinId: 4, poolIdentity: 'disks:77' }, 3, mapped)
      t.throws(() => checkBase(findServed(database, each), each), { code: 'DM_BASE_CHANGED' }, handle)
      if (handle !== 'raw-pool/snap') continue
      t.throws(() => checkResumed(findServed(database, each), each), { code: 'DM_RESUME_REFUSED' })
    }
  }
  // Another snapshot of that pool is not concerned; and a new one is a base once it was served.
  const other = now({ handle: 'raw-pool/other', thinId: 6, poolIdentity: 'disks:77' }, 5, 10)
  t.is(checkBase(findServed(database, other), other), 'unrecorded')
  t.is(remember(database, other, 1_700_000_500_000), 'new')
  t.is(checkBase(findServed(database, other), other), 'unchanged')
})
