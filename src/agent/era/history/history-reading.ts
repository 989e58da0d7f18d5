/**
 * Reads the blocks written in some eras from an era device's metadata snapshot, and turns them into bitmaps.
 */
import { openEraMetadata } from '../../../devicemapper/era/era-metadata.ts'
import type { OpenMedium } from '../../../devicemapper/metadata-medium.ts'
import { DeltamapperError } from '../../../errors.ts'
import { ChunkWriter, type WrittenChunk } from '../../catalog/store/written-chunks.ts'
import type { MetadataPlace } from '../../leases/lease-keeper.ts'
import { eraFacts, readEraSlot } from '../../leases/era-slot-content.ts'

/** What is to be read. */
export interface HistoryReading {
  readonly metadata: MetadataPlace
  /** The metadata snapshot that is held for it. */
  readonly heldRoot: number
  /** Blocks written to in these eras, both included. */
  readonly sinceEra: number
  readonly untilEra: number
  /** The block size that the catalog has for the volume, in sectors. */
  readonly blockSectors: number
  readonly readDeadlineMs: number | undefined
}

/** Bytes of bitmaps that are handed over at once. */
const HANDOVER_BYTES = 2 ** 20

/**
 * @param handOver takes chunks, and resolves when there is room for more
 * @param open what opens metadata; by default, files and devices of this machine
 * @returns whether they contain only what was written in those eras
 */
export async function readHistory(
  { metadata: { path, device }, heldRoot, sinceEra, untilEra, blockSectors, readDeadlineMs }: HistoryReading,
  handOver: (chunks: readonly WrittenChunk[]) => Promise<void>,
  open?: OpenMedium
): Promise<boolean> {
  const metadata = await openEraMetadata(path, { deadlineMs: readDeadlineMs, device, open })
  try {
    const { superblock, live, view, lastEra } = metadata
    if (view !== 'metadata-snapshot' || live.metadataSnapshot !== heldRoot) throw dropped(path)
    if (superblock.blockSectors !== blockSectors || lastEra < untilEra) {
      throw new DeltamapperError(
        'DM_ERA_NOT_REACHED',
        `${path} has the eras up to ${lastEra} in blocks of ${superblock.blockSectors} sectors, where era ${untilEra} in blocks of ${blockSectors} is due`,
        'take a full backup; `deltamapper doctor` shows what is wrong with the volume'
      )
    }
    const { batches, isExact } = await metadata.written({ sinceEra, untilEra })
    const { blockBytes } = superblock
    const writer = new ChunkWriter()
    let ready: WrittenChunk[] = []
    const pass = async (chunks: readonly WrittenChunk[], least: number) => {
      ready.push(...chunks)
      if (ready.length === 0 || ready.reduce((sum, { bytes }) => sum + bytes.length, 0) < least) return
      await handOver(ready)
      ready = []
    }
    for await (const { count, offsets, sizes } of batches) {
      for (let i = 0; i < count; i++) {
        writer.addRun(offsets[i] / blockBytes, Math.ceil((offsets[i] + sizes[i]) / blockBytes))
      }
      await pass(writer.take(), HANDOVER_BYTES)
    }
    await pass(writer.takeLast(), 0)
    // If its blocks were freed, they may have been reused while they were read: with valid checksums, for other parts
    // of the array.
    const now = await readEraSlot(path, device, open)
    if (now.heldRoot !== heldRoot || now.facts !== eraFacts(superblock)) throw dropped(path)
    return isExact()
  } finally {
    await metadata.close()
  }
}

function dropped(path: string): DeltamapperError {
  return new DeltamapperError(
    'DM_LEASE_LOST',
    `the metadata snapshot in ${path} was dropped before it was read`,
    'find out by whom, and take the snapshot again'
  )
}
