/**
 * Drains an extent stream and holds it to its contract on the way: ascending, never touching, none empty, within the capacity, exact.
 */
import type { ExtentAnswer } from '../../src/devicemapper/extents.ts'
import type { Extent } from './expected.ts'

/** Every extent of a stream, or the first `most` of them (the rest of the walk is abandoned then). */
export async function collectExtents(stream: ExtentAnswer, most = Infinity): Promise<Extent[]> {
  const extents: Extent[] = []
  const { capacityBytes } = stream
  let reached = -1
  for await (const { count, offsets, sizes } of stream.batches) {
    if (count > offsets.length || count > sizes.length) throw new Error(`a batch of ${count} has room for fewer`)
    for (let index = 0; index < count; index++) {
      const offset = offsets[index]
      const size = sizes[index]
      const end = offset + size
      if (!Number.isSafeInteger(offset) || !Number.isSafeInteger(end) || size <= 0) {
        throw new Error(`no extent: offset ${offset}, size ${size}`)
      }
      if (offset <= reached) throw new Error(`an extent at ${offset} follows one that ends at ${reached}`)
      // Who says no capacity has found nothing.
      if (capacityBytes === undefined || end > capacityBytes)
        throw new Error(`an extent ends at ${end}, the volume at ${capacityBytes}`)
      reached = end
      extents.push([offset, size])
      if (extents.length === most) return extents
    }
  }
  return extents
}
