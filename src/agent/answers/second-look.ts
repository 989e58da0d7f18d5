/**
 * A second look at the snapshots of a question, once what they are answered from is open: between the first look and
 * that, any name can have gone to another snapshot.
 */
import { isDeepStrictEqual } from 'node:util'
import { DeltamapperError } from '../../errors.ts'
import type { FoundSnapshot } from '../walks/snapshot.ts'
import type { LookUp } from './target.ts'

/**
 * Looks them up again by their handles.
 *
 * @param compared what of a snapshot has to be as it was; all of it by default
 * @returns them as they are now
 * @throws DM_SNAPSHOT_CHANGED when anything of that differs; what looking up throws
 */
export async function lookAgain<Snapshot extends FoundSnapshot>(
  snapshots: readonly Snapshot[],
  lookUp: LookUp,
  compared: (snapshot: FoundSnapshot) => unknown = (snapshot) => snapshot
): Promise<readonly Snapshot[]> {
  const now = (await lookUp(snapshots.map(({ handle }) => handle))) as Snapshot[]
  for (const [i, snapshot] of snapshots.entries()) {
    if (!isDeepStrictEqual(compared(snapshot), compared(now[i]))) throw changedMeanwhile(snapshot.handle)
  }
  return now
}

/** A base that was not found is still not there. @throws DM_SNAPSHOT_CHANGED, and what looking up throws */
export async function checkStillGone(handle: string, lookUp: LookUp): Promise<void> {
  const found = await lookUp([handle]).catch((error: unknown) => {
    if (error instanceof DeltamapperError && error.code === 'DM_SNAPSHOT_NOT_FOUND') return undefined
    throw error
  })
  if (found) throw changedMeanwhile(handle)
}

export function changedMeanwhile(handle: string): DeltamapperError {
  return new DeltamapperError(
    'DM_SNAPSHOT_CHANGED',
    `${handle} was renamed, replaced, resized, moved or merged while it was looked at`,
    'ask again from the beginning'
  )
}
