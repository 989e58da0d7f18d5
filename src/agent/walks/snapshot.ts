/**
 * What the agent needs to know of a snapshot before its metadata is opened, and where it asks for that.
 */

import type { DeviceReference } from '../../../native/device.ts'
import type { MetadataDevice } from '../node/pool-device.ts'

/** A snapshot of whichever kind. */
export interface FoundSnapshot {
  /** Who answers for it: a name in the registry of targets (targets.ts). */
  readonly kind: string
  /** `SOURCE/NAME`; in an answer, as the client asked for it. */
  readonly handle: string
}

/** A thin snapshot as a source knows it. */
export interface Snapshot {
  readonly kind: 'thin'
  /** `SOURCE/NAME`; in an answer, as the client asked for it. */
  handle: string
  /** What names this very snapshot for good, such as an LV UUID. Left out where there are names only, which can be used again. */
  identity?: string
  /**
   * The identity of what it is a snapshot of; two snapshots that are known to be of different volumes are never compared. Left out
   * when it is not known: LVM forgets origins that are removed, device-mapper never knew.
   */
  volume?: string
  /** What messages call that volume; its identity by default. */
  volumeName?: string
  /** The thin device id in its pool. */
  thinId: number
  /** Size in bytes, exact. Thin metadata does not hold it. */
  sizeBytes: number
  /** The pool's data block size in bytes, where the source says; the metadata must agree. */
  blockBytes?: number
  /** The metadata device or image of its pool; two images are different pools. */
  metadataPath: string
  /** What the path has to lead to, where the pool is in use: names can go to other devices before they are opened. */
  metadataDevice?: MetadataDevice
  /** Which pool in use it is, whatever its name (pool-identity.ts). */
  poolIdentity?: string
  /** The pool is in use: its live root is to be read, whether or not somebody holds a metadata snapshot. */
  live?: boolean
  /** Of metadata that nobody uses: the live root is to be read all the same. */
  liveRoot?: boolean
  /** A device of it is active that can be written to. */
  writable?: boolean
  /** The device that has the thin-pool target, where the pool is in use. */
  pool?: DeviceReference
  /** What the pool's metadata must say of the device (DeviceDetails.transactionId), or it is another one under a reused id. */
  transactionId?: bigint
  /** A device outside of the pool that shows through where the snapshot maps nothing: there, unmapped does not mean zeros. */
  externalOrigin?: {
    identity: string
    /** Left out when it is not known. */
    sizeBytes?: number
  }
}

/** Answers for one name before the slash of a handle. */
export interface SnapshotSource<S extends FoundSnapshot = Snapshot> {
  /** The snapshot of this name, or undefined when there is none. */
  snapshot(name: string): Promise<S | undefined>
}
