/**
 * Extents on their way into messages: as full as they may be, or after a while, so that a client sees progress.
 */
import type { ExtentBatch } from '../../devicemapper/extents.ts'
import { BlockMetadataEncoder } from '../../grpc/block-metadata.ts'

/** A message that is not full leaves after this long all the same. Milliseconds. */
const FLUSH_AFTER_MS = 100

/** The cost of a walk, for the log and the metrics. */
export interface WalkStatistics {
  nodesRead: number
  bytesRead: number
  readCalls: number
  extents: number
  /** Bytes of the extents. */
  extentBytes: number
  /** Size in bytes of the volume that they are of; 0 before the answer begins. */
  volumeBytes: number
}

export interface MessageShape {
  /** Size of the target in bytes. */
  readonly capacityBytes: number
  /** The most extents in a message; 0 chooses a good number. */
  readonly maxResults: number
}

/**
 * The encoded messages of an answer: at least one, because an empty list still tells the capacity.
 *
 * @param statistics its `extents` and their bytes are counted up, those of a message before it leaves
 * @param beforeMessage called before each message leaves
 */
export async function* encodedMessages(
  batches: AsyncIterable<ExtentBatch>,
  { capacityBytes, maxResults }: MessageShape,
  statistics: Pick<WalkStatistics, 'extents' | 'extentBytes' | 'volumeBytes'>,
  beforeMessage: () => void = () => undefined
): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  const encoder = new BlockMetadataEncoder(capacityBytes, maxResults)
  let flushed = 0
  statistics.volumeBytes = capacityBytes
  const finish = () => {
    statistics.extents += encoder.count
    statistics.extentBytes += encoder.extentBytes
    beforeMessage()
    return encoder.finish()
  }
  for await (const batch of batches) {
    for (let next = 0; next < batch.count;) {
      next = encoder.add(batch, next)
      if (!encoder.isFull) continue
      yield finish()
      flushed = performance.now()
    }
    if (encoder.count > 0 && performance.now() - flushed > FLUSH_AFTER_MS) {
      yield finish()
      flushed = performance.now()
    }
  }
  if (encoder.count > 0 || flushed === 0) yield finish()
}
