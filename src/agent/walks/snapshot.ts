/** What the agent must know of a snapshot before its metadata is opened, and the interface of its sources. */

import type { DeviceNumber, DeviceReference } from '../../../native/device.ts'
import type { MetadataDevice } from '../node/pool-device.ts'

/** A snapshot of whichever kind. */
export interface FoundSnapshot {
  /** Who answers for it: a name in the registry of targets (targets.ts). */
  readonly kind: string
  /** `SOURCE/NAME`; in an answer, as the client asked for it. */
  readonly handle: string
  /** The same as its source has it, by whichever spelling a client asked. */
  readonly ownHandle?: string
  /** The name of its volume in messages and metrics, if it is known. */
  readonly volumeName?: string
}

/** A thin snapshot as a source knows it. */
export interface Snapshot {
  readonly kind: 'thin'
  /** `SOURCE/NAME`; in an answer, as the client asked for it. */
  handle: string
  /**
   * Identifies this very snapshot for ever, such as an LV UUID. Left out if there are only names, which can be used
   * again.
   */
  identity?: string
  /**
   * The identity of its volume; two snapshots of different volumes are never compared. Left out if unknown: LVM forgets
   * origins that are removed, and device-mapper does not know any.
   */
  volume?: string
  /** The name of that volume in messages; its identity by default. */
  volumeName?: string
  /** The thin device id in its pool. */
  thinId: number
  /** Size in bytes, exact. Thin metadata does not hold it. */
  sizeBytes: number
  /** The pool's data block size in bytes, if the source knows it; the metadata must agree. */
  blockBytes?: number
  /** The metadata device or image of its pool; two images are different pools. */
  metadataPath: string
  /** For a pool in use, the device that the path must lead to: a name can go to another device before it is opened. */
  metadataDevice?: MetadataDevice
  /** For a pool in use, which pool it is, under any name (pool-identity.ts). */
  poolIdentity?: string
  /** `SOURCE/NAME` as its source has it, by whichever spelling a client asked. */
  ownHandle?: string
  /** The pool is in use: read its live root, even if a metadata snapshot is held. */
  live?: boolean
  /** Read the live root, although nobody uses this metadata. */
  liveRoot?: boolean
  /** It has an active device that can be written to. */
  writable?: boolean
  /**
   * Its maker has made it read-only: LVM's permission, a snapshot in a pool of ours. Left out if there is no such word
   * of a maker's.
   */
  madeReadOnly?: boolean
  /** For a pool in use, the device with the thin-pool target. */
  pool?: DeviceReference
  /** The number of that device, for as long as the pool is active. */
  poolDevice?: DeviceNumber
  /** For a pool in use, the device-mapper UUID of the device with its data; empty when it has none. */
  dataUuid?: string
  /**
   * What the pool's metadata must say of the device (DeviceDetails.transactionId); otherwise it is another device under
   * a reused id.
   */
  transactionId?: bigint
  /**
   * A device outside of the pool that shows through where the snapshot maps nothing: there, unmapped does not mean
   * zeros.
   */
  externalOrigin?: {
    identity: string
    /** Left out when it is not known. */
    sizeBytes?: number
  }
}

/** Answers for the snapshots of one source name. */
export interface SnapshotSource<S extends FoundSnapshot = Snapshot> {
  /** The snapshot of this name, or undefined when there is none. */
  snapshot(name: string): Promise<S | undefined>
}
