/**
 * What `inspect` finds in an era device's metadata, before it is text.
 */
import { type EraMetadata, openEraMetadata } from '../../devicemapper/era/era-metadata.ts'
import type { EraSuperblock } from '../../devicemapper/era/superblock.ts'
import type { Writeset } from '../../devicemapper/era/writeset.ts'
import { DeltamapperError } from '../../errors.ts'

/** The inspection of an era device, for any format. */
export interface EraInspection {
  /** The view whose writesets are listed. */
  metadata: EraMetadata
  /** The state of the metadata snapshot, if there is one: also beside the live root, where it may be damaged. */
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

/** The metadata snapshot beside the view that is read: examined for its age, or its damage. */
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

/** The last era that the array has completely; 0 for none. All later eras of the view are among its writesets. */
export function digestedUpTo({ metadata, writesets }: EraInspection): number {
  return (writesets.at(0)?.era ?? metadata.lastEra + 1) - 1
}
