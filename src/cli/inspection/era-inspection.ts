/**
 * What `inspect` finds in an era device's metadata, before it is text.
 */
import { type EraMetadata, openEraMetadata } from '../../devicemapper/era/era-metadata.ts'
import type { EraSuperblock } from '../../devicemapper/era/superblock.ts'
import type { Writeset } from '../../devicemapper/era/writeset.ts'
import { DeltamapperError } from '../../errors.ts'

/** What is shown of an era device, whatever the format. */
export interface EraInspection {
  /** The view whose writesets are listed. */
  metadata: EraMetadata
  /** What the metadata snapshot was found to be, where there is one: also beside the live root, and there it may be damaged. */
  held: EraSuperblock | DeltamapperError | undefined
  /** By ascending era. */
  writesets: Writeset[]
}

/** @throws what reading metadata throws */
export async function inspectEra(path: string, metadata: EraMetadata, signal: AbortSignal): Promise<EraInspection> {
  const isHeld = metadata.live.metadataSnapshot !== 0
  const held = metadata.view === 'metadata-snapshot' ? metadata.superblock : isHeld ? await heldBeside(path) : undefined
  return { metadata, held, writesets: await metadata.writesets(signal) }
}

/** The metadata snapshot that nothing is read from: it is looked at for its age, and says what is wrong with it. */
async function heldBeside(path: string): Promise<EraSuperblock | DeltamapperError> {
  try {
    const metadata = await openEraMetadata(path)
    await metadata.close()
    return metadata.superblock
  } catch (error) {
    if (error instanceof DeltamapperError) return error
    throw error
  }
}

/** The last era that the array has all of; 0 for none. All later ones that the view knows are among its writesets. */
export function digestedUpTo({ metadata, writesets }: EraInspection): number {
  return (writesets.at(0)?.era ?? metadata.lastEra + 1) - 1
}
