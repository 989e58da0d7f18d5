/**
 * The device-mapper names and UUIDs of the two devices of a tracked volume. The UUID decides which device it is and
 * that it is ours; a name is for people, and anything can have it.
 */

/** The beginning of all these UUIDs. */
export const TRACKED_UUIDS = 'DELTAMAPPER-era'

/** @param volume with its id in the catalog: `era:` and a random UUID */
export function eraUuid(volume: { readonly id: string }): string {
  return `DELTAMAPPER-${volume.id.replace(':', '-')}`
}

/** Of the linear device below it, which lets no discard through. */
export function guardUuid(volume: { readonly id: string }): string {
  return `DELTAMAPPER-${volume.id.replace('era:', 'eraguard-')}`
}

/** Name of the guard. */
export function guardName(volume: { readonly dmName: string }): string {
  return `${volume.dmName}-guard`
}
