/**
 * Which questions about a changing pool may be refused, which must be, and under which code. The table that a workload's every answer
 * is held against:
 *
 *   a handle that names nothing                                           must be  DM_SNAPSHOT_NOT_FOUND
 *   … the base's, which was served as a writable snapshot of LVM's        may be   DM_BASE_RECORD_WRITABLE …
 *   a device id where a name should be, and no such device (dmsetup)      must be  DM_NOT_TRACKED
 *   a snapshot that waits to be merged (LVM)                              must be  DM_NOT_TRACKED
 *   a volume as target: its device may be in use                         may be   DM_VOLUME_IN_USE
 *   a target that was served as something else, gone on with             may be   DM_RESUME_REFUSED
 *   a base in another pool                                                must be  DM_POOLS_DIFFER
 *   snapshots of different volumes, LVM says                              must be  DM_VOLUMES_DIFFER
 *   … as LVM said when they were served                                   may be   DM_VOLUMES_DIFFER
 *   a base that was taken after the target                                must be  DM_ORDER_REVERSED
 *   … that is a volume: the pool's clock only ticks with snapshots        may be   DM_ORDER_REVERSED
 *   a base that was written to since it was taken                         must be  DM_BASE_CHANGED
 *   a volume as base, once anything was written to it                     must be  DM_BASE_CHANGED
 *   … never written to                                                    may be   DM_BASE_CHANGED
 *   a base that was served as something else: other mappings, another
 *     size, another snapshot under its handle                             must be  DM_BASE_CHANGED
 *   … where it is not certain that an answer got as far as the records    may be   DM_BASE_CHANGED
 *
 * Where several hold, each of their codes is right. Where nothing holds, the question has to be answered. And whatever is answered has
 * to be right, byte for byte: this table excuses refusals only.
 */
import type { ErrorCode } from '../../src/errors.ts'

/** What is in the pool: it stays itself through renames, and is another one under the same name and thin id. */
export interface PoolDevice {
  /** Counts up with every device that was ever created. */
  readonly serial: number
  /** A snapshot's mappings are older than itself until it is written to. */
  readonly isSnapshot: boolean
  /** Goes up with everything that may have changed its mappings. */
  version: number
  written: boolean
}

/** What a handle names. */
export interface NamedThin {
  readonly name: string
  /** What it goes by whatever its name: LVM's UUID, or the device itself. */
  readonly identity: string
  readonly device: PoolDevice
  readonly sizeBytes: number
  /** The identity of what LVM says that it is a snapshot of. */
  readonly originIdentity: string | undefined
  /** It waits to be merged into its origin. */
  readonly merging: boolean
}

/** That something was served. */
export interface ServedRecord {
  readonly handle: string
  readonly identity: string
  readonly serial: number
  readonly version: number
  readonly sizeBytes: number
  readonly originIdentity: string | undefined
  /** The answer was complete, so it was recorded; else it may have been. */
  readonly certain: boolean
}

export interface Refusal {
  readonly code: ErrorCode
  /** An answer would be a mistake. */
  readonly certain: boolean
  readonly why: string
}

/** What a handle stands for that names no thin of this pool. */
export type Stranger = 'nothing' | 'bare device id' | 'in another pool'

export interface Question {
  /** Undefined: everything that is allocated. */
  readonly base?: NamedThin | Stranger
  readonly baseHandle?: string
  readonly target: NamedThin | Stranger
}

/** Every refusal of this question that would be right. */
export function expectedRefusals(question: Question, records: readonly ServedRecord[]): Refusal[] {
  const { base, baseHandle, target } = question
  const strangers = [base, target].filter((each) => typeof each === 'string')
  // What is in another pool can be found; to compare it with something of this pool is what is wrong.
  const refused = strangers.filter((each) => base === undefined || each !== 'in another pool')
  if (refused.length > 0) return [...refused.map(strangerRefusal), ...(base === 'nothing' ? goneRefusals : [])]
  if (strangers.length === 1) return [{ code: 'DM_POOLS_DIFFER', certain: true, why: 'one is in another pool' }]
  if (typeof target === 'string' || typeof base === 'string') return []

  const refusals: Refusal[] = []
  const add = (code: ErrorCode, certain: boolean, why: string) => refusals.push({ code, certain, why })
  for (const each of [base, target]) if (each?.merging) add('DM_NOT_TRACKED', true, `${each.name} waits to be merged`)
  if (!target.device.isSnapshot) add('DM_VOLUME_IN_USE', false, 'the target is a volume, which may be in use')
  const ofTarget = ({ handle, identity }: ServedRecord) =>
    handle.endsWith(`/${target.name}`) || identity === target.identity
  if (records.some((each) => ofTarget(each) && !isSame(each, target))) {
    add('DM_RESUME_REFUSED', false, 'the target was served as something else, so that only an answer from 0 is certain')
  }
  if (base === undefined) return refusals

  if (base.identity !== target.identity) {
    const related = (ofBase: string | undefined, ofTarget: string | undefined) =>
      ofBase === undefined ||
      ofTarget === undefined ||
      ofBase === ofTarget ||
      ofBase === target.identity ||
      ofTarget === base.identity
    if (!related(base.originIdentity, target.originIdentity)) {
      add('DM_VOLUMES_DIFFER', true, 'they are snapshots of different volumes')
    }
    const origins = ({ identity, originIdentity }: NamedThin) => [
      originIdentity,
      ...records.filter((each) => each.identity === identity).map((each) => each.originIdentity)
    ]
    const targets = origins(target)
    if (origins(base).some((ofBase) => targets.some((ofTarget) => !related(ofBase, ofTarget)))) {
      add('DM_VOLUMES_DIFFER', false, 'they were snapshots of different volumes')
    }
  }
  if (base.device.serial > target.device.serial) {
    add('DM_ORDER_REVERSED', base.device.isSnapshot, 'the base was taken after the target')
  }
  if (base.device.written) add('DM_BASE_CHANGED', true, 'the base was written to')
  else if (!base.device.isSnapshot) add('DM_BASE_CHANGED', false, 'the base is a volume')
  for (const record of records) {
    if (record.handle !== baseHandle && record.identity !== base.identity) continue
    if (isSame(record, base)) continue
    // Another device under another handle has nothing to do with this one, identities may be used again.
    const replaced = record.identity !== base.identity || record.serial !== base.device.serial
    if (replaced && record.handle !== baseHandle) continue
    add(
      'DM_BASE_CHANGED',
      record.certain,
      `it was served as ${record.handle} when it was ${replaced ? 'another' : 'not as it is now'}`
    )
  }
  return refusals
}

/** A base that was served and is gone: these snapshots are writable, so that no record can stand for them. */
const goneRefusals: readonly Refusal[] = (
  ['DM_BASE_RECORD_WRITABLE', 'DM_BASE_RECORD_AMBIGUOUS', 'DM_BASE_RECORD_UNWATCHED', 'DM_POOLS_DIFFER'] as const
).map((code) => ({ code, certain: true, why: 'the base was served, and is gone' }))

function strangerRefusal(stranger: Stranger): Refusal {
  return stranger === 'bare device id'
    ? { code: 'DM_NOT_TRACKED', certain: true, why: 'the size of a bare device id is not known' }
    : { code: 'DM_SNAPSHOT_NOT_FOUND', certain: true, why: 'a handle names nothing' }
}

function isSame(record: ServedRecord, { identity, device, sizeBytes }: NamedThin): boolean {
  return (
    record.identity === identity &&
    record.serial === device.serial &&
    record.version === device.version &&
    record.sizeBytes === sizeBytes
  )
}
