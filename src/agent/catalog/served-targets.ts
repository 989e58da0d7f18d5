/**
 * The record of what was served as target, or used as base, and when.
 *
 * It is durable before the first message of the answer leaves. A client may keep a part of an answer that never ends,
 * resume it in a second call, and come back with the snapshot as base. A record made at the end would miss changes in
 * between.
 *
 * A client knows only the handle. So for each handle and identity the *first* fingerprint is kept for ever, and a
 * second one if it ever differs. Two different records cannot both match, so the snapshot never counts as an unchanged
 * base again. Bases are recorded too, in records of their own: the client holds a backup of the base, made through us
 * or not, and a later snapshot of that name is another one. That it was a base proves nothing of its state before.
 */
import { compareFingerprints, type KnownSnapshot, type Role, type ServedTarget, spellings } from './fingerprint.ts'
import { type RowOf, Table, type Writable } from './store/table.ts'

export const servedTable = new Table(
  'served',
  {
    handle: 'text',
    identity: 'text',
    role: 'text',
    variant: 'count',
    pool: 'text',
    volume: 'text?',
    thinId: 'count',
    creationTime: 'count',
    transactionId: 'u64',
    mappedBlocks: 'count',
    sizeBytes: 'count',
    firstServedAt: 'count',
    lastServedAt: 'count'
  } as const,
  ['handle', 'identity', 'role', 'variant']
)

/**
 * A recorded snapshot with the times, in milliseconds since 1970, when it was first and last answered about; the last
 * is exact to an hour.
 */
export interface ServedRecord extends KnownSnapshot {
  readonly firstServedAt: number
  readonly lastServedAt: number
}

type ServedRow = RowOf<typeof servedTable>

/**
 * How often serving the same target again updates its time, in milliseconds. The time is for retention, which forgets
 * the oldest of very many.
 */
const LAST_SERVED_RESOLUTION = 3_600_000
/** The most rows that one call of `forgetServed` removes, so that no call waits long behind it. */
const MOST_FORGOTTEN = 10_000

/**
 * Records that an answer about a snapshot is about to begin.
 *
 * @param role as target, or as the base of one
 * @returns 'new'; 'known' when it was recorded before and is the same; 'changed' when it was recorded before and was
 *   different
 */
export function remember(
  database: Writable,
  snapshot: ServedTarget,
  at: number,
  role: Role = 'target'
): 'new' | 'known' | 'changed' {
  return database.write(() => rememberWithin(database, snapshot, at, role))
}

/** The same within a transaction of the caller. */
export function rememberWithin(
  database: Writable,
  snapshot: ServedTarget,
  at: number,
  role: Role
): 'new' | 'known' | 'changed' {
  const { handle, identity } = snapshot
  const records = servedTable.find(database, { handle, identity, role }).map(withRole)
  const known = records.some((each) => compareFingerprints(each, snapshot).relation === 'same')
  const added = !known && records.length < 2
  if (added) {
    const { pool, volume, thinId, creationTime, transactionId, mappedBlocks, sizeBytes } = snapshot
    servedTable.insert(database, {
      ...{ handle, identity, role, pool, volume, thinId, creationTime, transactionId, mappedBlocks, sizeBytes },
      variant: records.length,
      firstServedAt: at,
      lastServedAt: at
    })
  }
  for (const each of records) {
    // Records that differ are forgotten together or not at all, so they share their last time.
    const outOfDate = added || at - each.lastServedAt >= LAST_SERVED_RESOLUTION
    // Its volume is best known early: LVM forgets it when the origin is merged or removed. Its pool was a path once.
    const same = compareFingerprints(each, snapshot).relation === 'same'
    const volume = each.volume ?? (same ? snapshot.volume : undefined)
    const pool = same ? snapshot.pool : each.pool
    if (!outOfDate && volume === each.volume && pool === each.pool) continue
    servedTable.update(database, each, { pool, volume, lastServedAt: outOfDate ? at : each.lastServedAt })
  }
  return records.length === 0 ? 'new' : known && records.length === 1 ? 'known' : 'changed'
}

/**
 * All records with this handle, however it is spelt, or with this identity under another. In another pool, `*` meant
 * another group's.
 */
export function findServed(
  database: Writable,
  {
    handle,
    ownHandle,
    pool,
    identity,
    formerIdentity,
    formerPlace
  }: Pick<ServedTarget, 'handle' | 'ownHandle' | 'identity' | 'formerIdentity' | 'formerPlace'> & { pool?: string }
): ServedRecord[] {
  const handles = spellings({ handle, ownHandle })
  const byHandle = handles.flatMap((each) =>
    servedTable
      .find(database, { handle: each })
      .filter((row) => each === handle || each === ownHandle || row.pool === pool)
  )
  const identities = [identity, formerIdentity, formerPlace].filter((each) => each !== undefined)
  const byIdentity = identities.flatMap((each) => servedTable.find(database, { identity: each }))
  return [...byHandle, ...byIdentity.filter((each) => !handles.includes(each.handle))].map(record)
}

/**
 * Forgets the oldest records beyond a number. A base without a record is checked by its mappings alone. At most 10,000
 * records a call, and a few more to keep together what belongs together.
 *
 * @returns how many records were removed; call again while it is not 0
 */
export function forgetServed(database: Writable, keep: number): number {
  return database.write(() => {
    const [lastKept] = servedTable.select(
      database,
      'ORDER BY last_served_at DESC LIMIT 1 OFFSET ?',
      Math.max(0, keep - 1)
    )
    // Records of exactly the same time as the last one kept stay, so that records that differ are not separated.
    const limit = keep === 0 ? Number.MAX_SAFE_INTEGER : (lastKept?.lastServedAt ?? 0)
    const oldest = servedTable.select(
      database,
      'WHERE last_served_at < ? ORDER BY last_served_at LIMIT ?',
      limit,
      MOST_FORGOTTEN
    )
    const last = oldest.at(-1)
    if (last === undefined) return 0
    const doomed =
      oldest.length < MOST_FORGOTTEN
        ? oldest
        : servedTable.select(database, 'WHERE last_served_at <= ?', last.lastServedAt)
    servedTable.delete(database, doomed)
    return doomed.length
  })
}

/** Everything that was ever served with this identity, for lineage. */
export function servedWithIdentity(database: Writable, identity: string): ServedRecord[] {
  return servedTable.find(database, { identity }).map(record)
}

function record({ variant: _variant, ...rest }: ServedRow): ServedRecord {
  return withRole(rest)
}

/** If the role is not recorded, it was a target: the stricter case. */
function withRole<R extends { readonly role: string }>(row: R): R & { role: Role } {
  return { ...row, role: row.role === 'base' ? 'base' : 'target' }
}
