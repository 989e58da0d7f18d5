/**
 * The status of an era device: era_status in drivers/md/dm-era-target.c.
 *
 *   era  METADATA-BLOCK-SECTORS USED/TOTAL CURRENT-ERA METADATA-SNAPSHOT|-
 *
 * The pair counts metadata blocks of 4 KiB. The kernel prints `Error` when it could not find its own numbers. On a
 * suspended device, the query does not return before the resume.
 */
import { TargetWords } from '../target-words.ts'

export interface EraNumbers {
  readonly state: 'working'
  /** Metadata blocks of 4 KiB. */
  readonly usedMetadataBlocks: number
  readonly totalMetadataBlocks: number
  /** The era that has begun last. */
  readonly currentEra: number
  /** Block of the metadata snapshot; undefined when there is none. */
  readonly metadataSnapshot: number | undefined
}

/** `unknown`: the kernel could not find out. */
export type EraStatus = EraNumbers | { readonly state: 'unknown' }

/** Reads the status of an `era` target. Throws DM_STATUS_UNKNOWN. */
export function parseEraStatus(line: string): EraStatus {
  // An error can strike after some of the line has been printed.
  if (/(^|[ ])Error$/.test(line.trim())) return { state: 'unknown' }
  const words = new TargetWords(line, 'the status of an era device')
  words.number()
  const { used, total } = words.fraction()
  return {
    state: 'working',
    usedMetadataBlocks: used,
    totalMetadataBlocks: total,
    currentEra: words.number(),
    metadataSnapshot: words.optionalNumber()
  }
}
