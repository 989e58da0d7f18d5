/**
 * What device-mapper calls the two devices of a tracked volume. The UUIDs are what we go by: they say that a device is ours and which one,
 * while names are for people and can be anybody's.
 */

/** What all of these UUIDs begin with. */
export const TRACKED_UUIDS = 'DELTAMAPPER-era'

/** @param volume with the id that the catalog has, `era:` and a random UUID */
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
