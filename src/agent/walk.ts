/**
 * One question, answered: opens the metadata, finds the devices, checks that the question makes sense, and turns the walk's extents
 * into encoded messages. Runs in a walker thread; knows nothing of threads itself.
 */
import { DeltamapperError } from '../errors.ts'
import type { ExtentStream } from '../devicemapper/extents.ts'
import { openPoolMetadata, type PoolMetadata, type ThinDevice } from '../devicemapper/thin/pool-metadata.ts'
import { BlockMetadataEncoder } from '../grpc/block-metadata.ts'
import type { Snapshot } from './snapshot-source.ts'

/** A message that is not full leaves after this long all the same, so that a client sees progress. Milliseconds. */
const FLUSH_AFTER_MS = 100

export interface WalkRequest {
  /** Undefined: everything the target has allocated. */
  base?: Snapshot | undefined
  target: Snapshot
  /** Bytes; 0 to the target's size. */
  startingOffset: number
  /** The most extents in a message; 0 for as many as are good. */
  maxResults: number
  /** Read an image around the page cache, as a device is. */
  direct: boolean
}

/** What a walk has cost, for the log and the metrics. */
export interface WalkStatistics {
  nodesRead: number
  bytesRead: number
  readCalls: number
  extents: number
}

/**
 * The encoded messages of an answer: at least one, because an empty list still tells the capacity.
 *
 * @param statistics kept up to date while the walk goes on
 * @throws what reading metadata throws, and the refusals of `relation`
 */
export async function* walkMessages(
  { base, target, startingOffset, maxResults, direct }: WalkRequest,
  statistics: WalkStatistics,
  signal: AbortSignal
): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  const metadata = await openPoolMetadata(target.metadataPath, { direct })
  try {
    const encoder = new BlockMetadataEncoder(target.sizeBytes, maxResults)
    let flushed = 0
    const { batches } = await answer(metadata, base, target, startingOffset, signal)
    for await (const { count, offsets, sizes } of batches) {
      statistics.extents += count
      for (let i = 0; i < count; i++) {
        if (encoder.add(offsets[i], sizes[i])) {
          Object.assign(statistics, metadata.statistics)
          yield encoder.finish()
          flushed = performance.now()
        }
      }
      if (encoder.count > 0 && performance.now() - flushed > FLUSH_AFTER_MS) {
        Object.assign(statistics, metadata.statistics)
        yield encoder.finish()
        flushed = performance.now()
      }
    }
    if (encoder.count > 0 || flushed === 0) yield encoder.finish()
  } finally {
    Object.assign(statistics, metadata.statistics)
    await metadata.close()
  }
}

async function answer(
  metadata: PoolMetadata,
  base: Snapshot | undefined,
  target: Snapshot,
  startingOffset: number,
  signal: AbortSignal
): Promise<ExtentStream> {
  const targetDevice = await find(metadata, target, 'DM_SNAPSHOT_NOT_FOUND', signal)
  const question = { sizeBytes: target.sizeBytes, startingOffset, signal }
  if (!base) return metadata.allocated({ deviceId: target.thinId, ...question })

  const baseDevice = await find(metadata, base, 'DM_BASE_LOST', signal)
  // The pool's clock ticks with every snapshot, so of two snapshots the older one has the lower creation time.
  if (baseDevice.details.creationTime > targetDevice.details.creationTime) {
    throw new DeltamapperError(
      'DM_ORDER_REVERSED',
      `base ${base.handle} was taken after target ${target.handle}`,
      'ask the other way round'
    )
  }
  return metadata.delta({
    baseId: base.thinId,
    targetId: target.thinId,
    baseSizeBytes: base.sizeBytes,
    ...question
  })
}

/** The snapshot's device, under the code that its loss means for the caller. */
async function find(
  metadata: PoolMetadata,
  { handle, thinId }: Snapshot,
  lost: 'DM_SNAPSHOT_NOT_FOUND' | 'DM_BASE_LOST',
  signal: AbortSignal
): Promise<ThinDevice> {
  try {
    return await metadata.device(thinId, signal)
  } catch (error) {
    if (!(error instanceof DeltamapperError) || error.code !== 'DM_DEVICE_NOT_FOUND') throw error
    throw new DeltamapperError(
      lost,
      `snapshot ${handle} is no longer in its pool (no thin device ${thinId})`,
      'take a full backup of a snapshot that exists',
      { cause: error }
    )
  }
}
