/**
 * Metadata contexts: what a client may ask of a range, and how it asks for them (proto.md, "Metadata querying", and
 * qemu's docs/interop/nbd.rst).
 *
 *   base:allocation             bit 0 hole, bit 1 reads as zeros
 *   qemu:dirty-bitmap:BASE      bit 0 differs from BASE
 *
 * A query names one context, or with an empty leaf lists all of a kind. In a namespace that is not known it finds
 * nothing, and is no error.
 */
export const ALLOCATION = 'base:allocation'
const DIRTY_BITMAP = 'qemu:dirty-bitmap:'

/** The context in which what differs from a base is dirty. */
export function dirtyBitmap(base: string): string {
  return `${DIRTY_BITMAP}${base}`
}

/** Which of an export's contexts a list query finds: none at all is a query for all. */
export function listedContexts(contexts: readonly string[], queries: readonly string[]): string[] {
  if (queries.length === 0) return [...contexts]
  return contexts.filter((name) => queries.some((query) => query === name || (isKind(query) && name.startsWith(query))))
}

/** Which of them a query selects: only by their full names, each once, in the export's order. */
export function selectedContexts(contexts: readonly string[], queries: readonly string[]): string[] {
  return contexts.filter((name) => queries.includes(name))
}

function isKind(query: string): boolean {
  return query === 'base:' || query === 'qemu:' || query === DIRTY_BITMAP
}
