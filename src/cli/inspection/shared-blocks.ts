/**
 * Whether two thin devices share data blocks, which only a snapshot and its origin ever do. Found out from the outside:
 * one of them maps a block that is not among their differences.
 */
import type { ExtentBatch } from '../../devicemapper/extents.ts'
import type { PoolMetadata, ThinDevice } from '../../devicemapper/thin/pool-metadata.ts'
import { DeltamapperError } from '../../errors.ts'

/** Data blocks that are examined: the last ones of a device, because file systems write to the front ones most. */
const SAMPLE_BLOCKS = 4096

/**
 * Compares the last 4096 data blocks up to the highest one that `device` maps, which reads some hundred metadata blocks
 * at most.
 *
 * @returns true when they have the same root (then even without a block), or one block is the same in both; false
 *   proves nothing about the rest
 */
export async function sharesBlocks(
  metadata: PoolMetadata,
  device: ThinDevice,
  otherId: number,
  signal: AbortSignal
): Promise<boolean> {
  if ((await metadata.device(otherId, signal)).root === device.root) return true
  let sizeBytes: number
  try {
    sizeBytes = await metadata.mappedEnd(device, signal)
  } catch (error) {
    // It maps bytes beyond 2^53, which no question can name.
    if (error instanceof DeltamapperError && error.code === 'DM_METADATA_UNSUPPORTED') return false
    throw error
  }
  const startingOffset = Math.max(0, sizeBytes - SAMPLE_BLOCKS * metadata.superblock.dataBlockBytes)
  const range = { sizeBytes, startingOffset, signal }
  try {
    const mapped = await metadata.allocated({ deviceId: device.id, ...range })
    const different = await metadata.delta({ baseId: otherId, targetId: device.id, ...range })
    return !(await covers(different.batches, mapped.batches))
  } catch (error) {
    // A volume in use was just written to. Asking again is possible, but nothing depends on it.
    if (error instanceof DeltamapperError && error.code === 'DM_SNAPSHOT_CHANGED') return false
    throw error
  }
}

/**
 * Two devices with one root map the same, so that their details say the same of it.
 *
 * @throws DM_METADATA_DAMAGED when they do not
 */
export async function checkTwin(
  metadata: PoolMetadata,
  device: ThinDevice,
  twinId: number,
  signal: AbortSignal
): Promise<void> {
  const twin = await metadata.device(twinId, signal)
  if (twin.root !== device.root || twin.details.mappedBlocks === device.details.mappedBlocks) return
  // In a pool in use they may be of two moments: a comparison finds that out.
  try {
    const none = await metadata.delta({ baseId: twinId, targetId: device.id, sizeBytes: 0, signal })
    await Array.fromAsync(none.batches)
  } catch (error) {
    if (error instanceof DeltamapperError && error.code === 'DM_SNAPSHOT_CHANGED') return
    throw error
  }
}

/** Whether every byte of `inner` is in `outer`; neither has extents that touch. */
async function covers(outer: AsyncIterable<ExtentBatch>, inner: AsyncIterable<ExtentBatch>): Promise<boolean> {
  const outerExtents = extents(outer)
  try {
    let current = await outerExtents.next()
    for await (const [offset, end] of extents(inner)) {
      while (!current.done && current.value[1] <= offset) current = await outerExtents.next()
      if (current.done || current.value[0] > offset || current.value[1] < end) return false
    }
    return true
  } finally {
    await outerExtents.return()
  }
}

/** `[offset, end)` of each extent. */
async function* extents(batches: AsyncIterable<ExtentBatch>): AsyncGenerator<[number, number], void> {
  for await (const { count, offsets, sizes } of batches) {
    for (let i = 0; i < count; i++) yield [offsets[i], offsets[i] + sizes[i]]
  }
}
