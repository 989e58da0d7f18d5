/**
 * Looks into an era device's metadata and shows what is there.
 */
import { type EraMetadata, openEraMetadata } from '../devicemapper/era/era-metadata.ts'
import type { EraSuperblock } from '../devicemapper/era/superblock.ts'
import type { Writeset } from '../devicemapper/era/writeset.ts'
import { writeEraInspectionJson } from './output/era-inspection-json.ts'
import { writeEraInspectionTable } from './output/era-inspection-table.ts'
import type { TextOutput } from './output/text-output.ts'

/** What is shown of an era device, whatever the format. */
export interface EraInspection {
  /** The view whose writesets are listed. */
  metadata: EraMetadata
  /** The metadata snapshot, where there is one. */
  held: EraSuperblock | undefined
  /** By ascending era. */
  writesets: Writeset[]
}

/** @throws what reading metadata throws */
export async function showEraInspection(
  path: string,
  liveRoot: boolean,
  format: 'table' | 'json',
  output: TextOutput,
  signal: AbortSignal
): Promise<void> {
  const seen = await openEraMetadata(path)
  let metadata = seen
  try {
    const held = seen.view === 'metadata-snapshot' ? seen.superblock : undefined
    if (liveRoot && held) metadata = await openEraMetadata(path, { liveRoot })
    const inspection = { metadata, held, writesets: await metadata.writesets(signal) }
    await (format === 'json' ? writeEraInspectionJson : writeEraInspectionTable)(inspection, output)
  } finally {
    await seen.close()
    if (metadata !== seen) await metadata.close()
  }
}

/** The last era that the array has all of; 0 for none. All later ones that the view knows are among its writesets. */
export function digestedUpTo({ metadata, writesets }: EraInspection): number {
  return (writesets.at(0)?.era ?? metadata.lastEra + 1) - 1
}
