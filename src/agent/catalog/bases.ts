/**
 * Which snapshots a record may stand for once they are gone: what was seen of each since its first answer.
 *
 * A record holds what was served. Backup software may have copied the snapshot later, so the record is as good as the
 * backup only if nobody wrote to the snapshot between its first answer and its end. Nothing in a pool's metadata tells
 * that afterwards. So a row is made before the first message leaves, each look is entered in it (bases/base-looks.ts),
 * and one look at anything else than the same read-only snapshot spoils it for good.
 *
 * All of it holds within one activation of the pool only: while it is not active, its metadata can be put back to an
 * earlier state, repaired or moved; and after an unclean stop with discards passed down, a mapping can be back whose
 * data are gone. Each activation is another instance (`deviceInstance` in devicemapper/block-queue.ts).
 */
import { DeltamapperError, type ErrorCode } from '../../errors.ts'
import type { ServedTarget } from './fingerprint.ts'
import { type ServedRecord, servedTable } from './served-targets.ts'
import { type RowOf, Table, type Writable } from './store/table.ts'

export const basesTable = new Table(
  'bases',
  {
    pool: 'text',
    identity: 'text',
    handle: 'text',
    volume: 'text?',
    thinId: 'count',
    creationTime: 'count',
    transactionId: 'u64',
    mappedBlocks: 'count',
    sizeBytes: 'count',
    root: 'count',
    rootChecksum: 'count',
    instance: 'text',
    firstServedAt: 'count',
    seenAt: 'count',
    goneAt: 'count?',
    spoiltBy: 'text?',
    spoilt: 'text?',
    record: 'text?',
    recordBytes: 'count?',
    recordedAt: 'count?',
    notKept: 'text?',
    answers: 'count'
  } as const,
  ['pool', 'identity']
)

/**
 * A snapshot that was served. `firstServedAt`, `goneAt` and `recordedAt` are milliseconds since 1970; `seenAt`, when it
 * was last found as it was, milliseconds since the machine was started. `record` is the name of a file, of
 * `recordBytes` bytes; `notKept` says why there is none. `answers` counts those from the record.
 */
export type KnownBase = RowOf<typeof basesTable>

/** A snapshot's pool and identity: the key of its row. */
export type BaseKey = Pick<KnownBase, 'pool' | 'identity'>

/** A snapshot at one look. */
export interface BaseLook {
  /** The activation of its pool. Empty if the kernel does not tell one from another. */
  readonly instance: string
  /** When the look began, in milliseconds since the machine was started. */
  readonly uptimeMs: number
  /** Why it could be written to; undefined for one that its maker has made read-only. */
  readonly writable: string | undefined
  /** The fields of a fingerprint that `ServedTarget` lacks (pool-metadata.ts). */
  readonly root: number
  readonly rootChecksum: number
}

/** The pool of a question at the moment, as far as records depend on it. */
export type PoolLook = Pick<BaseLook, 'instance' | 'uptimeMs'>

/**
 * The longest time between the last look at a snapshot and the first that finds it gone, in milliseconds. Looks are
 * made every 10 seconds, so that one may fail.
 */
export const LONGEST_UNWATCHED_MS = 30_000

/**
 * Enters a look at a snapshot that is being served, within a transaction of the caller.
 *
 * @param served the catalog's records of it from before
 * @param role only a target gets a row of its own: what was backed up of another's base is not known
 */
export function sawServedBase(
  database: Writable,
  now: ServedTarget,
  look: BaseLook,
  served: readonly ServedRecord[],
  role: 'target' | 'base',
  at: number
): void {
  const { pool, identity } = now
  const known = basesTable.byKey(database, pool, identity)
  if (known) {
    enter(database, known, now, look)
    return
  }
  if (role === 'base') return
  const { handle, volume, thinId, creationTime, transactionId, mappedBlocks, sizeBytes } = now
  const isSnapshot = volume !== undefined
  const unwatched = served.length > 0 ? 'it was served before anything watched it' : undefined
  const spoilt =
    look.instance === '' ? 'this kernel (before 5.15) does not tell whether a pool was activated anew' : look.writable
  basesTable.insert(database, {
    ...{ pool, identity, handle, volume, thinId, creationTime, transactionId, mappedBlocks, sizeBytes },
    ...{ root: look.root, rootChecksum: look.rootChecksum, instance: look.instance },
    ...{ firstServedAt: at, seenAt: look.uptimeMs, goneAt: undefined },
    ...spoiltFields(
      spoilt !== undefined
        ? ['DM_BASE_RECORD_WRITABLE', spoilt]
        : !isSnapshot
          ? ['DM_BASE_RECORD_WRITABLE', 'it is not known to be a snapshot']
          : unwatched !== undefined
            ? ['DM_BASE_RECORD_UNWATCHED', unwatched]
            : undefined
    ),
    ...{ record: undefined, recordBytes: undefined, recordedAt: undefined, notKept: undefined, answers: 0 }
  })
}

/** Enters a look at a snapshot that is there. */
export function sawBase(database: Writable, now: ServedTarget, look: BaseLook): void {
  const known = basesTable.byKey(database, now.pool, now.identity)
  if (known) database.write(() => enter(database, known, now, look))
}

/**
 * Enters what spoils the record of a snapshot that a question is about, whatever becomes of the question: a refusal is
 * no reason to forget what was seen.
 */
export function enterSpoiling(database: Writable, now: ServedTarget, look: BaseLook): void {
  const known = basesTable.byKey(database, now.pool, now.identity)
  if (known === undefined || known.spoilt !== undefined) return
  if (whatChanged(known, now, look) !== undefined) database.write(() => enter(database, known, now, look))
}

/**
 * Enters that a handle means another snapshot than the one that was served by it: once both are gone, nothing else
 * tells which of them a client means.
 */
export function enterReused(database: Writable, { handle, pool, identity }: ServedTarget): void {
  const others = servedTable.find(database, { handle }).filter((each) => each.identity !== identity)
  const watched = others.map((each) => basesTable.byKey(database, each.pool, each.identity))
  const usable = watched.filter((each) => each !== undefined && each.spoilt === undefined)
  if (usable.length === 0) return
  const why = `its handle has meant another snapshot since, ${identity} in ${pool}`
  database.write(() => {
    for (const each of new Map(usable.map((known) => [known?.identity, known])).values()) {
      if (each) basesTable.update(database, each, spoiltFields(['DM_BASE_RECORD_AMBIGUOUS', why]))
    }
  })
}

function enter(database: Writable, known: KnownBase, now: ServedTarget, look: BaseLook): void {
  const change = whatChanged(known, now, look)
  const seenAt = Math.max(known.seenAt, look.uptimeMs)
  // What is spoilt stays so, for its first reason.
  if (known.spoilt !== undefined) return
  if (change === undefined) basesTable.update(database, known, { seenAt })
  else basesTable.update(database, known, spoiltFields(change))
}

function whatChanged(known: KnownBase, now: ServedTarget, look: BaseLook): Spoiling | undefined {
  if (known.instance !== look.instance) return activatedAnew
  if (look.writable !== undefined) return ['DM_BASE_RECORD_WRITABLE', look.writable]
  if (known.goneAt !== undefined) {
    return ['DM_BASE_RECORD_ROLLED_BACK', 'it was gone from its pool, and is back']
  }
  const isSame =
    known.thinId === now.thinId &&
    known.creationTime === now.creationTime &&
    known.transactionId === now.transactionId &&
    known.mappedBlocks === now.mappedBlocks &&
    known.sizeBytes === now.sizeBytes &&
    known.root === look.root &&
    known.rootChecksum === look.rootChecksum
  return isSame ? undefined : ['DM_BASE_RECORD_WRITABLE', 'it was written to, trimmed, resized or replaced']
}

/**
 * Enters that a snapshot is not there any more, at a question about it or a look.
 *
 * @returns its row as it is now; `checkUsable` says whether it stands for the snapshot
 */
export function enterGone(database: Writable, known: KnownBase, look: PoolLook, at: number): KnownBase {
  if (known.spoilt !== undefined) return known
  const changes = look.instance === known.instance ? {} : spoiltFields(activatedAnew)
  const after = known.goneAt === undefined ? gone(known, look, at) : changes
  if (Object.keys(after).length > 0) database.write(() => basesTable.update(database, known, after))
  return { ...known, ...after }
}

/** The same at a look. */
export function sawBaseGone(database: Writable, key: BaseKey, look: PoolLook, at: number): void {
  const known = basesTable.byKey(database, key.pool, key.identity)
  if (known) enterGone(database, known, look, at)
}

function gone(known: KnownBase, { instance, uptimeMs }: PoolLook, at: number): Partial<KnownBase> {
  if (known.instance !== instance) return spoiltFields(activatedAnew)
  // Where a container has a clock of its own, it may have begun anew.
  const unwatchedMs = uptimeMs < known.seenAt ? Infinity : uptimeMs - known.seenAt
  if (unwatchedMs <= LONGEST_UNWATCHED_MS) return { goneAt: at }
  const seconds = Math.round(unwatchedMs / 1000)
  const why = `nobody looked at it in the last ${seconds} seconds that it may have been there`
  return { goneAt: at, ...spoiltFields(['DM_BASE_RECORD_UNWATCHED', why]) }
}

/** Enters that nothing on record of a pool from before may be relied on. */
export function spoilPool(database: Writable, pool: string, by: ErrorCode, why: string): void {
  database.write(() => spoilPoolWithin(database, pool, by, why))
}

/** The same within a transaction of the caller. */
export function spoilPoolWithin(database: Writable, pool: string, by: ErrorCode, why: string): void {
  for (const known of basesTable.find(database, { pool })) {
    if (known.spoilt === undefined) basesTable.update(database, known, spoiltFields([by, why]))
  }
}

/** Enters that a snapshot is about to be made writable, or may have been. */
export function spoilBase(database: Writable, identity: string, why: string): void {
  database.write(() => {
    for (const known of basesTable.find(database, { identity })) {
      if (known.spoilt !== undefined) continue
      basesTable.update(database, known, spoiltFields(['DM_BASE_RECORD_WRITABLE', why]))
    }
  })
}

type Spoiling = readonly [by: ErrorCode, why: string]

const activatedAnew: Spoiling = [
  'DM_BASE_RECORD_INTERRUPTED',
  'its pool was deactivated, or stopped, and activated anew since it was served'
]

function spoiltFields(spoiling: Spoiling | undefined): Pick<KnownBase, 'spoiltBy' | 'spoilt'> {
  return { spoiltBy: spoiling?.[0], spoilt: spoiling?.[1] }
}

/** A record that was written to disk. */
export interface KeptRecord extends BaseKey {
  /** Name of its file. */
  readonly record: string
  readonly bytes: number
}

/**
 * Enters a record. @returns false when it may not stand for the snapshot, or another one does: then its file is of no
 * use
 */
export function keptRecord(database: Writable, { pool, identity, record, bytes }: KeptRecord, at: number): boolean {
  const known = basesTable.byKey(database, pool, identity)
  if (known === undefined || known.spoilt !== undefined || known.record !== undefined) return false
  database.write(() =>
    basesTable.update(database, known, { record, recordBytes: bytes, recordedAt: at, notKept: undefined })
  )
  return true
}

/** Enters that a record was removed, and why. */
export function lostRecord(database: Writable, { pool, identity }: BaseKey, notKept: string): void {
  const known = basesTable.byKey(database, pool, identity)
  if (known === undefined) return
  const none = { record: undefined, recordBytes: undefined, recordedAt: undefined }
  database.write(() => basesTable.update(database, known, { ...none, notKept }))
}

/** Enters that a record could not be kept, and why. */
export function notKeptRecord(database: Writable, { pool, identity }: BaseKey, notKept: string): void {
  const known = basesTable.byKey(database, pool, identity)
  if (known === undefined || known.record !== undefined) return
  database.write(() => basesTable.update(database, known, { notKept: notKept.slice(0, 1000) }))
}

/** All, in the order of pool and identity. */
export function listBases(database: Writable): KnownBase[] {
  return basesTable.find(database, {})
}

/** Those that are looked at, again and again. */
export function watchedBases(database: Writable): KnownBase[] {
  return basesTable.select(database, 'WHERE spoilt IS NULL AND gone_at IS NULL ORDER BY pool, identity')
}

export function findBase(database: Writable, { pool, identity }: BaseKey): KnownBase | undefined {
  return basesTable.byKey(database, pool, identity)
}

/** Forgets snapshots that are gone and of which there is no record. */
export function forgetBases(database: Writable, keys: readonly BaseKey[]): void {
  database.write(() => {
    for (const { pool, identity } of keys) {
      const known = basesTable.byKey(database, pool, identity)
      if (known?.goneAt !== undefined && known.record === undefined) basesTable.delete(database, [known])
    }
  })
}

/**
 * The snapshot that a handle meant, which means none now; undefined if nothing that is watched was
 * ever answered about by this handle.
 *
 * @param pool the pool of the target
 * @throws DM_BASE_RECORD_AMBIGUOUS for a handle that meant two; DM_BASE_RECORD_NONE and the others when no record
 *   stands for it
 */
export function baseByHandle(database: Writable, handle: string, pool: string): KnownBase | undefined {
  const served = servedTable.find(database, { handle })
  const watched = served.map((each) => basesTable.byKey(database, each.pool, each.identity))
  const known = watched.find((each) => each !== undefined)
  // Of what is not watched, a pool of dmsetup's for one, nothing is known but that it was there.
  if (known === undefined) return undefined
  const meant = new Set(
    served.map(({ identity, pool, thinId, creationTime, transactionId, mappedBlocks, sizeBytes }) =>
      JSON.stringify([identity, pool, thinId, creationTime, String(transactionId), mappedBlocks, sizeBytes])
    )
  )
  const [{ creationTime, mappedBlocks }] = served
  if (meant.size > 1 || known.creationTime !== creationTime || known.mappedBlocks !== mappedBlocks) {
    throw refuse('DM_BASE_RECORD_AMBIGUOUS', handle, 'this handle has meant two snapshots, or one that changed')
  }
  if (known.pool !== pool) {
    throw new DeltamapperError(
      'DM_POOLS_DIFFER',
      `${handle}, which no longer exists, was in another pool than the target`,
      'compare snapshots of one volume'
    )
  }
  checkUsable(known, handle)
  return known
}

/** @throws what spoilt it; DM_BASE_RECORD_NONE */
export function checkUsable(known: KnownBase, handle = known.handle): void {
  if (known.spoilt !== undefined) throw refuse(known.spoiltBy as ErrorCode, handle, known.spoilt)
  if (known.record === undefined) {
    throw refuse('DM_BASE_RECORD_NONE', handle, known.notKept ?? 'no answer about it has run to its end')
  }
}

/** Counts an answer from a record, within a transaction of the caller. */
export function countAnswer(database: Writable, known: KnownBase): void {
  basesTable.update(database, known, { answers: known.answers + 1 })
}

/** The error of a base that is gone, where no record stands for it. */
export function refuse(code: ErrorCode, handle: string, why: string): DeltamapperError {
  return new DeltamapperError(
    code,
    `the base ${handle} no longer exists, and no record can stand for it: ${why}`,
    'take a full backup; `deltamapper doctor` tells which snapshots have to stay'
  )
}
