/**
 * Whether a base is still what it was when it was served.
 *
 * A backup of a snapshot holds the snapshot's content at that time. If the snapshot was written to or trimmed since, or
 * another one has its name now, a delta from it misses blocks that the backup has differently. A restore would be
 * wrong, and nobody would notice. So the fingerprint of every target is recorded when it is served, and compared when
 * the snapshot is used as base.
 *
 * This comparison finds trims, other devices, and every write that maps a block anew. It does not find a write to a
 * block that the snapshot shares with its origin, which changes no number; the time of its mapping shows that one
 * (thin-walk.ts). The place of the tree's root and its checksum prove nothing, because freed metadata blocks are used
 * again, and both can recur.
 */
import { DeltamapperError } from '../../errors.ts'
import { ANY_SOURCE } from '../../handle.ts'

/** What was served, under which name, and how it is recognised. */
export interface ServedTarget {
  /** As the client asked for it. */
  readonly handle: string
  /** The same by the source's own spelling, where the client has another. Not recorded. */
  readonly ownHandle?: string | undefined
  /**
   * Made by the source; the same for as long as the source takes it for the same snapshot, under any name. Opaque here.
   */
  readonly identity: string
  /**
   * The identity in records from before schema 5, where an LVM volume had another identity if it was asked for by
   * device-mapper's names. Not recorded.
   */
  readonly formerIdentity?: string | undefined
  /**
   * The identity in records from before schema 5 if the pool was known by its path alone. A pool that was made anew has
   * the same path, so such a record may be of this snapshot or of another. Not recorded.
   */
  readonly formerPlace?: string | undefined
  /** Key of its pool, whose clock `creationTime` is read from. Opaque here; a path in records from before schema 5. */
  readonly pool: string
  /** Key of the volume it is a snapshot of, if the source knows it. Opaque here. */
  readonly volume: string | undefined
  readonly thinId: number
  /** The pool's clock when it was created. */
  readonly creationTime: number
  /** Data blocks it maps, shared ones included. */
  readonly mappedBlocks: number
  /** The transaction id in its device details: the pool's when it was created. */
  readonly transactionId: bigint
  readonly sizeBytes: number
}

export type Comparison =
  | { readonly relation: 'same' }
  /**
   * The same identity, but written to, trimmed, resized, or replaced by another device (`lvconvert --merge`). `what`
   * ends the sentence "since it was served, ...".
   */
  | { readonly relation: 'changed'; readonly what: string }
  /** Another device. */
  | { readonly relation: 'replaced'; readonly what: string }

/** Compares the record of a served snapshot with what has its handle or identity now. Handles do not matter. */
export function compareFingerprints(recorded: ServedTarget, now: ServedTarget): Comparison {
  if (!sameDevice(recorded, now)) {
    return { relation: 'replaced', what: `${now.identity} has taken the place of ${recorded.identity}` }
  }
  for (const [field, name, relation] of identifying) {
    if (recorded[field] !== now[field]) {
      return { relation, what: `its ${name} went from ${recorded[field]} to ${now[field]}` }
    }
  }
  if (recorded.sizeBytes !== now.sizeBytes) {
    return { relation: 'changed', what: `it was resized from ${recorded.sizeBytes} to ${now.sizeBytes} bytes` }
  }
  if (recorded.mappedBlocks > now.mappedBlocks) {
    return { relation: 'changed', what: `it was trimmed from ${recorded.mappedBlocks} to ${now.mappedBlocks} blocks` }
  }
  if (recorded.mappedBlocks < now.mappedBlocks) {
    return {
      relation: 'changed',
      what: `it was written to: ${recorded.mappedBlocks} blocks became ${now.mappedBlocks}`
    }
  }
  return { relation: 'same' }
}

function sameDevice(recorded: ServedTarget, now: ServedTarget): boolean {
  if (recorded.identity === now.formerIdentity) return true
  if (recorded.identity !== now.identity) return false
  // Records from before schema 5 have the path of the pool's metadata, which a rename changes; their identities are as
  // good as ours.
  return recorded.pool === now.pool || (isPath(recorded.pool) && !isPath(now.pool))
}

function isPath(pool: string): boolean {
  return pool.startsWith('/')
}

/**
 * An identity made of a place in a pool (served-target.ts) contains the first two. If they differ under one identity,
 * it is LVM's: when a snapshot is merged into a volume, the volume keeps its UUID and has the snapshot's device from
 * then on.
 */
const identifying = [
  ['thinId', 'thin device id', 'changed'],
  ['creationTime', "pool's clock at its creation", 'changed'],
  ['transactionId', 'transaction id at its creation', 'replaced']
] as const satisfies [keyof ServedTarget, string, Comparison['relation']][]

/** The role of a snapshot in an answer. */
export type Role = 'target' | 'base'

/** The record of a snapshot. */
export interface KnownSnapshot extends ServedTarget {
  readonly role: Role
}

/**
 * Decides whether a snapshot can be the base of a delta, as far as records tell.
 *
 * @param recorded all records with its handle or its identity
 * @returns 'unchanged' when it was served as target, and is the same; 'unrecorded' when it never was, so that nothing
 *   proves that it was not trimmed
 * @throws DM_BASE_CHANGED when anything was answered under this handle that the handle does not name now: the client
 *   may hold a backup of that
 */
export function checkBase(recorded: readonly KnownSnapshot[], now: ServedTarget): 'unchanged' | 'unrecorded' {
  let verdict: 'unchanged' | 'unrecorded' = 'unrecorded'
  for (const each of recorded) {
    const comparison = compareFingerprints(each, now)
    if (comparison.relation === 'same') {
      if (each.role === 'target') verdict = 'unchanged'
      continue
    }
    // Thin ids, and identities made of them, are used again: records of a vanished snapshot under another name do not
    // concern this one.
    if (comparison.relation === 'replaced' && isElsewhere(each, now)) continue
    const was = each.role === 'target' ? 'served' : 'used as a base'
    throw new DeltamapperError(
      'DM_BASE_CHANGED',
      comparison.relation === 'changed'
        ? `${now.handle} is not what it was when it was ${was} as ${each.handle}: ${comparison.what}`
        : `${now.handle} is another snapshot than the one ${was} ${by(each, now)}: ${comparison.what}`,
      comparison.relation === 'changed'
        ? 'take a full backup, and keep snapshots read-only from now on'
        : 'take a full backup, and give every snapshot a name of its own from now on'
    )
  }
  return verdict
}

/** Whether a record is about another snapshot, by its name and by its place. */
function isElsewhere(recorded: KnownSnapshot, now: ServedTarget): boolean {
  return !spellings(now).includes(recorded.handle) && recorded.identity !== now.formerPlace
}

/**
 * All handles that a client may have for what this one names: `VG/LV` as LVM has it, and LV with `*` for its group.
 * Names rotate, whichever way they are spelt.
 */
export function spellings({ handle, ownHandle = handle }: Pick<ServedTarget, 'handle' | 'ownHandle'>): string[] {
  const name = ownHandle.slice(ownHandle.indexOf('/') + 1)
  return [...new Set([handle, ownHandle, `${ANY_SOURCE}/${name}`])]
}

function by(recorded: KnownSnapshot, now: ServedTarget): string {
  return spellings(now).includes(recorded.handle)
    ? 'by this name'
    : `as ${recorded.handle} by an earlier version, or cannot be told from it`
}

/**
 * Whether an answer may be resumed. Both parts are one answer only if they are about the same snapshot.
 *
 * @param recorded all records with the target's handle or its identity
 * @throws DM_RESUME_REFUSED when nothing was served from the beginning under this handle, or not only what the handle
 *   names now
 */
export function checkResumed(recorded: readonly KnownSnapshot[], now: ServedTarget): void {
  const served = recorded.filter((each) => each.role === 'target')
  if (!served.some((each) => each.handle === now.handle)) {
    throw resumeRefused(now.handle, 'no answer about it was begun by this name')
  }
  for (const each of served) {
    const comparison = compareFingerprints(each, now)
    if (comparison.relation === 'same') continue
    if (comparison.relation === 'replaced' && isElsewhere(each, now)) continue
    throw resumeRefused(now.handle, `since an answer about it was begun, ${comparison.what}`)
  }
}

export function resumeRefused(handle: string, why: string): DeltamapperError {
  return new DeltamapperError(
    'DM_RESUME_REFUSED',
    `the answer about ${handle} cannot go on from an offset: ${why}`,
    'discard what was received, and ask again from the beginning'
  )
}
