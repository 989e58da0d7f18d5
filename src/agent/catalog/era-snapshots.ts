/**
 * The history of tracked volumes: their snapshots, and what was written between each and the one before.
 *
 * dm-era knows only when each block was last written. So what was written between two snapshots can be told exactly
 * when the second one is taken, and never again. It is stored then, as a bitmap (written-chunks.ts). The answer for any
 * pair is the union of the bitmaps of all boundaries after the base, up to and including the target:
 *
 *      boundary     1 ──────────── 2 ──────────── 3 ──────────── 4
 *      bitmap       –      │       b2     │       b3     │       b4          written between 2 and 4: b3 ∪ b4
 *
 * A snapshot whose data were removed stays on record as a base, until retention forgets it. Nobody asks for the
 * boundary of a forgotten snapshot any more. But its bitmap is still part of what was written between its neighbours:
 * it counts with the next boundary, and compaction merges the two. *Bitmaps only ever move to later boundaries.* So a
 * reader that reads a range in pieces, in the order of chunk and boundary, misses nothing that moves meanwhile, as long
 * as both ends of the range exist.
 */
import { randomUUID } from 'node:crypto'
import { defect, DeltamapperError } from '../../errors.ts'
import { ChunkUnion, type WrittenChunk } from './store/written-chunks.ts'
import {
  eraIntentsTable,
  eraNamesTable,
  eraSnapshotsTable,
  type EraVolumeRow,
  eraVolumeRow,
  eraVolumesTable
} from './store/era-tables.ts'
import type { CatalogDatabase } from './database.ts'
import type { RowOf } from './store/table.ts'

/** A snapshot of a tracked volume, until it is forgotten. */
export interface EraSnapshot {
  /** Given by the catalog; never used again. */
  readonly id: string
  /** `id` of its volume. */
  readonly volume: string
  readonly name: string
  /** Snapshots of different histories cannot be compared: what was written between them is not known. */
  readonly line: string
  /** Why its history began, in words. */
  readonly lineBecause: string
  /** Counts up in a volume, from 1 on, in the order in which snapshots were taken. */
  readonly seq: number
  /** The first era after the snapshot, which contains the writes of all eras before. */
  readonly boundaryEra: number
  /** Size of the volume in bytes when it was taken. */
  readonly sizeBytes: number
  /** Whether its bitmap contains only what was written since the snapshot before; if false, it may contain more. */
  readonly exact: boolean
  /** Milliseconds since 1970, between suspend and resume; and how long that took. */
  readonly takenAt: number
  readonly suspendedMs: number
  /** The lower snapshot, as JSON of the code that took it. */
  readonly lower: string
  /** When its data were removed, as far as is known; milliseconds since 1970. */
  readonly removedAt: number | undefined
}

/** A snapshot that has been taken and not yet recorded. */
export type TakenSnapshot = Pick<
  EraSnapshot,
  'name' | 'boundaryEra' | 'sizeBytes' | 'takenAt' | 'suspendedMs' | 'lower'
>

/** Where a volume's history continues. */
export interface LastBoundary {
  readonly line: string
  /** The first era after the last boundary; undefined before the first boundary of a history. */
  readonly boundaryEra: number | undefined
}

/** A place in the order in which bitmaps are read. */
export interface HistoryPlace {
  readonly chunk: number
  readonly seq: number
}

export interface HistoryPage {
  readonly chunks: readonly (WrittenChunk & HistoryPlace)[]
  /** Nothing follows these. */
  readonly last: boolean
}

/** The part of doctor's output about a volume's history. */
export interface EraHistoryFacts {
  readonly volume: string
  readonly line: string
  readonly lineBecause: string
  /** Recorded snapshots; those with removed data; those whose bitmap may contain more than was written. */
  readonly snapshots: number
  readonly removed: number
  readonly supersets: number
  /** Earlier histories that still have snapshots. They cannot be compared with those of the present one. */
  readonly earlierLines: number
  /** When the oldest and newest were taken; milliseconds since 1970. */
  readonly oldestTakenAt: number | undefined
  readonly newestTakenAt: number | undefined
  /** Bitmaps, and their size in bytes. */
  readonly bitmaps: number
  readonly bytes: number
}

type SnapshotRow = RowOf<typeof eraSnapshotsTable>

/** A page is full with so many bytes of bitmaps. */
const PAGE_BYTES = 2 ** 20
/** Rows that are removed at once: 132 KB each at most. */
const ROWS_AT_ONCE = 32
/** The most names that one call forgets, so that no call waits long behind it. */
const MOST_NAMES_AT_ONCE = 10_000

/** Where the record of a volume's next snapshot continues. Clears what an interrupted one has left. */
export function beginEraHistory(database: CatalogDatabase, volume: string): LastBoundary {
  return database.write(() => {
    const tracked = eraVolumeRow(database, volume)
    clearStagedWrites(database, tracked)
    const { line, boundaryEra } = tracked
    return { line, boundaryEra }
  })
}

/** Stores a part of the next snapshot's bitmap. It has no effect before the snapshot is recorded. */
export function stageEraWrites(database: CatalogDatabase, volume: string, chunks: readonly WrittenChunk[]): void {
  database.write(() => {
    const { id, line, lastSeq } = eraVolumeRow(database, volume)
    for (const { chunk, blocks, bytes } of chunks) {
      database.writes.insert({ volume: id, chunk, seq: lastSeq + 1, line, blocks, bytes })
    }
  })
}

/**
 * Records a snapshot together with its stored bitmap, and completes the volume's intent.
 *
 * @param since the result of `beginEraHistory`: the history must not have changed since
 * @param exact whether the bitmap contains only what was written between the two boundaries
 * @throws DM_HISTORY_BROKEN when the era of the boundary lies before the last one's; DM_INTERNAL
 */
export function recordEraSnapshot(
  database: CatalogDatabase,
  volume: string,
  taken: TakenSnapshot,
  since: LastBoundary,
  exact: boolean
): EraSnapshot {
  return database.write(() => {
    const tracked = eraVolumeRow(database, volume)
    const pending = eraIntentsTable.get(database, { volume })
    if (pending?.kind !== 'snapshot' || pending.snapshot !== taken.name) {
      throw defect(`${volume}/${taken.name} is to be recorded, while ${pending?.kind ?? 'nothing'} is under way`)
    }
    if (tracked.line !== since.line || tracked.boundaryEra !== since.boundaryEra) {
      throw defect(`the history of ${volume} has moved on while ${taken.name} was recorded`)
    }
    const isFirst = tracked.boundaryEra === undefined
    if (tracked.boundaryEra !== undefined && taken.boundaryEra < tracked.boundaryEra) {
      throw new DeltamapperError(
        'DM_HISTORY_BROKEN',
        `tracked volume ${volume} goes back from era ${tracked.boundaryEra} to era ${taken.boundaryEra}`,
        'take a full backup; `deltamapper doctor` shows what is wrong with the volume'
      )
    }
    const replaced = eraSnapshotsTable.get(database, { volume: tracked.id, name: taken.name })
    if (replaced !== undefined) {
      if (replaced.removedAt === undefined) throw defect(`there already is a snapshot ${volume}/${taken.name}`)
      forget(database, replaced.id)
    }
    // The snapshot that was just forgotten may have been the last one.
    const { id, line, lineBecause, lastSeq, leastBytes, openExact } = eraVolumeRow(database, volume)
    const { name, boundaryEra, sizeBytes, takenAt, suspendedMs, lower } = taken
    const row: SnapshotRow = {
      ...{ id: `era-snapshot:${randomUUID()}`, volume: id, seq: lastSeq + 1, name, line, lineBecause },
      ...{ boundaryEra, sizeBytes, takenAt, suspendedMs, lower, removedAt: undefined },
      leastBytes: isFirst ? sizeBytes : Math.min(leastBytes, sizeBytes),
      exact: isFirst || (exact && openExact === 1) ? 1 : 0
    }
    eraSnapshotsTable.insert(database, row)
    eraVolumesTable.update(database, eraVolumeRow(database, volume), {
      ...{ boundaryEra, leastBytes: sizeBytes, openExact: 1, lastSeq: lastSeq + 1 }
    })
    eraIntentsTable.delete(database, [pending])
    return snapshotOf(row)
  })
}

/**
 * The snapshots of a volume, or of all, in the order in which they were taken, including those with removed data.
 * @param volume its name
 */
export function eraSnapshots(database: CatalogDatabase, volume?: string): EraSnapshot[] {
  const id = volume === undefined ? undefined : eraVolumeRow(database, volume).id
  const rows =
    id === undefined
      ? eraSnapshotsTable.select(database, 'ORDER BY volume, seq')
      : eraSnapshotsTable.select(database, 'WHERE volume = ? ORDER BY seq', id)
  return rows.map(snapshotOf)
}

/** @param volume its name */
export function findEraSnapshot(database: CatalogDatabase, volume: string, name: string): EraSnapshot | undefined {
  const tracked = eraVolumesTable.get(database, { name: volume })
  const row = tracked && eraSnapshotsTable.get(database, { volume: tracked.id, name })
  return row && snapshotOf(row)
}

/** Records that a snapshot's data were removed. It can still be asked about, and its name may be used again. */
export function deleteEraSnapshot(database: CatalogDatabase, volume: string, name: string, at: number): void {
  database.write(() => {
    const row = eraSnapshotsTable.get(database, { volume: eraVolumeRow(database, volume).id, name })
    if (row !== undefined && row.removedAt === undefined) eraSnapshotsTable.update(database, row, { removedAt: at })
  })
}

/**
 * The least size in bytes that a volume had from one of its snapshots to a later one of the same history, both
 * included; undefined when either is forgotten.
 */
export function leastEraSize(database: CatalogDatabase, base: string, target: string): number | undefined {
  const ends = rangeOf(database, base, target)
  if (ends === undefined) return undefined
  const { volume, from, to } = ends
  const between = eraSnapshotsTable.select(
    database,
    'WHERE volume = ? AND seq > ? AND seq <= ?',
    volume,
    from.seq,
    to.seq
  )
  return Math.min(from.sizeBytes, ...between.map(({ leastBytes }) => leastBytes))
}

/**
 * Bitmaps of the boundaries after the base, up to and including the target, by chunk and boundary.
 *
 * @param after the place of the last bitmap that was read; `seq` 0 for none of a chunk
 * @returns undefined when either snapshot is forgotten: what was read before then still counts, and no more follows
 * @throws DM_CATALOG_DAMAGED
 */
export function eraWrites(
  database: CatalogDatabase,
  base: string,
  target: string,
  after: HistoryPlace
): HistoryPage | undefined {
  const ends = rangeOf(database, base, target)
  if (ends === undefined) return undefined
  const { volume, from, to } = ends
  const chunks: (WrittenChunk & HistoryPlace)[] = []
  let bytes = 0
  for (const { chunk, seq } of database.writes.places(volume, from.seq, to.seq, after)) {
    if (bytes >= PAGE_BYTES) return { chunks, last: false }
    const { blocks, bytes: bitmap } = database.writes.get({ volume, chunk, seq })
    chunks.push({ chunk, seq, blocks, bytes: bitmap })
    bytes += bitmap.length
  }
  return { chunks, last: true }
}

/**
 * Forgets snapshots taken before a time, and beyond a number for each volume: first those without data, then the
 * oldest. A forgotten snapshot cannot be asked about; what was written between its neighbours stays known.
 *
 * @returns how many
 */
export function forgetEraSnapshots(
  database: CatalogDatabase,
  { before, keep }: { before: number; keep: number }
): number {
  return database.write(() => {
    let forgotten = 0
    for (const { id } of eraVolumesTable.find(database, {})) {
      const all = eraSnapshotsTable.select(database, 'WHERE volume = ? ORDER BY seq', id)
      const doomed = new Set(all.filter(({ takenAt }) => takenAt < before))
      const expendable = [...all.filter(isRemoved), ...all.filter((each) => !isRemoved(each))]
      for (const each of expendable) if (all.length - doomed.size > keep) doomed.add(each)
      // Each is read again: forgetting one changes its neighbour.
      for (const each of doomed) forget(database, each.id)
      forgotten += doomed.size
    }
    return forgotten
  })
}

/**
 * Merges bitmaps of forgotten boundaries into the next one's, and removes what no pair of snapshots needs any more; a
 * few at a time.
 *
 * @returns how many bitmaps are gone; call again while it is not 0
 */
export function compactEraHistory(database: CatalogDatabase): number {
  return database.write(() => {
    let gone = 0
    for (const volume of eraVolumesTable.find(database, {})) {
      gone += compact(database, volume, ROWS_AT_ONCE - gone)
      if (gone >= ROWS_AT_ONCE) break
    }
    return gone
  })
}

/**
 * When a forgotten snapshot of this name was taken; undefined if none is known. It may be forgotten because its name
 * was given to another, because of retention, or because its volume was detached. A client may mean that one by the
 * name.
 *
 * @param volume its name
 * @returns milliseconds since 1970
 */
export function eraNameUsedBefore(database: CatalogDatabase, volume: string, name: string): number | undefined {
  return eraNamesTable.get(database, { handle: `${volume}/${name}` })?.takenAt
}

/**
 * Forgets the oldest names of snapshots beyond a number; at most 10,000 a call.
 *
 * @returns how many; call again while it is not 0
 */
export function forgetEraNames(database: CatalogDatabase, keep: number): number {
  return database.write(() => {
    const kept = eraNamesTable.select(database, 'ORDER BY taken_at DESC LIMIT 1 OFFSET ?', Math.max(0, keep - 1))
    const limit = keep === 0 ? Number.MAX_SAFE_INTEGER : (kept.at(0)?.takenAt ?? 0)
    const doomed = eraNamesTable.select(
      database,
      'WHERE taken_at < ? ORDER BY taken_at LIMIT ?',
      limit,
      MOST_NAMES_AT_ONCE
    )
    eraNamesTable.delete(database, doomed)
    return doomed.length
  })
}

/** The history of each volume, by name. */
export function eraHistoryFacts(database: CatalogDatabase): EraHistoryFacts[] {
  return eraVolumesTable.find(database, {}).map(({ id, name, line, lineBecause }) => {
    const snapshots = eraSnapshotsTable.select(database, 'WHERE volume = ? ORDER BY seq', id)
    return {
      ...{ volume: name, line, lineBecause, ...database.writes.totals(id) },
      snapshots: snapshots.length,
      removed: snapshots.filter(isRemoved).length,
      supersets: snapshots.filter(({ exact }) => exact === 0).length,
      earlierLines: new Set(snapshots.map((each) => each.line)).difference(new Set([line])).size,
      oldestTakenAt: snapshots.at(0)?.takenAt,
      newestTakenAt: snapshots.at(-1)?.takenAt
    }
  })
}

/** Removes all of a volume's history, in the caller's transaction. */
export function forgetVolumeHistory(database: CatalogDatabase, { id, name }: EraVolumeRow): void {
  for (const { seq } of database.writes.boundaries(id)) deleteWrites(database, id, seq)
  const snapshots = eraSnapshotsTable.find(database, { volume: id })
  eraSnapshotsTable.delete(database, snapshots)
  for (const each of snapshots) rememberName(database, name, each)
}

/** Removes what was stored for a snapshot that was not recorded, in the caller's transaction. */
export function clearStagedWrites(database: CatalogDatabase, { id, lastSeq }: EraVolumeRow): void {
  for (const { seq } of database.writes.boundaries(id)) if (seq > lastSeq) deleteWrites(database, id, seq)
}

/**
 * Moves what a forgotten snapshot knew of the time before it to the next snapshot of its history, or to the next one to
 * be taken.
 *
 * @param id of a recorded snapshot; its row may change as soon as the snapshot before it is forgotten
 */
function forget(database: CatalogDatabase, id: string): void {
  const row = eraSnapshotsTable.get(database, { id })
  if (row === undefined) throw defect(`the snapshot ${id} was to be forgotten, and is not on record`)
  eraSnapshotsTable.delete(database, [row])
  const { volume, line, seq, leastBytes, exact } = row
  const rest = eraSnapshotsTable.select(database, 'WHERE volume = ? AND line = ? ORDER BY seq', volume, line)
  const next = rest.find((each) => each.seq > seq)
  const tracked = eraVolumesTable.get(database, { id: volume })
  if (tracked === undefined) throw defect(`there is no volume ${volume} of snapshot ${row.name}`)
  rememberName(database, tracked.name, row)
  const isNewest = next === undefined && tracked.line === line
  if (rest.length === 0 && isNewest) {
    // Nothing is left to be a base: the next snapshot is the first.
    eraVolumesTable.update(database, tracked, { boundaryEra: undefined, leastBytes: tracked.sizeBytes, openExact: 1 })
  } else if (rest.at(0) !== next) {
    // An earlier snapshot is left, and later ones are compared with it.
    if (next !== undefined) {
      eraSnapshotsTable.update(database, next, {
        leastBytes: Math.min(next.leastBytes, leastBytes),
        exact: Math.min(next.exact, exact)
      })
    } else if (isNewest) {
      eraVolumesTable.update(database, tracked, {
        leastBytes: Math.min(tracked.leastBytes, leastBytes),
        openExact: Math.min(tracked.openExact, exact)
      })
    }
  }
}

/** A client may come back with this name: as base, or to resume an answer. */
function rememberName(database: CatalogDatabase, volume: string, { name, takenAt }: SnapshotRow): void {
  const handle = `${volume}/${name}`
  const known = eraNamesTable.get(database, { handle })
  if (known === undefined) eraNamesTable.insert(database, { handle, takenAt })
  else eraNamesTable.update(database, known, { takenAt: Math.max(known.takenAt, takenAt) })
}

function compact(database: CatalogDatabase, volume: EraVolumeRow, most: number): number {
  const snapshots = eraSnapshotsTable.select(database, 'WHERE volume = ? ORDER BY seq', volume.id)
  let gone = 0
  for (const { line, seq } of database.writes.boundaries(volume.id)) {
    if (gone >= most || seq > volume.lastSeq) break
    const ofLine = snapshots.filter((snapshot) => snapshot.line === line)
    const isNeeded = ofLine.length > 0 && ofLine[0].seq < seq
    const next = ofLine.find((snapshot) => snapshot.seq >= seq)
    const isAwaited = next === undefined && line === volume.line
    if (!isNeeded || (next === undefined && !isAwaited)) {
      gone += deleteWrites(database, volume.id, seq, most - gone)
    } else if (next !== undefined && next.seq !== seq) {
      gone += mergeWrites(database, volume.id, seq, next.seq, most - gone)
    }
  }
  return gone
}

/** @returns how many */
function deleteWrites(database: CatalogDatabase, volume: string, seq: number, most = Infinity): number {
  const { writes } = database
  const chunks = writes.chunks(volume, seq).slice(0, most)
  for (const chunk of chunks) writes.delete(writes.get({ volume, chunk, seq }))
  return chunks.length
}

/** Moves bitmaps of one boundary to a later one. @returns how many */
function mergeWrites(database: CatalogDatabase, volume: string, seq: number, into: number, most: number): number {
  const { writes } = database
  const chunks = writes.chunks(volume, seq).slice(0, most)
  for (const chunk of chunks) {
    const row = writes.get({ volume, chunk, seq })
    writes.delete(row)
    if (!writes.has({ volume, chunk, seq: into })) {
      writes.insert({ ...row, seq: into })
      continue
    }
    const other = writes.get({ volume, chunk, seq: into })
    using union = new ChunkUnion(chunk)
    union.add(row)
    union.add(other)
    const { blocks, bytes } = union.toChunk()
    writes.update(other, { blocks, bytes })
  }
  return chunks.length
}

/**
 * Two snapshots as they are recorded now; undefined when either is forgotten. @throws DM_INTERNAL for a pair that
 * nobody may ask for
 */
function rangeOf(database: CatalogDatabase, base: string, target: string) {
  const from = eraSnapshotsTable.get(database, { id: base })
  const to = eraSnapshotsTable.get(database, { id: target })
  if (from === undefined || to === undefined) return undefined
  if (from.volume !== to.volume || from.line !== to.line || from.seq > to.seq) {
    throw defect(`${from.name} and ${to.name} were to be compared, of different lines or in reverse`)
  }
  return { volume: from.volume, from, to }
}

function isRemoved({ removedAt }: SnapshotRow): boolean {
  return removedAt !== undefined
}

function snapshotOf({ leastBytes: _least, exact, ...snapshot }: SnapshotRow): EraSnapshot {
  return { ...snapshot, exact: exact === 1 }
}
