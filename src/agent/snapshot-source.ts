/**
 * What the agent needs to know of a snapshot before its metadata is opened, and where it asks for that.
 */

/** A snapshot as a source knows it. */
export interface Snapshot {
  /** `SOURCE/NAME`, for messages. */
  handle: string
  /** What it is a snapshot of; two snapshots of different volumes are never compared. */
  volume: string
  /** The thin device id in its pool. */
  thinId: number
  /** Size in bytes, exact. Thin metadata does not hold it. */
  sizeBytes: number
  /** The metadata device or image of its pool; two snapshots with different ones are of different pools. */
  metadataPath: string
}

/** Answers for one name before the slash of a handle. */
export interface SnapshotSource {
  /** The snapshot of this name, or undefined when there is none. */
  snapshot(name: string): Promise<Snapshot | undefined>
}
