/** The size of a thin device, which metadata does not have. */
import type { PoolMetadata } from '../../devicemapper/thin/pool-metadata.ts'
import { humanSize } from '../command-line/quantities.ts'
import type { Remark } from './question.ts'

/**
 * In bytes: the given one, or the end of the device's highest mapping, with a remark.
 *
 * @param size the value of `--size`
 * @throws what reading metadata throws
 */
export async function targetSize(
  metadata: PoolMetadata,
  targetId: number,
  size: number | undefined,
  signal: AbortSignal,
  remark: Remark
): Promise<number> {
  if (size !== undefined) return size
  const sizeBytes = await metadata.mappedEnd(await metadata.device(targetId, signal), signal)
  const taken = `${sizeBytes} bytes (${humanSize(sizeBytes)}), the end of its highest mapping`
  remark(`size of ${targetId}: ${taken}; --size says otherwise`)
  return sizeBytes
}
