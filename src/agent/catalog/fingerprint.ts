/**
 * Whether a base is still what it was when it was served.
 *
 * A backup that was made of a snapshot holds what the snapshot held then. If the snapshot was written to or trimmed since, or another
 * one goes by its name now, then a delta from it leaves out blocks that the backup has differently: a restore would be wrong, and
 * nobody would notice. So the fingerprint of every target is kept from when it is served, and compared when it is asked for as base.
 *
 * Not everything shows: a block that the snapshot had to itself when it was served can be overwritten in place, and no metadata
 * changes. Snapshots that were written to before they were served are found out by their mappings' times instead.
 */
import { DeltamapperError } from '../../errors.ts'
import type { Fingerprint } from '../../devicemapper/thin/pool-metadata.ts'

/** What was served, under which name, and by what it is known again. */
export interface ServedTarget extends Fingerprint {
  /** As the client asked for it. */
  readonly handle: string
  /** Made by the source; the same for as long as the source takes it for the same snapshot. Opaque here. */
  readonly identity: string
  /** Key of its pool, whose clock `creationTime` is read from. Opaque here. */
  readonly pool: string
  /** Key of the volume it is a snapshot of, where the source knows it. Opaque here. */
  readonly volume: string | undefined
  readonly thinId: number
  /** The transaction id in its device details: the pool's when it was created. */
  readonly transactionId: bigint
  readonly sizeBytes: number
}

export type Comparison =
  | { readonly relation: 'same' }
  /** The same device, but written to, trimmed or resized. `what` ends the sentence "since it was served, ...". */
  | { readonly relation: 'changed'; readonly what: string }
  /** Another device. */
  | { readonly relation: 'replaced'; readonly what: string }

/** Compares what was recorded when a snapshot was served with what goes by its handle or identity now. Handles do not matter. */
export function compareFingerprints(recorded: ServedTarget, now: ServedTarget): Comparison {
  if (recorded.identity !== now.identity || recorded.pool !== now.pool) {
    return { relation: 'replaced', what: `${now.identity} has taken the place of ${recorded.identity}` }
  }
  for (const [field, name] of identifying) {
    if (recorded[field] !== now[field]) {
      return { relation: 'replaced', what: `its ${name} went from ${recorded[field]} to ${now[field]}` }
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
  if (recorded.root !== now.root || recorded.rootChecksum !== now.rootChecksum) {
    return { relation: 'changed', what: `it was written to or trimmed: its mappings are not those it had` }
  }
  return { relation: 'same' }
}

const identifying = [
  ['thinId', 'thin device id'],
  ['creationTime', "pool's clock at its creation"],
  ['transactionId', 'transaction id at its creation']
] as const satisfies [keyof ServedTarget, string][]

/**
 * Decides whether a snapshot can be the base of a delta.
 *
 * @param recorded everything that was served under its handle or its identity
 * @returns 'unchanged' when it was served under this handle, and is the same; 'unrecorded' when there is no record, so that nothing
 *   proves that it was not trimmed (to be logged)
 * @throws DM_BASE_CHANGED when anything was served under this handle that is not what the handle names now: the client may hold that
 */
export function checkBase(recorded: readonly ServedTarget[], now: ServedTarget): 'unchanged' | 'unrecorded' {
  let verdict: 'unchanged' | 'unrecorded' = 'unrecorded'
  for (const each of recorded) {
    const comparison = compareFingerprints(each, now)
    if (comparison.relation === 'same') {
      verdict = 'unchanged'
      continue
    }
    // Thin ids, and identities made of them, are used again: what was served by another name and is gone does not concern this one.
    if (comparison.relation === 'replaced' && each.handle !== now.handle) continue
    throw new DeltamapperError(
      'DM_BASE_CHANGED',
      comparison.relation === 'changed'
        ? `${now.handle} is not what it was when it was served as ${each.handle}: ${comparison.what}`
        : `${now.handle} is another snapshot than the one served by this name: ${comparison.what}`,
      comparison.relation === 'changed'
        ? 'take a full backup, and keep snapshots read-only from now on'
        : 'take a full backup, and give every snapshot a name of its own from now on'
    )
  }
  return verdict
}
