/**
 * The error for a store that cannot be what the kernel wrote. Nothing in a store has a checksum: whatever contradicts
 * itself is refused, and what does not is listed in docs/guarantees.md.
 */
import { DeltamapperError } from '../../errors.ts'

export function damagedStore(path: string, what: string): DeltamapperError {
  return new DeltamapperError(
    'DM_METADATA_DAMAGED',
    `${path}, the store of a classic snapshot, is damaged: ${what}`,
    'take a full backup of a new snapshot, and look into the kernel log for errors of the device below'
  )
}
