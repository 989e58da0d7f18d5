/**
 * Traces that show whether the devices below a tracked volume still hold the same content. Counters end with the boot
 * and with the device; these traces do not.
 *
 * - The *head* of the data device, where file systems keep what a mount changes. Each look reads it, even while the
 *   volume is in use.
 * - The *state* of an inactive volume's metadata: the superblock, and the blocks of the last era. An older copy in the
 *   same era differs in those blocks. The superblock alone is not enough, because root blocks recur when the allocator
 *   has gone round.
 */
import { createHash } from 'node:crypto'
import { LOOK_BYTES } from '../../../devicemapper/block-device.ts'
import { openEraMetadata } from '../../../devicemapper/era/era-metadata.ts'
import { DeltamapperError } from '../../../errors.ts'
import type { TrackedMachine } from './machine.ts'

type MetadataAccess = Pick<TrackedMachine, 'open' | 'claim'>

/**
 * Fingerprint of a data device's first 128 KiB. The device may be in use.
 *
 * @throws DM_READ_FAILED
 */
export async function dataHead({ head }: Pick<TrackedMachine, 'head'>, path: string): Promise<string> {
  return createHash('sha256')
    .update(await head(path))
    .digest('hex')
}

/**
 * Fingerprint of an inactive volume's metadata. Empty if it cannot be read; an empty one equals no other.
 *
 * @throws DM_DEVICE_BUSY when the device is in use
 */
export async function metadataState({ open, claim }: MetadataAccess, path: string): Promise<string> {
  try {
    const metadata = await openEraMetadata(path, { liveRoot: true, open, claim })
    try {
      const hash = createHash('sha256').update(JSON.stringify(metadata.live))
      const { batches } = await metadata.written({ sinceEra: metadata.live.currentEra })
      for await (const { count, offsets, sizes } of batches) {
        hash.update(offsets.subarray(0, count)).update(sizes.subarray(0, count))
      }
      return hash.digest('hex')
    } finally {
      await metadata.close()
    }
  } catch (error) {
    if (!(error instanceof DeltamapperError) || error.code === 'DM_DEVICE_BUSY') throw error
    return ''
  }
}

/**
 * Whether the metadata has writes to the data device's first 128 KiB since an era. Then the volume itself changed the
 * head.
 *
 * @param path metadata of an inactive volume
 * @throws what reading metadata throws
 */
export async function headWritten({ open, claim }: MetadataAccess, path: string, sinceEra: number): Promise<boolean> {
  const metadata = await openEraMetadata(path, { liveRoot: true, open, claim })
  try {
    const { batches } = await metadata.written({ sinceEra })
    // They ascend.
    for await (const { count, offsets } of batches) if (count > 0) return offsets[0] < LOOK_BYTES
    return false
  } finally {
    await metadata.close()
  }
}
