/**
 * The table of a classic snapshot: snapshot_ctr and snapshot_status in drivers/md/dm-snap.c.
 *
 *   snapshot[-merge]  ORIGIN-DEVICE STORE-DEVICE P|PO|N CHUNK-SECTORS [#FEATURES FEATURE…]
 *
 * P and PO keep the list on disk (O: they are told apart from overflow), N only in memory. The features let discards
 * through that no list shows; LVM sets none of them.
 */
import { type DeviceNumber, TargetWords } from '../target-words.ts'

export interface CowTable {
  /** What it is a snapshot of: with LVM `VG-ORIGIN-real`, what lies below the origin that people write to. */
  readonly originDevice: DeviceNumber
  readonly storeDevice: DeviceNumber
  /** Whether the list is on disk. */
  readonly persistent: boolean
  /** What the table was loaded with: where the store's header disagrees, the header counts. */
  readonly chunkSectors: number
  /** discard_zeroes_cow, discard_passdown_origin. */
  readonly features: readonly string[]
}

/** Reads the parameters of a `snapshot` or `snapshot-merge` target. Throws DM_STATUS_UNKNOWN. */
export function parseCowTable(params: string): CowTable {
  const words = new TargetWords(params, 'the table of a snapshot')
  const originDevice = words.device()
  const storeDevice = words.device()
  const persistent = words.choice({ P: true, PO: true, N: false })
  const chunkSectors = words.number()
  const features: string[] = []
  if (!words.done) {
    const count = words.number()
    if (count > 8) words.refuseLast()
    for (let i = 0; i < count; i++) features.push(words.word())
    words.end()
  }
  return { originDevice, storeDevice, persistent, chunkSectors, features }
}
