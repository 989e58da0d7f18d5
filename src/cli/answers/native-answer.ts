/**
 * Our own reading of a pool's metadata, as one of the engines that can be asked.
 */
import type { MappingStream, PoolMetadata } from '../../devicemapper/thin/pool-metadata.ts'

/** A question about a pool's metadata. Sizes and offset in bytes. */
export interface MetadataQuestion {
  readonly baseId: number | undefined
  readonly targetId: number
  /** By default as large as the target. */
  readonly baseSizeBytes: number | undefined
  readonly sizeBytes: number
  /** The size was not given: it is the end of the target's highest mapping. */
  readonly sizeIsFromTree: boolean
  readonly startingOffset: number
  readonly signal: AbortSignal
}

/** The answer of our own reading of the metadata. */
export async function nativeAnswer(
  metadata: PoolMetadata,
  { baseId, targetId, baseSizeBytes, sizeBytes, sizeIsFromTree, ...rest }: MetadataQuestion
): Promise<MappingStream> {
  const question = { sizeBytes: sizeIsFromTree ? undefined : sizeBytes, ...rest }
  return baseId === undefined
    ? metadata.allocated({ deviceId: targetId, ...question })
    : metadata.delta({ baseId, targetId, baseSizeBytes, ...question })
}
