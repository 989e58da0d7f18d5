/** Checks of a request that need nothing but the request. (Names: naming.ts.) */
import { invalid } from '../../errors.ts'
import { SECTOR_BYTES } from '../../units.ts'

/** Of a volume. @throws DM_ARGUMENT_INVALID */
export function checkSize(bytes: number): void {
  checkCount('size_bytes', bytes, SECTOR_BYTES)
}

/**
 * @throws DM_ARGUMENT_INVALID for a number that is not a whole number of bytes below 2^53, not above 0, or no multiple
 *   of `unit`
 */
export function checkCount(field: string, bytes: number, unit = 1): void {
  if (Number.isSafeInteger(bytes) && bytes > 0 && bytes % unit === 0) return
  throw invalid(
    `${field} is ${bytes}`,
    `give a whole number of bytes above 0 and below 2^53${unit > 1 ? `, a multiple of ${unit}` : ''}`
  )
}
