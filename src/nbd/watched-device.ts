/** A snapshot's block device that is looked at again and again while it is served. */
import type { ExtentStream } from '../devicemapper/extents.ts'
import type { ExportData } from './export.ts'

export interface WatchedDevice {
  readonly data: ExportData
  readonly sizeBytes: number
  /** Of what changes are kept in: the pool's data blocks, the store's chunks. */
  readonly blockBytes: number
  /** What it is to this node (device-named.ts). */
  readonly named: string
  /** Somebody can write through it, so that each look costs more. */
  readonly isCostly: boolean
  /** One that shows where it maps nothing, and that may be written to unseen. */
  readonly hasExternalOrigin: boolean
  /** @throws DM_SNAPSHOT_CHANGED where it is not what it was when it was opened, and what looking throws */
  look(): Promise<void>
  close(): Promise<void>
}

/** An answer for what nothing is known about: all of it may be data. */
export function everything(sizeBytes: number): ExtentStream {
  const batch = { count: 1, offsets: Float64Array.of(0), sizes: Float64Array.of(sizeBytes) }
  return {
    capacityBytes: sizeBytes,
    batches: (async function* () {
      if (sizeBytes > 0) yield batch
    })()
  }
}
