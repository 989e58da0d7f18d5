/**
 * A catalog's content to try things on, and a way to look at all of it.
 */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { ExecutionContext } from 'ava'
import type { Catalog } from '../../../src/agent/catalog/catalog.ts'
import { catalogCalls } from '../../../src/agent/catalog/calls.ts'
import { ChunkWriter, type WrittenChunk } from '../../../src/agent/catalog/store/written-chunks.ts'
import type { CatalogDatabase } from '../../../src/agent/catalog/database.ts'
import type { ServedTarget } from '../../../src/agent/catalog/fingerprint.ts'
import type { CatalogView, OwnedPool } from '../../../src/agent/catalog/owned-pools.ts'
import type { LeaseRecord } from '../../../src/agent/catalog/lease.ts'
import type { EraHistoryFacts, EraSnapshot, HistoryPage } from '../../../src/agent/catalog/era-snapshots.ts'
import type { EraVolume, eraView } from '../../../src/agent/catalog/era-volumes.ts'
import { servedTable, type ServedRecord } from '../../../src/agent/catalog/served-targets.ts'

/** A folder for one test, removed when it is over. */
export function testFolder(t: ExecutionContext): string {
  const folder = mkdtempSync(join(tmpdir(), 'deltamapper-catalog-'))
  t.teardown(() => {
    rmSync(folder, { recursive: true, force: true })
  })
  return folder
}

/** A snapshot as it is when it is served. The largest numbers that can occur are among its defaults. */
export function servedTarget(changes: Partial<ServedTarget> = {}): ServedTarget {
  return {
    handle: 'vg/snap-1',
    identity: 'lvm:Ab3dEf-0000-1111-2222-3333-4444-555566',
    pool: 'lvm:pool',
    volume: 'lvm:volume',
    thinId: 2 ** 24 - 1,
    creationTime: 2 ** 32 - 1,
    transactionId: 2n ** 64n - 1n,
    mappedBlocks: 2 ** 40 - 1,
    sizeBytes: Number.MAX_SAFE_INTEGER,
    ...changes
  }
}

export function newPool(name: string, changes: Partial<OwnedPool> = {}): Omit<OwnedPool, 'createdAt'> {
  return {
    name,
    dmName: `${name}-pool`,
    dataDevice: '/dev/disk/by-id/data',
    metadataDevice: '/dev/disk/by-id/metadata',
    dataBlockSectors: 128,
    lowWaterBlocks: 1000,
    features: 'skip_block_zeroing error_if_no_space',
    transactionId: 0n,
    ...changes
  }
}

export function eraVolume(name: string, changes: Partial<EraVolume> = {}): Omit<EraVolume, 'createdAt'> {
  return {
    id: `era:${name}`,
    name,
    dmName: `${name}-era`,
    dataDevice: '/dev/disk/by-id/lower',
    dataIdentity: 'wwid:naa.5000',
    metadataDevice: '/dev/disk/by-id/era-metadata',
    metadataIdentity: 'partuuid:11-22',
    blockSectors: 128,
    sizeBytes: 2 ** 44,
    line: `line of ${name}`,
    lineBecause: 'attached',
    newestEra: 1,
    seenBlocks: 2 ** 28,
    guardCheckedAt: 5,
    lowerSeen: '{}',
    allowLossyKernel: false,
    snapshotBy: '{"kind":"lvm"}',
    ...changes
  }
}

/** A bitmap of these blocks. */
export function chunksOf(...runs: readonly (readonly [begin: number, end: number])[]): WrittenChunk[] {
  const writer = new ChunkWriter()
  for (const [begin, end] of runs) writer.addRun(begin, end)
  return writer.takeLast()
}

export interface CatalogContent {
  view: CatalogView
  leases: LeaseRecord[]
  served: ServedRecord[]
  era: {
    view: ReturnType<typeof eraView>
    snapshots: EraSnapshot[]
    facts: EraHistoryFacts[]
    /** What was written between each snapshot and every later one of its line. */
    written: { least: number | undefined; page: HistoryPage | undefined }[]
  }
}

/** Everything a catalog answers, with the names of thins in place of their ids, which are random. */
export async function contentOf(catalog: Catalog, handles: readonly string[]): Promise<unknown> {
  const served: ServedRecord[] = []
  for (const handle of handles) served.push(...(await catalog.served.find({ handle, identity: '' })))
  return withoutRandomIds({ view: await catalog.ownedPools.view(), leases: await catalog.leases.list(), served })
}

/** The same, straight from the database. */
export function contentOfDatabase(database: CatalogDatabase): CatalogContent & { byIdentity: ServedRecord[] } {
  const calls = catalogCalls(database)
  const rows = servedTable.find(database, {})
  return {
    view: calls.ownedPools.view(),
    leases: calls.leases.list(),
    era: eraContent(database),
    served: [...new Set(rows.map(({ handle }) => handle))].flatMap((handle) =>
      calls.served.find({ handle, identity: '' })
    ),
    byIdentity: [...new Set(rows.map(({ identity }) => identity))].flatMap((identity) =>
      calls.served.find({ handle: '', identity })
    )
  }
}

function eraContent(database: CatalogDatabase): CatalogContent['era'] {
  const calls = catalogCalls(database)
  const snapshots = calls.eraSnapshots.list()
  const pairs = snapshots.flatMap((base) =>
    snapshots
      .filter(({ volume, line, seq }) => volume === base.volume && line === base.line && seq > base.seq)
      .map((target) => [base.id, target.id] as const)
  )
  return {
    view: calls.eraVolumes.view(),
    snapshots,
    facts: calls.eraSnapshots.facts(),
    written: pairs.map(([base, target]) => ({
      least: calls.eraSnapshots.leastSize(base, target),
      page: calls.eraSnapshots.writes(base, target, { chunk: 0, seq: 0 })
    }))
  }
}

function withoutRandomIds(content: Omit<CatalogContent, 'era'>): unknown {
  const names = new Map(content.view.thins.map(({ id, pool, name }) => [id, `${pool}/${name}`]))
  return JSON.parse(
    JSON.stringify(content, (_, value: unknown) => {
      if (typeof value === 'bigint') return `${value}n`
      return typeof value === 'string' && value.startsWith('thin:') ? (names.get(value) ?? 'gone') : value
    })
  )
}

/** Fills a database with some of everything: what was served, two pools, something under way, a lease. */
export function fill(database: CatalogDatabase, targets = 20): void {
  const calls = catalogCalls(database)
  for (let i = 0; i < targets; i++) {
    calls.served.remember(
      servedTarget({ handle: `vg/s${i}`, identity: `lvm:${i}`, creationTime: i, mappedBlocks: 100 + i }),
      1_000_000 + i
    )
  }
  calls.served.remember(servedTarget({ handle: 'vg/s3', identity: 'lvm:3', mappedBlocks: 9 }), 2_000_000)
  for (const name of ['a', 'b']) {
    calls.ownedPools.begin({ kind: 'create-pool', pool: newPool(name) }, 1)
    calls.ownedPools.complete(name)
  }
  calls.ownedPools.begin(
    { kind: 'create-volume', pool: 'a', name: 'v', thinId: 0, dmName: 'a-v', sizeBytes: 2 ** 40, transactionId: 0n },
    2
  )
  calls.ownedPools.complete('a', { creationTime: 0 })
  const origin = calls.ownedPools.findThinByName('a', 'v')!.id
  for (const [index, name] of ['s1', 's2', 's3'].entries()) {
    const transactionId = BigInt(index + 1)
    calls.ownedPools.begin(
      {
        kind: 'create-snapshot',
        ...{ pool: 'a', name, thinId: index + 1, dmName: `a-${name}`, sizeBytes: 2 ** 40, transactionId },
        origin,
        suspends: 'a-v'
      },
      3
    )
    if (name !== 's3') calls.ownedPools.complete('a', { creationTime: index + 1 })
  }
  calls.leases.begin({ device: 'dm:pool', purpose: 'thin_delta', factsBefore: 'thin-pool time 5' }, 4)
  calls.leases.confirm('dm:pool', { heldRoot: 77, factsHeld: 'thin-pool time 5' })
  fillEra(database)
}

/** A tracked volume with five snapshots in two lines, and one that was interrupted. */
function fillEra(database: CatalogDatabase): void {
  const calls = catalogCalls(database)
  calls.eraVolumes.begin({ kind: 'attach', volume: eraVolume('e') }, 5)
  calls.eraVolumes.complete('e')
  for (let i = 1; i <= 5; i++) {
    if (i === 4) calls.eraVolumes.endHistory('e', 'a discard reached it', { newestEra: 9, seenBlocks: 2 ** 28 })
    calls.eraVolumes.begin({ kind: 'snapshot', volume: 'e', snapshot: `s${i}`, token: `token ${i}` }, 6)
    const since = calls.eraSnapshots.beginHistory('e')
    if (since.boundaryEra !== undefined) {
      const blocks = Array.from({ length: 1500 }, (_, n) => [n * 37 * i, n * 37 * i + 1] as const)
      calls.eraSnapshots.stageWrites('e', chunksOf(...blocks, [2 ** 24, 2 ** 24 + i * 100_000]))
    }
    const taken = { boundaryEra: 10 + i, sizeBytes: 2 ** 44, takenAt: i, suspendedMs: 12, lower: `{"lv":"s${i}"}` }
    calls.eraSnapshots.record('e', { name: `s${i}`, ...taken }, since, i !== 3)
  }
  calls.eraVolumes.begin({ kind: 'snapshot', volume: 'e', snapshot: 'next', token: 'token 6' }, 6)
  calls.eraSnapshots.stageWrites('e', chunksOf([0, 1]))
}
