/**
 * How far every pool had come when it was last looked at: so that a pool that goes on from an earlier state (metadata restored from a copy,
 * disks put back) is not taken for one that went on. How that shows: src/devicemapper/thin/pool-moment.ts.
 */
import { howWentBack, type PoolMoment } from '../../devicemapper/thin/pool-moment.ts'
import { DeltamapperError } from '../../errors.ts'
import type { CatalogDatabase } from './database.ts'
import { type ServedRecord, servedTable } from './served-targets.ts'
import { Table } from './store/table.ts'

export const poolClocksTable = new Table(
  'pool_clocks',
  {
    pool: 'text',
    time: 'count',
    transactionId: 'u64',
    devices: 'bytes',
    lookedAt: 'count',
    wentBackAt: 'count?',
    wentBack: 'text?'
  } as const,
  ['pool']
)

/** A pool's clock, read at one moment. */
export interface PoolClock extends PoolMoment {
  /** Which pool it is (pool-identity.ts). */
  readonly pool: string
}

/** When it was found that a pool had gone back, and how that showed. Milliseconds since 1970. */
export interface WentBack {
  readonly at: number
  readonly how: string
}

/**
 * Takes a look into account. Looks at one pool are to be told in the order in which they were made.
 *
 * @returns when the pool was last found to have gone back, be it now; undefined where it never was
 */
export function sawPoolClock(database: CatalogDatabase, now: PoolClock, at: number): WentBack | undefined {
  const { pool, time, transactionId, devices } = now
  const seen = { time, transactionId, devices, lookedAt: at }
  const before = poolClocksTable.byKey(database, pool)
  if (!before) {
    database.write(() => {
      poolClocksTable.insert(database, { pool, ...seen, wentBackAt: undefined, wentBack: undefined })
    })
    return undefined
  }
  const how = howWentBack(before, now)
  const isSame =
    time === before.time && transactionId === before.transactionId && Buffer.compare(devices, before.devices) === 0
  if (how !== undefined) {
    // Whatever the wall clock has been set to since: all that is on record was served before.
    const [newest] = servedTable.select(database, 'ORDER BY first_served_at DESC LIMIT 1')
    const wentBackAt = Math.max(at, before.lookedAt, newest?.firstServedAt ?? 0)
    database.write(() => poolClocksTable.update(database, before, { ...seen, wentBackAt, wentBack: how }))
    return { at: wentBackAt, how }
  }
  if (!isSame) database.write(() => poolClocksTable.update(database, before, seen))
  return wentBackOf(before)
}

/** What is known of a pool without another look. */
export function poolWentBack(database: CatalogDatabase, pool: string): WentBack | undefined {
  const known = poolClocksTable.byKey(database, pool)
  return known && wentBackOf(known)
}

function wentBackOf({ wentBackAt, wentBack = '' }: { wentBackAt?: number | undefined; wentBack?: string | undefined }) {
  return wentBackAt === undefined ? undefined : { at: wentBackAt, how: wentBack }
}

/**
 * Refuses a base that was not served for the first time since its pool went back: what a backup of it holds may be what it was before.
 *
 * @param recorded everything that was served under its handle or its identity
 * @throws DM_POOL_WENT_BACK
 */
export function checkSinceWentBack(
  handle: string,
  recorded: readonly Pick<ServedRecord, 'firstServedAt'>[],
  wentBack: WentBack | undefined
): void {
  if (!wentBack) return
  if (recorded.length > 0 && recorded.every(({ firstServedAt }) => firstServedAt > wentBack.at)) return
  throw new DeltamapperError(
    'DM_POOL_WENT_BACK',
    `the pool of ${handle} went on from an earlier state, which was noticed at ${new Date(wentBack.at).toISOString()}: ${wentBack.how}`,
    'take a full backup of a new snapshot; what was backed up before is no base any more'
  )
}
