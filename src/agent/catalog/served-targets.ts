/**
 * The record of what was served as target, and of what was compared with as base, and when.
 *
 * Durable before the first message of the answer leaves: a client may keep what it received even if the answer never ends, resume
 * it in a second call, and come back with the snapshot as base. A record made at the end would miss what happened in between.
 *
 * A client knows only the handle. So for each handle and identity the *first* fingerprint is kept for good, and a second one if it
 * ever differs: two records that differ cannot both match, so the snapshot is never taken for an unchanged base again. A base is
 * remembered as well, in records of its own: the client holds a backup of it, whether or not that was made through us, and a later
 * snapshot by its name is another one. That it was a base proves nothing of what it was before.
 */
import type { CatalogDatabase } from './database.ts'
import { compareFingerprints, type KnownSnapshot, type Role, type ServedTarget } from './fingerprint.ts'
import { type RowOf, Table } from './store/table.ts'

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

/** A snapshot on record with the times, in milliseconds since 1970, when it was first and last answered about; the last to within an hour. */
export interface ServedRecord extends KnownSnapshot {
  readonly firstServedAt: number
  readonly lastServedAt: number
}

type ServedRow = RowOf<typeof servedTable>

/** Serving the same target again writes only this often: the time is for retention, which forgets the oldest of very many. Milliseconds. */
const LAST_SERVED_RESOLUTION = 3_600_000
/** Rows that one call of `forgetServed` removes at most, so that nothing waits long behind it. */
const MOST_FORGOTTEN = 10_000

/**
 * Records that a snapshot is about to be answered about.
 *
 * @param role as target, or as the base of one
 * @returns 'new'; 'known' when it was so before and is the same; 'changed' when it was so before and was different
 */
export function remember(
  database: CatalogDatabase,
  snapshot: ServedTarget,
  at: number,
  role: Role = 'target'
): 'new' | 'known' | 'changed' {
  const { handle, identity } = snapshot
  return database.write(() => {
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
      // Which volume it was of is best known early: LVM forgets it when the origin is merged or removed. Its pool was a path once.
      const same = compareFingerprints(each, snapshot).relation === 'same'
      const volume = each.volume ?? (same ? snapshot.volume : undefined)
      const pool = same ? snapshot.pool : each.pool
      if (!outOfDate && volume === each.volume && pool === each.pool) continue
      servedTable.update(database, each, { pool, volume, lastServedAt: outOfDate ? at : each.lastServedAt })
    }
    return records.length === 0 ? 'new' : known && records.length === 1 ? 'known' : 'changed'
  })
}

/** Everything on record under this handle, or with this identity under another. */
export function findServed(
  database: CatalogDatabase,
  {
    handle,
    identity,
    formerIdentity,
    formerPlace
  }: Pick<ServedTarget, 'handle' | 'identity' | 'formerIdentity' | 'formerPlace'>
): ServedRecord[] {
  const byHandle = servedTable.find(database, { handle })
  const identities = [identity, formerIdentity, formerPlace].filter((each) => each !== undefined)
  const byIdentity = identities.flatMap((each) => servedTable.find(database, { identity: each }))
  return [...byHandle, ...byIdentity.filter((each) => each.handle !== handle)].map(record)
}

/**
 * Forgets the oldest beyond a number. What is forgotten is unknown afterwards: as base it is answered on its mappings' evidence alone. At most
 * 10,000 records a call, and a few more to keep together what belongs together.
 *
 * @returns how many records were removed; call again while it is not 0
 */
export function forgetServed(database: CatalogDatabase, keep: number): number {
  return database.write(() => {
    const [lastKept] = servedTable.select(
      database,
      'ORDER BY last_served_at DESC LIMIT 1 OFFSET ?',
      Math.max(0, keep - 1)
    )
    // What was served at the very same time as the last one kept stays, so that records that differ are not torn apart.
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
export function servedWithIdentity(database: CatalogDatabase, identity: string): ServedRecord[] {
  return servedTable.find(database, { identity }).map(record)
}

function record({ variant: _variant, ...rest }: ServedRow): ServedRecord {
  return withRole(rest)
}

/** What is not known to be a base was served: that is the stricter one where a role decides. */
function withRole<R extends { readonly role: string }>(row: R): R & { role: Role } {
  return { ...row, role: row.role === 'base' ? 'base' : 'target' }
}
