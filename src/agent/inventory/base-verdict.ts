/**
 * Whether a snapshot could be the base of a delta if it were asked for now, as far as that shows without reading its mappings.
 */
import { DeltamapperError } from '../../errors.ts'
import type { AsBase } from '../../grpc/inventory.ts'
import { checkBase, compareFingerprints, type KnownSnapshot, type ServedTarget } from '../catalog/fingerprint.ts'

export interface BaseVerdict {
  readonly asBase: AsBase
  readonly because: string
}

/** @param recorded what is on record under its handle or its identity, by the catalog */
export function judgeBase(recorded: readonly KnownSnapshot[], now: ServedTarget): BaseVerdict {
  try {
    if (checkBase(recorded, now) === 'unchanged') {
      return { asBase: 'unchanged', because: 'it is what it was when it was served' }
    }
    const wasBase = recorded.some((each) => compareFingerprints(each, now).relation === 'same')
    return wasBase ? unrecorded : neverServed
  } catch (error) {
    if (!(error instanceof DeltamapperError) || error.code !== 'DM_BASE_CHANGED') throw error
    return { asBase: 'changed', because: error.message }
  }
}

/** Somebody has a backup of it that is not on record here. */
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

/** Why nothing can be said. */
export function unknownBase(because: string): BaseVerdict {
  return { asBase: 'unknown', because }
}
