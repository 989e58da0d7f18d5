/**
 * The thread that reads the blocks written in some eras from an era device's metadata snapshot, and turns them into
 * bitmaps. One thread for each snapshot: the event loop stays free, and the memory for a large volume is freed at the
 * end.
 */
import { parentPort, workerData } from 'node:worker_threads'
import { openEraMetadata } from '../../../devicemapper/era/era-metadata.ts'
import { asDeltamapperError, DeltamapperError } from '../../../errors.ts'
import type { MetadataPlace } from '../../leases/lease-keeper.ts'
import { eraFacts, readEraSlot } from '../../leases/era-slot-content.ts'
import { ChunkWriter, type WrittenChunk } from '../../catalog/store/written-chunks.ts'
import { type PortableError, toPortable } from '../../../portable-error.ts'

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

/** After `chunks` the worker waits for `more`; the others are final. */
export type FromHistoryReader =
  | { readonly kind: 'chunks'; readonly chunks: readonly WrittenChunk[] }
  | { readonly kind: 'end'; readonly isExact: boolean }
  | { readonly kind: 'error'; readonly error: PortableError }

/** Bytes of bitmaps that are handed over at once. */
const HANDOVER_BYTES = 2 ** 20

if (parentPort) {
  const port = parentPort
  const say = (message: FromHistoryReader) => {
    port.postMessage(message)
  }
  read(workerData as HistoryReading, async (chunks) => {
    const more = new Promise((resolve) => port.once('message', resolve))
    say({ kind: 'chunks', chunks })
    await more
  })
    .then(
      (isExact) => say({ kind: 'end', isExact }),
      (thrown: unknown) => say({ kind: 'error', error: toPortable(asDeltamapperError(thrown)) })
    )
    .finally(() => {
      port.close()
    })
}

/**
 * @param handOver takes chunks, and resolves when there is room for more
 * @returns whether they contain only what was written in those eras
 */
async function read(
  { metadata: { path, device }, heldRoot, sinceEra, untilEra, blockSectors, readDeadlineMs }: HistoryReading,
  handOver: (chunks: readonly WrittenChunk[]) => Promise<void>
): Promise<boolean> {
  const metadata = await openEraMetadata(path, { deadlineMs: readDeadlineMs, device })
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
    const now = await readEraSlot(path, device)
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
