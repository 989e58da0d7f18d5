/**
 * The two states in which an era device's metadata can be looked at: as it is now, and as the metadata snapshot has it that somebody may
 * have taken. A question is answered from one of them, and whoever asked is told which, and how far apart they are.
 */
import type { EraMetadata } from '../../devicemapper/era/era-metadata.ts'
import { counted } from './quantities.ts'

/** Which view answers, in words. */
export function describeEraView(metadata: EraMetadata): string {
  const { live, view, superblock } = metadata
  if (view === 'metadata-snapshot') {
    return `the metadata snapshot, ${describeEraAge(live.currentEra, superblock.currentEra)}; --live-root reads the metadata as it is now`
  }
  const root = `the live root, with the writes of era ${live.currentEra} so far`
  return live.metadataSnapshot === 0 ? root : `${root}, and not the metadata snapshot that there is`
}

/** How old a metadata snapshot is. Metadata knows no hours: it counts eras. @param taken the era that began when it was taken */
export function describeEraAge(live: number, taken: number): string {
  return `with the writes up to era ${taken - 1}: ${counted(live - taken + 1, 'era')} behind the device, which is in era ${live}`
}
