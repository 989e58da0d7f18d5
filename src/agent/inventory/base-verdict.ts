/**
 * Whether a snapshot could be the base of a delta if it were asked for now, as far as that shows without reading its mappings.
 */
import { DeltamapperError } from '../../errors.ts'
import type { AsBase } from '../../grpc/inventory.ts'
import { checkBase, type ServedTarget } from '../catalog/fingerprint.ts'

export interface BaseVerdict {
  readonly asBase: AsBase
  readonly because: string
}

/** @param recorded what was served under its handle or its identity, by the catalog */
export function judgeBase(recorded: readonly ServedTarget[], now: ServedTarget): BaseVerdict {
  try {
    if (checkBase(recorded, now) === 'unchanged') {
      return { asBase: 'unchanged', because: 'it is what it was when it was served' }
    }
    return neverServed
  } catch (error) {
    if (!(error instanceof DeltamapperError) || error.code !== 'DM_BASE_CHANGED') throw error
    return { asBase: 'changed', because: error.message }
  }
}

export const neverServed: BaseVerdict = {
  asBase: 'never-served',
  because: 'it was never served here: whether it was written to since it was taken shows when it is asked for'
}

/** Why nothing can be said. */
export function unknownBase(because: string): BaseVerdict {
  return { asBase: 'unknown', because }
}
