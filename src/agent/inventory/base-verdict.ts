/** Whether a snapshot could be the base of a delta now, as far as that shows without reading its mappings. */
import { DeltamapperError } from '../../errors.ts'
import type { AsBase } from './examination.ts'
import { checkBase, compareFingerprints, type KnownSnapshot, type ServedTarget } from '../catalog/fingerprint.ts'
import { checkSinceWentBack, type WentBack } from '../catalog/pool-clocks.ts'
import type { ServedRecord } from '../catalog/served-targets.ts'

export interface BaseVerdict {
  readonly asBase: AsBase
  readonly because: string
  readonly needed?: 'record' | 'itself'
}

/**
 * @param recorded the catalog's records of its handle or its identity
 * @param wentBack when its pool was last found in an earlier state, if ever
 */
export function judgeBase(
  recorded: readonly (KnownSnapshot & Pick<ServedRecord, 'firstServedAt'>)[],
  now: ServedTarget,
  wentBack?: WentBack
): BaseVerdict {
  try {
    // A snapshot that was never served may have been taken since.
    if (recorded.length > 0) checkSinceWentBack(now.handle, recorded, wentBack)
    if (checkBase(recorded, now) === 'unchanged') {
      return { asBase: 'unchanged', because: 'it is unchanged since it was served' }
    }
    const wasBase = recorded.some((each) => compareFingerprints(each, now).relation === 'same')
    return wasBase ? unrecorded : neverServed
  } catch (error) {
    if (!(error instanceof DeltamapperError) || !NO_BASE.includes(error.code)) throw error
    return { asBase: 'changed', because: error.message }
  }
}

/** The lasting ones among errors about a base. */
const NO_BASE: readonly string[] = ['DM_BASE_CHANGED', 'DM_POOL_WENT_BACK']

/** A client has a backup of it that is not on record here. */
const unrecorded: BaseVerdict = {
  asBase: 'unrecorded',
  because: 'it was used as a base without having been served here: nothing proves that it was not trimmed before'
}

/** It maps a block that is as young as itself. */
export const written: BaseVerdict = {
  asBase: 'changed',
  because: 'it has blocks of its own: it was written to after it was taken, or is no snapshot'
}

export const neverServed: BaseVerdict = {
  asBase: 'never-served',
  because: 'it was never served here: whether it was written to since it was taken shows when it is asked for'
}

/** Why nothing is known. */
export function unknownBase(because: string): BaseVerdict {
  return { asBase: 'unknown', because }
}
