/**
 * How far every pool had come at the last look. This shows a pool that was restored to an earlier state (metadata from
 * a copy, disks put back). How it shows: src/devicemapper/thin/base-record/pool-moment.ts.
 */
import { howWentBack, type PoolMoment } from '../../devicemapper/thin/base-record/pool-moment.ts'
import { DeltamapperError } from '../../errors.ts'
import { spoilPoolWithin } from './bases.ts'
import { type ServedRecord, servedTable } from './served-targets.ts'
import { Table, type Writable } from './store/table.ts'

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

/** When a pool was found in an earlier state, and what showed it. Milliseconds since 1970. */
export interface WentBack {
  readonly at: number
  readonly how: string
}

/**
 * Takes a look into account. Report the looks at one pool in the order in which they were made.
 *
 * @returns when the pool was last found in an earlier state, perhaps now; undefined if never
 */
export function sawPoolClock(database: Writable, now: PoolClock, at: number): WentBack | undefined {
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
    // Everything on record was served before, even if the wall clock was set back since.
    const [newest] = servedTable.select(database, 'ORDER BY first_served_at DESC LIMIT 1')
    const wentBackAt = Math.max(at, before.lookedAt, newest?.firstServedAt ?? 0)
    database.write(() => {
      poolClocksTable.update(database, before, { ...seen, wentBackAt, wentBack: how })
      const why = `its pool was restored to an earlier state: ${how}`
      spoilPoolWithin(database, pool, 'DM_BASE_RECORD_ROLLED_BACK', why)
    })
    return { at: wentBackAt, how }
  }
  if (!isSame) database.write(() => poolClocksTable.update(database, before, seen))
  return wentBackOf(before)
}

/** What is known of a pool without another look. */
export function poolWentBack(database: Writable, pool: string): WentBack | undefined {
  const known = poolClocksTable.byKey(database, pool)
  return known && wentBackOf(known)
}

function wentBackOf({ wentBackAt, wentBack = '' }: { wentBackAt?: number | undefined; wentBack?: string | undefined }) {
  return wentBackAt === undefined ? undefined : { at: wentBackAt, how: wentBack }
}

/**
 * Refuses a base that was first served before its pool was restored to an earlier state: the client's backup may be of
 * what the base was before.
 *
 * @param recorded all served records with its handle or its identity
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
    `the pool of ${handle} was restored to an earlier state, which was noticed at ${new Date(wentBack.at).toISOString()}: ${wentBack.how}`,
    'take a full backup of a new snapshot; what was backed up before is no longer a base'
  )
}
