/**
 * Whether what lies below classic snapshots is LVM's, from one look to the next. LVM moves data while they are served
 * (pvmove), so that tables that are unlike its metadata may be its own:
 *
 *     LVM     suspends, with the new table loaded ── commits its metadata ── resumes, with the new table
 *     a look                          metadata ···· tables
 *
 * - Metadata that were read before the commit, and tables after: those tables stay, and the next metadata are of them.
 * - Metadata after it, and tables before the resume: they are those of the last look, and the loaded ones are right.
 *
 * Every other table that was seen once is somebody else's, also where it is gone at the next look: what was written by
 * way of it is in no store.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { isDeepStrictEqual } from 'node:util'
import { detached, type TablesBelow } from '../node/classic-devices.ts'
import { changedMeanwhile } from './second-look.ts'

/** So often tables are looked at while LVM is at work on them, and with what pause, in milliseconds. */
const TABLE_LOOKS = 3
const TABLE_LOOK_MS = 1000

/** One of them that is not as LVM has it. */
export interface UnlikeTable {
  readonly below: keyof TablesBelow
  /** As a clause. */
  readonly why: string
  /** LVM is about to put the right one in its place. */
  readonly isLeaving: boolean
}

/** What a look at a snapshot says of what lies below it. */
export interface LookedBelow {
  readonly handle: string
  readonly tables: TablesBelow
  readonly unlike: readonly UnlikeTable[]
  /** Which state of the group they were held against. */
  readonly sequenceNumber: bigint
}

export interface BelowOptions {
  /** The last look at which all was right, in the same order; left out before an answer. */
  readonly good?: readonly LookedBelow[] | undefined
  /** Tables that were seen since, if any: they are looked at because they are other ones. */
  readonly seen?: readonly TablesBelow[] | undefined
  /** Told of what is not right at a look, and looked at again. */
  readonly onUnlike?: ((snapshot: LookedBelow) => void) | undefined
  /** Between looks, in milliseconds; 1,000 by default. */
  readonly pauseMs?: number | undefined
}

/**
 * @param snapshots as they are looked at now
 * @param again takes another look
 * @returns the first look at which all is right
 * @throws DM_COW_DETACHED where it is not; DM_SNAPSHOT_CHANGED where LVM may have changed it in between; what looking
 *   throws
 */
export async function rightBelow<Looked extends LookedBelow>(
  snapshots: readonly Looked[],
  again: () => Promise<readonly Looked[]>,
  { good, seen = [], onUnlike, pauseMs = TABLE_LOOK_MS }: BelowOptions = {}
): Promise<readonly Looked[]> {
  for (const [i, tables] of seen.entries()) checkSeen(tables, snapshots[i], good?.[i])
  for (let look = 1; ; look++) {
    const wrong = snapshots.find(({ unlike }) => unlike.length > 0)
    if (!wrong) return snapshots
    if (look === TABLE_LOOKS) throw isLeaving(wrong) ? changedMeanwhile(wrong.handle) : notLvms(wrong)
    onUnlike?.(wrong)
    await sleep(pauseMs)
    const now = await again()
    for (const [i, before] of snapshots.entries()) checkStep(before, now[i], good?.[i])
    snapshots = now
  }
}

/** Whether tables that were unlike are LVM's, by what they have become. */
function checkStep(before: LookedBelow, now: LookedBelow, good: LookedBelow | undefined): void {
  const isSameState = before.sequenceNumber === now.sequenceNumber && isDeepStrictEqual(before.tables, now.tables)
  if (isSameState && !isLeaving(now)) throw notLvms(now)
  for (const { below, isLeaving: isOnItsWay } of before.unlike) {
    const was = before.tables[below]
    if (isDeepStrictEqual(was, now.tables[below]) || isDeepStrictEqual(was, good?.tables[below])) continue
    if (isOnItsWay && !good) continue
    const isOfLvm = isOnItsWay || now.sequenceNumber !== (good ?? before).sequenceNumber
    throw isOfLvm ? changedMeanwhile(before.handle) : notLvms(before)
  }
}

/** The same of tables that nobody has held against LVM's metadata. */
function checkSeen(seen: TablesBelow, now: LookedBelow, good: LookedBelow | undefined): void {
  for (const below of ['origin', 'store'] as const) {
    if (isDeepStrictEqual(seen[below], now.tables[below])) continue
    if (isDeepStrictEqual(seen[below], good?.tables[below])) continue
    if (now.sequenceNumber !== good?.sequenceNumber) throw changedMeanwhile(now.handle)
    throw detached(now.handle, "what lies below it had another table for a moment, which is none of LVM's")
  }
}

/** All that is unlike. */
function isLeaving({ unlike }: Pick<LookedBelow, 'unlike'>): boolean {
  return unlike.every((each) => each.isLeaving)
}

function notLvms(snapshot: LookedBelow): Error {
  return detached(snapshot.handle, `of what lies below it, ${whatIsUnlike(snapshot)}`)
}

/** As a clause. */
export function whatIsUnlike({ unlike }: Pick<LookedBelow, 'unlike'>): string {
  return unlike.map(({ why }) => why).join('; ')
}
