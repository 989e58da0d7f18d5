/**
 * What tells, from one look at a tracked volume to the next, whether the devices below it still hold what they held: counters end with the boot
 * and with the device, these do not.
 *
 * - The *head* of the data device, where file systems keep what a mount changes. It is read at each look, also while the volume is in use.
 * - The *state* of the metadata of a volume that is not active: the superblock, and which blocks the last era has. An earlier copy of the same
 *   era differs in those blocks. Its superblock alone does not tell: roots come back when the allocator has gone round.
 */
import { createHash } from 'node:crypto'
import { LOOK_BYTES } from '../../../devicemapper/block-device.ts'
import { BlockReader } from '../../../devicemapper/block-reader.ts'
import { METADATA_BLOCK_SIZE } from '../../../devicemapper/checksum.ts'
import { openEraMetadata } from '../../../devicemapper/era/era-metadata.ts'
import { DeltamapperError } from '../../../errors.ts'

/**
 * Fingerprint of a data device's first 128 KiB, whoever has it open.
 *
 * @throws DM_READ_FAILED
 */
export async function dataHead(path: string): Promise<string> {
  const reader = await BlockReader.open(path)
  try {
    const blocks = Math.min(reader.blocks, LOOK_BYTES / METADATA_BLOCK_SIZE)
    return createHash('sha256')
      .update(await reader.readStart(blocks))
      .digest('hex')
  } finally {
    await reader.close()
  }
}

/**
 * Fingerprint of the metadata of a volume that is not active; empty where it cannot be read, which is nobody's equal.
 *
 * @throws DM_DEVICE_BUSY when somebody uses the device
 */
export async function metadataState(path: string): Promise<string> {
  try {
    const metadata = await openEraMetadata(path, { liveRoot: true })
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
 * Whether the metadata has writes to a data device's first 128 KiB since an era: another head is the volume's own work then.
 *
 * @param path metadata of a volume that is not active
 * @throws what reading metadata throws
 */
export async function headWritten(path: string, sinceEra: number): Promise<boolean> {
  const metadata = await openEraMetadata(path, { liveRoot: true })
  try {
    const { batches } = await metadata.written({ sinceEra })
    // They ascend.
    for await (const { count, offsets } of batches) if (count > 0) return offsets[0] < LOOK_BYTES
    return false
  } finally {
    await metadata.close()
  }
}
