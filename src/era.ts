/**
 * Walks of an era device's metadata, as a library (`import { openEraDevice } from 'deltamapper/era'`): what was written
 * to since an era, without an agent. docs/library.md has an example, and what a caller has to see to.
 */
import { type EraMetadata, openEraMetadata } from './devicemapper/era/era-metadata.ts'
import type { ExtentStream } from './devicemapper/extents.ts'
import type { MetadataView } from './devicemapper/metadata-view.ts'

export type { MetadataView } from './devicemapper/metadata-view.ts'
export type { ExtentAnswer, ExtentBatch, ExtentStream } from './devicemapper/extents.ts'
export { DeltamapperError, type ErrorCode } from './errors.ts'

export interface OpenOptions {
  /** Look at the live root even where there is a metadata snapshot. Of an active device, no blocks are told from it. */
  readonly liveRoot?: boolean | undefined
  /** How long one read of a device may take, in milliseconds; 30,000 by default. */
  readonly deadlineMs?: number | undefined
  /** Read a device no faster than so many bytes a second, together with all that this thread reads. */
  readonly bytesPerSecond?: number | undefined
}

export interface EraDeviceFacts {
  readonly view: MetadataView
  /** Size of a block in bytes: what writes are told in. */
  readonly blockBytes: number
  /** Size in bytes up to the end of the last block, of which the device may have a part only. */
  readonly sizeBytes: number
  /** The last era whose writes this view knows; 0 for none yet. */
  readonly lastEra: number
  /**
   * Eras whose writes are still told apart, ascending. Of those before, only the last in which a block was written to
   * is known.
   */
  readonly distinctEras: readonly number[]
}

/**
 * dm-era knows when a block was last written to, not what was in it: a delta is what was written to since the base's
 * era.
 */
export interface DeltaQuestion {
  /** Blocks written to in this era or later; 0 to `lastEra`. The base was taken at the end of the era before. */
  readonly sinceEra: number
  /** Leave out what was written to in later eras only, as far as can be told; the last era by default. */
  readonly untilEra?: number | undefined
  /** Size of the device in bytes; that of all its blocks by default. */
  readonly sizeBytes?: number | undefined
  /** Size of the base in bytes: everything beyond counts as written to. By default as large as now. */
  readonly baseSizeBytes?: number | undefined
  /** Extents that end at or before this byte are left out; rounded down to a block. 0 to `sizeBytes`. */
  readonly startingOffset?: number | undefined
  readonly signal?: AbortSignal | undefined
}

/**
 * An era device's metadata, open. Batches are valid until the next is asked for; an answer is complete where they end
 * by themselves.
 */
export interface EraDevice extends AsyncDisposable {
  readonly path: string
  /** @throws DM_METADATA_DAMAGED, DM_READ_FAILED, DM_SNAPSHOT_CHANGED where the metadata snapshot was dropped */
  inspect(signal?: AbortSignal): Promise<EraDeviceFacts>
  /**
   * Whatever was ever written to since the device is tracked: no full backup, unless it was empty then.
   *
   * @throws what `delta` throws
   */
  allocated(question?: Omit<DeltaQuestion, 'sinceEra'>): Promise<ExtentStream>
  /**
   * What was written to since an era began.
   *
   * @throws DM_ERA_NOT_REACHED, DM_ARGUMENT_INVALID, DM_OFFSET_OUT_OF_RANGE; DM_DEVICE_BUSY for the live root of an
   *   active device; it and its batches: DM_SNAPSHOT_CHANGED, DM_METADATA_DAMAGED, DM_READ_FAILED, DM_CANCELLED
   */
  delta(question: DeltaQuestion): Promise<ExtentStream>
  close(): Promise<void>
}

/**
 * Opens an era device's metadata.
 *
 * @param path its metadata device, or a file with a copy of one. While the device is active, it needs a metadata
 *   snapshot (`dmsetup message DEVICE 0 take_metadata_snap`)
 * @throws DM_READ_FAILED, DM_METADATA_FOREIGN, DM_METADATA_DAMAGED, DM_METADATA_UNSUPPORTED
 */
export async function openEraDevice(path: string, options: OpenOptions = {}): Promise<EraDevice> {
  const { liveRoot = false, ...reading } = options
  return new OpenEraDevice(await openEraMetadata(path, { liveRoot, ...reading }))
}

class OpenEraDevice implements EraDevice {
  readonly #metadata: EraMetadata

  constructor(metadata: EraMetadata) {
    this.#metadata = metadata
  }

  get path(): string {
    return this.#metadata.path
  }

  async inspect(signal?: AbortSignal): Promise<EraDeviceFacts> {
    const { view, superblock, sizeBytes, lastEra } = this.#metadata
    const writesets = await this.#metadata.writesets(signal)
    const distinctEras = writesets.map(({ era }) => era)
    return { view, blockBytes: superblock.blockBytes, sizeBytes, lastEra, distinctEras }
  }

  async allocated(question: Omit<DeltaQuestion, 'sinceEra'> = {}): Promise<ExtentStream> {
    return this.delta({ ...question, sinceEra: 0 })
  }

  async delta(question: DeltaQuestion): Promise<ExtentStream> {
    const { capacityBytes, batches } = await this.#metadata.written(question)
    return { capacityBytes, batches }
  }

  async close(): Promise<void> {
    await this.#metadata.close()
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }
}
