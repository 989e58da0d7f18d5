/**
 * Whether an answer about a live pool may begin, decided and recorded in one call before the first message leaves.
 *
 * A base that was served must still be what it was then, because that is what the backup holds. A base that was never
 * served may have been trimmed without a trace; it is answered unless `strictBases` refuses it. A resumed answer must
 * be about the same snapshot as its beginning. Base and target must not be known to be unrelated, or reversed in time.
 */
import { DeltamapperError } from '../../errors.ts'
import {
  baseByHandle,
  type BaseLook,
  checkUsable,
  countAnswer,
  enterGone,
  enterReused,
  enterSpoiling,
  type KnownBase,
  type PoolLook,
  refuse,
  sawServedBase
} from './bases.ts'
import { refuseServedAsClassic } from './classic-served.ts'
import { checkBase, checkResumed, resumeRefused, type ServedTarget } from './fingerprint.ts'
import { compareLineage, type Lineage, type LineageFacts, type LineageMember } from './lineage.ts'
import { findThin } from './owned-pools.ts'
import { checkSinceWentBack, type WentBack } from './pool-clocks.ts'
import { findServed, rememberWithin, servedWithIdentity, type ServedRecord } from './served-targets.ts'
import type { Writable } from './store/table.ts'

/** What is about to be answered. */
export interface Admission {
  /** Undefined: everything that the target has allocated. */
  readonly base: ServedTarget | undefined
  readonly target: ServedTarget
  /** The answer is resumed at an offset, where an earlier one ended. */
  readonly resumed: boolean
  /** Whether a base that was never served is refused. */
  readonly strictBases: boolean
  /** Whether base and target may be of different volumes. */
  readonly anyVolume?: boolean
  /** When the pool was last found in an earlier state, by a look of just now. */
  readonly wentBack: WentBack | undefined
  /** What a record would depend on; left out for snapshots that none can stand for. */
  readonly looks?: { readonly base?: BaseLook | undefined; readonly target: BaseLook | undefined } | undefined
}

/** An answer about what changed since a base that is gone. */
export interface RecordAdmission extends Pick<Admission, 'target' | 'resumed' | 'anyVolume' | 'wentBack'> {
  /** The base's handle, as the client has it. */
  readonly handle: string
  /** What the record says that it stands for. */
  readonly recorded: Pick<KnownBase, 'record' | 'identity'>
  readonly pool: PoolLook
  readonly looks?: { readonly target: BaseLook | undefined } | undefined
}

/** The verdict on the base; `unchanged` if there is none. */
export type Admitted = 'unchanged' | 'unrecorded'

/**
 * @param at milliseconds since 1970
 * @throws DM_POOL_WENT_BACK, DM_BASE_CHANGED, DM_BASE_UNRECORDED, DM_RESUME_REFUSED, DM_VOLUMES_DIFFER,
 *   DM_ORDER_REVERSED; then nothing was recorded
 */
export function admit(
  database: Writable,
  { base, target, resumed, strictBases, wentBack, looks, anyVolume = false }: Admission,
  at: number
): Admitted {
  if (base && looks?.base) enterSpoiling(database, base, looks.base)
  if (base) enterReused(database, base)
  if (looks?.target) enterSpoiling(database, target, looks.target)
  const before = { base: base && findServed(database, base), target: findServed(database, target) }
  if (resumed) checkGoesOn(findServed(database, target), target, wentBack)
  let known: Admitted = 'unchanged'
  if (base) {
    refuseServedAsClassic(database, base.ownHandle ?? base.handle)
    const records = findServed(database, base)
    checkSinceWentBack(base.handle, records, wentBack)
    known = checkBase(records, base)
    if (known === 'unrecorded') checkUnrecorded(records, base, { resumed, strictBases })
    checkLineage(database, base, target, anyVolume)
  }
  // Answered since the pool was restored, whatever the wall clock says.
  const now = Math.max(at, (wentBack?.at ?? 0) + 1)
  database.write(() => {
    if (base) rememberWithin(database, base, now, 'base')
    rememberWithin(database, target, now, 'target')
    if (base && looks?.base) sawServedBase(database, base, looks.base, before.base ?? [], 'base', now)
    if (looks?.target) sawServedBase(database, target, looks.target, before.target, 'target', now)
  })
  return known
}

/**
 * Whether an answer may begin that compares with a record. Its base has been found neither by its handle nor in the
 * pool's metadata.
 *
 * @param at milliseconds since 1970
 * @returns the base
 * @throws DM_BASE_RECORD_…, DM_RESUME_REFUSED, DM_VOLUMES_DIFFER, DM_POOLS_DIFFER
 */
export function admitFromRecord(
  database: Writable,
  { handle, recorded, pool, target, resumed, wentBack, looks, anyVolume = false }: RecordAdmission,
  at: number
): KnownBase {
  if (looks?.target) enterSpoiling(database, target, looks.target)
  const served = findServed(database, target)
  if (resumed) checkGoesOn(served, target, wentBack)
  const found = baseByHandle(database, handle, target.pool)
  if (found?.identity !== recorded.identity || found.record !== recorded.record) {
    throw refuse('DM_BASE_RECORD_NONE', handle, 'its record was removed or replaced while it was looked up')
  }
  if (wentBack !== undefined && found.firstServedAt <= wentBack.at) {
    throw refuse('DM_BASE_RECORD_ROLLED_BACK', handle, `its pool was restored to an earlier state: ${wentBack.how}`)
  }
  const known = enterGone(database, found, pool, at)
  checkUsable(known, handle)
  const base: ServedTarget = { ...known, handle }
  if (!anyVolume) checkVolumes(base, target)
  checkLineage(database, base, target, anyVolume)
  const now = Math.max(at, (wentBack?.at ?? 0) + 1)
  database.write(() => {
    rememberWithin(database, base, now, 'base')
    rememberWithin(database, target, now, 'target')
    countAnswer(database, known)
    if (looks?.target) sawServedBase(database, target, looks.target, served, 'target', now)
  })
  return known
}

/** @throws DM_RESUME_REFUSED */
function checkGoesOn(records: readonly ServedRecord[], target: ServedTarget, wentBack: WentBack | undefined): void {
  checkResumed(records, target)
  if (wentBack === undefined || records.every(({ firstServedAt }) => firstServedAt > wentBack.at)) return
  throw resumeRefused(target.handle, `its pool was restored to an earlier state since it was begun: ${wentBack.how}`)
}

/** @throws DM_BASE_UNRECORDED, DM_RESUME_REFUSED */
function checkUnrecorded(
  records: readonly ServedRecord[],
  { handle }: ServedTarget,
  { resumed, strictBases }: Pick<Admission, 'resumed' | 'strictBases'>
): void {
  if (strictBases) {
    throw new DeltamapperError(
      'DM_BASE_UNRECORDED',
      `${handle} was never served here, or was forgotten: nothing proves that it holds what the backup of it does`,
      'take a full backup through this agent; `strictBases: false` answers for such bases'
    )
  }
  if (resumed && records.length === 0) throw resumeRefused(handle, 'no answer was begun with it as base')
}

/** Of a base that is gone, only its row tells the volume. @throws DM_VOLUMES_DIFFER */
function checkVolumes(base: ServedTarget, target: ServedTarget): void {
  if (base.volume === undefined || target.volume === undefined || base.volume === target.volume) return
  if (base.volume === target.identity || target.volume === base.identity) return
  throw new DeltamapperError(
    'DM_VOLUMES_DIFFER',
    `${base.handle}, which is gone, was taken of another volume than ${target.handle}`,
    'compare snapshots of one volume'
  )
}

/** @throws DM_VOLUMES_DIFFER, DM_ORDER_REVERSED */
function checkLineage(database: Writable, base: ServedTarget, target: ServedTarget, anyVolume: boolean): void {
  if (base.identity === target.identity) return
  const relation = lineage(database, base, target)
  if (relation === 'different-volumes' && !anyVolume) {
    throw new DeltamapperError(
      'DM_VOLUMES_DIFFER',
      `${base.handle} and ${target.handle} were taken of different volumes, the catalog says`,
      'compare snapshots of one volume'
    )
  }
  if (relation === 'after') {
    throw new DeltamapperError(
      'DM_ORDER_REVERSED',
      `base ${base.handle} was taken after target ${target.handle}, the catalog says`,
      'ask the other way round'
    )
  }
}

/**
 * How two snapshots are related, according to their records.
 *
 * An owned thin's id is its identity; other records are known by the time when they were served. `lvconvert --merge`
 * puts another device in a volume's place and keeps its UUID. What was served before that has another creation time,
 * and says nothing of this device.
 */
export function lineage(database: Writable, one: LineageMember, other: LineageMember): Lineage {
  const facts = ({ identity, creationTime }: LineageMember): LineageFacts[] => {
    const thin = findThin(database, identity)
    if (thin !== undefined) return [{ ...thin, identity }]
    return servedWithIdentity(database, identity).filter((each) => each.creationTime === creationTime)
  }
  return compareLineage(facts(one), facts(other))
}
