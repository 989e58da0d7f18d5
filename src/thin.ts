/**
 * Walks of a thin pool's metadata, as a library (`import { openThinPool } from 'deltamapper/thin'`): what an agent does
 * for each question, without an agent. docs/library.md has an example, and what a caller has to see to.
 */
import type { ExtentStream } from './devicemapper/extents.ts'
import type { MetadataView } from './devicemapper/metadata-view.ts'
import { openPoolMetadata, type PoolMetadata } from './devicemapper/thin/pool-metadata.ts'

export type { ExtentAnswer, ExtentBatch, ExtentStream } from './devicemapper/extents.ts'
export type { MetadataView } from './devicemapper/metadata-view.ts'
export { DeltamapperError, type ErrorCode } from './errors.ts'

export interface OpenOptions {
  /**
   * Look at the live root even where a metadata snapshot is held. Without it, what is newer than the metadata snapshot
   * is not there.
   */
  readonly liveRoot?: boolean | undefined
  /** How long one read of a device may take, in milliseconds; 30,000 by default. */
  readonly deadlineMs?: number | undefined
  /** Read a device no faster than so many bytes a second, together with all that this thread reads. */
  readonly bytesPerSecond?: number | undefined
}

/** A volume or snapshot of a pool. */
export interface ThinDevice {
  /** Thin device id, 0 to 2^24 - 1. */
  readonly id: number
  /** Bytes mapped, shared ones included. */
  readonly mappedBytes: number
  /** The pool's transaction id when the device was made. */
  readonly transactionId: bigint
  /** The pool's clock when the device was made. Together with the id, it names a device for good. */
  readonly creationTime: number
  /** The pool's clock when the device last took part in a snapshot, as origin or as the snapshot. */
  readonly snapshottedTime: number
}

export interface ThinPoolFacts {
  readonly view: MetadataView
  /** Size of a data block in bytes: what changes are told in. */
  readonly blockBytes: number
  readonly transactionId: bigint
  /** The pool's clock: one more with every snapshot. */
  readonly time: number
  /** The pool found an error that it could not repair. */
  readonly needsCheck: boolean
  /** By ascending id. */
  readonly devices: readonly ThinDevice[]
}

export interface AllocatedQuestion {
  readonly deviceId: number
  /**
   * Size of the device in bytes; by default up to the end of its highest mapping, which is less where its end was never
   * written to.
   */
  readonly sizeBytes?: number | undefined
  /** Extents that end at or before this byte are left out; rounded down to a block. 0 to `sizeBytes`. */
  readonly startingOffset?: number | undefined
  /**
   * Size in bytes of an external origin, which shows wherever the device maps nothing: all of it counts as allocated.
   */
  readonly externalOriginBytes?: number | undefined
  readonly signal?: AbortSignal | undefined
}

export interface DeltaQuestion {
  /** A snapshot that nobody has written to since it was taken: a block that was gives an error where it shows. */
  readonly baseId: number
  readonly targetId: number
  /**
   * Size of the base in bytes: whatever the target maps beyond counts as changed. By default as large as the target.
   */
  readonly baseSizeBytes?: number | undefined
  /** Size of the target in bytes; by default up to the end of its highest mapping. */
  readonly sizeBytes?: number | undefined
  /** Extents that end at or before this byte are left out; rounded down to a block. 0 to `sizeBytes`. */
  readonly startingOffset?: number | undefined
  /** Size in bytes of an external origin: wherever it shows in one of the two counts as changed. */
  readonly externalOriginBytes?: number | undefined
  readonly signal?: AbortSignal | undefined
}

/**
 * A pool's metadata, open. Answers come in batches: each batch is valid until the next is asked for, and an answer is
 * complete only where its batches end by themselves. On a device in use, every batch is checked against the live
 * metadata before it is handed out.
 */
export interface ThinPool extends AsyncDisposable {
  readonly path: string
  /** All devices are read before it resolves. @throws DM_METADATA_DAMAGED, DM_READ_FAILED */
  inspect(signal?: AbortSignal): Promise<ThinPoolFacts>
  /**
   * What a device maps: the extents of a full backup.
   *
   * @throws DM_DEVICE_NOT_FOUND, DM_ARGUMENT_INVALID, DM_OFFSET_OUT_OF_RANGE; it and its batches: DM_SNAPSHOT_CHANGED,
   *   DM_METADATA_DAMAGED, DM_READ_FAILED, DM_CANCELLED
   */
  allocated(question: AllocatedQuestion): Promise<ExtentStream>
  /**
   * What changed from one snapshot to another: blocks mapped elsewhere, newly mapped or no longer mapped.
   *
   * @throws what `allocated` throws
   */
  delta(question: DeltaQuestion): Promise<ExtentStream>
  close(): Promise<void>
}

/**
 * Opens a pool's metadata.
 *
 * @param path the metadata device of a pool, in use or not (LVM: VG-POOL_tmeta), or a file with a copy of one
 * @throws DM_READ_FAILED, DM_METADATA_FOREIGN, DM_METADATA_DAMAGED, DM_METADATA_UNSUPPORTED
 */
export async function openThinPool(path: string, options: OpenOptions = {}): Promise<ThinPool> {
  const { liveRoot = false, ...reading } = options
  return new OpenThinPool(await openPoolMetadata(path, { liveRoot, ...reading }))
}

class OpenThinPool implements ThinPool {
  readonly #metadata: PoolMetadata

  constructor(metadata: PoolMetadata) {
    this.#metadata = metadata
  }

  get path(): string {
    return this.#metadata.path
  }

  async inspect(signal?: AbortSignal): Promise<ThinPoolFacts> {
    const { superblock, view } = this.#metadata
    const { dataBlockBytes: blockBytes, transactionId, time, needsCheck } = superblock
    const devices: ThinDevice[] = []
    for await (const { id, details } of this.#metadata.devices(signal)) {
      const { mappedBlocks, ...times } = details
      devices.push({ id, mappedBytes: mappedBlocks * blockBytes, ...times })
    }
    return { view, blockBytes, transactionId, time, needsCheck, devices }
  }

  async allocated(question: AllocatedQuestion): Promise<ExtentStream> {
    return stream(await this.#metadata.allocated(question))
  }

  async delta(question: DeltaQuestion): Promise<ExtentStream> {
    return stream(await this.#metadata.delta({ ...question, baseIsSnapshot: true }))
  }

  async close(): Promise<void> {
    await this.#metadata.close()
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }
}

function stream({ capacityBytes, batches }: ExtentStream): ExtentStream {
  return { capacityBytes, batches }
}
