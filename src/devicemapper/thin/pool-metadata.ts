/**
 * A thin pool's metadata, opened for questions: which devices there are, what one maps, how two differ.
 *
 * The answers come from one *view*: the metadata snapshot that someone holds, or the live root. A file does not change. A device
 * does, under our eyes and without asking: then nothing is reserved, but before each batch leaves, the superblock is read again, and
 * the devices that were asked about must still have the root and creation time they had. The tree of an untouched snapshot never
 * changes, and its nodes cannot be reused before a commit that no longer refers to it, so what was read until then was right.
 */
import { DeltamapperError } from '../../errors.ts'
import { BlockReader, damaged, type ReadStatistics } from '../block-reader.ts'
import { entries, highestKey, lookup, U64_SIZE } from '../btree.ts'
import { METADATA_BLOCK_SIZE } from '../checksum.ts'
import type { ExtentBatch, ExtentStream } from '../extents.ts'
import { changedExtents } from './delta.ts'
import { DEVICE_DETAILS_SIZE, type DeviceDetails, MAX_DEVICES, parseDeviceDetails } from './device-details.ts'
import { parseThinSuperblock, type ThinSuperblock } from './superblock.ts'

/** Which state of the pool is looked at. */
export type MetadataView = 'live' | 'metadata-snapshot'

/** A thin device in this view. `root` is the block number of its mapping tree's root. */
export interface ThinDevice {
  id: number
  root: number
  details: DeviceDetails
}

export interface AllocatedQuestion {
  /** Thin device id, 0 to 2^24 - 1. */
  deviceId: number
  /** Size of the device in bytes; by default up to the end of its highest mapping. */
  sizeBytes?: number | undefined
  /** Extents that end at or before this byte are left out; it is rounded down to a data block. 0 to `sizeBytes`. */
  startingOffset?: number | undefined
  signal?: AbortSignal | undefined
}

export interface DeltaQuestion {
  baseId: number
  targetId: number
  /** Size of the base in bytes; by default as large as the target. */
  baseSizeBytes?: number | undefined
  /** Size of the target in bytes; by default up to the end of its highest mapping. */
  sizeBytes?: number | undefined
  startingOffset?: number | undefined
  signal?: AbortSignal | undefined
}

/**
 * Opens a thin pool's metadata.
 *
 * @param path a metadata device, or a file that holds a copy of one
 * @param liveRoot look at the live root even where a metadata snapshot is held
 * @param direct read a file with O_DIRECT; devices always are
 * @throws DM_READ_FAILED, DM_METADATA_FOREIGN, DM_METADATA_DAMAGED, DM_METADATA_UNSUPPORTED
 */
export async function openPoolMetadata(
  path: string,
  { liveRoot = false, direct = false }: { liveRoot?: boolean; direct?: boolean } = {}
): Promise<PoolMetadata> {
  const reader = await BlockReader.open(path, { direct })
  try {
    if (reader.blocks === 0) {
      throw new DeltamapperError(
        'DM_METADATA_FOREIGN',
        `${path} holds no dm-thin metadata: it is smaller than one block of ${METADATA_BLOCK_SIZE} bytes`,
        "name a thin pool's metadata device (LVM: VG/POOL_tmeta), or a copy of it"
      )
    }
    const live = parseThinSuperblock(await reader.readRaw(0), 0, path)
    if (liveRoot || live.heldRoot === 0) return new PoolMetadata(reader, live, 'live', live.heldRoot)
    const held = parseThinSuperblock(await reader.readRaw(live.heldRoot), live.heldRoot, path)
    return new PoolMetadata(reader, held, 'metadata-snapshot', live.heldRoot)
  } catch (error) {
    await reader.close()
    throw error
  }
}

export class PoolMetadata {
  /** The superblock of the view: the live one, or the copy of it that the metadata snapshot is. */
  readonly superblock: ThinSuperblock
  readonly view: MetadataView
  /** Block of the metadata snapshot that was held at opening; 0 for none. */
  readonly heldRoot: number
  readonly #reader: BlockReader

  constructor(reader: BlockReader, superblock: ThinSuperblock, view: MetadataView, heldRoot: number) {
    this.#reader = reader
    this.superblock = superblock
    this.view = view
    this.heldRoot = heldRoot
  }

  get path(): string {
    return this.#reader.path
  }

  /** What reading has cost since opening. */
  get statistics(): Readonly<ReadStatistics> {
    return this.#reader.statistics
  }

  async close(): Promise<void> {
    await this.#reader.close()
  }

  /**
   * One device of the view.
   *
   * @throws DM_DEVICE_NOT_FOUND; DM_ARGUMENT_INVALID for what can be no device id
   */
  async device(id: number, signal?: AbortSignal): Promise<ThinDevice> {
    if (!Number.isInteger(id) || id < 0 || id >= MAX_DEVICES) {
      throw new DeltamapperError(
        'DM_ARGUMENT_INVALID',
        `${id} is no thin device id`,
        `ids are whole numbers from 0 to ${MAX_DEVICES - 1}`
      )
    }
    const device = await findDevice(this.#reader, this.superblock, id, signal)
    if (!device) {
      throw new DeltamapperError(
        'DM_DEVICE_NOT_FOUND',
        `the pool in ${this.path} has no thin device ${id}` +
          (this.view === 'metadata-snapshot' ? ' in its metadata snapshot' : ''),
        this.view === 'metadata-snapshot'
          ? '`deltamapper inspect` lists the devices; what is newer than the metadata snapshot shows with --live-root'
          : '`deltamapper inspect` lists the devices'
      )
    }
    return device
  }

  async deviceDetails(id: number): Promise<DeviceDetails> {
    return (await this.device(id)).details
  }

  /** All devices of the view, by ascending id; a few blocks in memory however many there are. */
  async *devices(signal?: AbortSignal): AsyncGenerator<ThinDevice> {
    const { mappingRoot, detailsRoot } = this.superblock
    const roots = entries(this.#reader, mappingRoot, U64_SIZE, u64, signal)
    for await (const { key: id, value: details } of entries(
      this.#reader,
      detailsRoot,
      DEVICE_DETAILS_SIZE,
      parseDeviceDetails,
      signal
    )) {
      const next = await roots.next()
      if (next.done || next.value.key !== id) throw this.#inconsistent(id)
      yield { id, root: next.value.value, details }
    }
    const rest = await roots.next()
    if (!rest.done) throw this.#inconsistent(rest.value.key)
  }

  /** Everything the device maps. @throws DM_DEVICE_NOT_FOUND, DM_OFFSET_OUT_OF_RANGE, and what reading metadata throws */
  async allocated(question: AllocatedQuestion): Promise<ExtentStream> {
    return this.#answer(undefined, question)
  }

  /**
   * What changed between two devices of the pool: every block that is mapped elsewhere, newly mapped or no longer mapped, and
   * everything the target maps beyond the base's size.
   */
  async delta({ baseId, targetId, baseSizeBytes, ...rest }: DeltaQuestion): Promise<ExtentStream> {
    return this.#answer(await this.device(baseId, rest.signal), { deviceId: targetId, ...rest }, baseSizeBytes)
  }

  async #answer(
    base: ThinDevice | undefined,
    { deviceId, sizeBytes, startingOffset = 0, signal }: AllocatedQuestion,
    baseSizeBytes?: number
  ): Promise<ExtentStream> {
    const target = await this.device(deviceId, signal)
    const capacityBytes = sizeBytes ?? (await this.mappedEnd(target, signal))
    if (startingOffset < 0 || startingOffset > capacityBytes) {
      throw new DeltamapperError(
        'DM_OFFSET_OUT_OF_RANGE',
        `starting offset ${startingOffset} is outside the volume of ${capacityBytes} bytes`,
        'resume at the end of the last extent received, or at 0'
      )
    }
    const { dataBlockBytes } = this.superblock
    const extents = changedExtents({
      reader: this.#reader,
      baseRoot: base?.root,
      targetRoot: target.root,
      blockBytes: dataBlockBytes,
      sizeBytes: capacityBytes,
      firstBlock: Math.floor(startingOffset / dataBlockBytes),
      // Only what lies beyond a *smaller* base is missing from every backup of it.
      baseEndBlock:
        baseSizeBytes !== undefined && baseSizeBytes < capacityBytes
          ? Math.floor(baseSizeBytes / dataBlockBytes)
          : Infinity,
      signal
    })
    const devices = base ? [base, target] : [target]
    return { capacityBytes, batches: this.#reader.isDevice ? this.#validated(extents, devices) : extents }
  }

  /** Where the device's highest mapping ends, in bytes: the best guess at a size that thin metadata does not hold. */
  async mappedEnd({ root }: ThinDevice, signal?: AbortSignal): Promise<number> {
    const highest = await highestKey(this.#reader, root, U64_SIZE, signal)
    return highest === undefined ? 0 : (highest + 1) * this.superblock.dataBlockBytes
  }

  /** Lets a batch pass only after the devices it speaks of were found unchanged. */
  async *#validated(extents: AsyncGenerator<ExtentBatch>, devices: ThinDevice[]): AsyncGenerator<ExtentBatch> {
    try {
      for await (const batch of extents) {
        await this.#checkUnchanged(devices)
        yield batch
      }
    } catch (error) {
      // A node that was freed and is being overwritten looks damaged. Only if the snapshots are still the same, it is.
      if (error instanceof DeltamapperError && error.code === 'DM_METADATA_DAMAGED') await this.#checkUnchanged(devices)
      throw error
    }
    await this.#checkUnchanged(devices)
  }

  /** @throws DM_SNAPSHOT_CHANGED unless each device is still the one that was asked about, with the tree it had then */
  async #checkUnchanged(devices: ThinDevice[]): Promise<void> {
    const now = await this.#currentSuperblock()
    for (const { id, root, details } of devices) {
      const found = await findDevice(this.#reader, now, id)
      if (
        found?.root !== root ||
        found.details.creationTime !== details.creationTime ||
        found.details.mappedBlocks !== details.mappedBlocks
      ) {
        throw new DeltamapperError(
          'DM_SNAPSHOT_CHANGED',
          `thin device ${id} of ${this.path} was written to, trimmed or removed while it was read`,
          'ask again; if it happens again, take the snapshot read-only'
        )
      }
    }
  }

  async #currentSuperblock(): Promise<ThinSuperblock> {
    const live = parseThinSuperblock(await this.#reader.readRaw(0), 0, this.path)
    if (this.view === 'live') return live
    if (live.heldRoot !== this.heldRoot) {
      throw new DeltamapperError(
        'DM_SNAPSHOT_CHANGED',
        `the metadata snapshot in ${this.path} was released while it was read`,
        'ask again'
      )
    }
    return parseThinSuperblock(await this.#reader.readRaw(this.heldRoot), this.heldRoot, this.path)
  }

  #inconsistent(id: number): DeltamapperError {
    return damaged(
      this.path,
      this.superblock.mappingRoot,
      `thin device ${id} is in only one of the tree below it and that of the device details below block ${this.superblock.detailsRoot}`
    )
  }
}

async function findDevice(
  reader: BlockReader,
  { mappingRoot, detailsRoot }: ThinSuperblock,
  id: number,
  signal?: AbortSignal
): Promise<ThinDevice | undefined> {
  const details = await lookup(reader, detailsRoot, id, DEVICE_DETAILS_SIZE, parseDeviceDetails, signal)
  if (!details) return undefined
  const root = await lookup(reader, mappingRoot, id, U64_SIZE, u64, signal)
  if (root === undefined) {
    throw damaged(reader.path, mappingRoot, `the tree below it lacks thin device ${id}, which the device details name`)
  }
  return { id, root, details }
}

function u64(bytes: Buffer, offset: number): number {
  return bytes.readUInt32LE(offset) + bytes.readUInt32LE(offset + 4) * 2 ** 32
}
