/**
 * The two views of an era device's metadata: the live one, and the metadata snapshot, if there is one. A question is
 * answered from one of them, and the user is told which, and how far apart they are.
 */
import type { EraMetadata } from '../../devicemapper/era/era-metadata.ts'
import { counted } from '../command-line/quantities.ts'

/** Which view answers, in words. */
export function describeEraView(metadata: EraMetadata): string {
  const { live, view, superblock } = metadata
  if (view === 'metadata-snapshot') {
    return `the metadata snapshot, ${describeEraAge(live.currentEra, superblock.currentEra)}; --live-root reads the metadata as it is now`
  }
  const root = `the live root, with the writes of era ${live.currentEra} so far`
  return live.metadataSnapshot === 0 ? root : `${root}, and not the metadata snapshot that there is`
}

/**
 * The age of a metadata snapshot. Metadata has no wall clock, only eras. @param taken the era that began when it was
 * taken
 */
export function describeEraAge(live: number, taken: number): string {
  return `with the writes up to era ${taken - 1}: ${counted(live - taken + 1, 'era')} behind the device, which is in era ${live}`
}
