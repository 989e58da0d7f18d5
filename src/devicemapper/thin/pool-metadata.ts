/**
 * A thin pool's metadata, opened for questions: which devices exist, what one maps, how two differ.
 *
 * The answers come from one *view*: the metadata snapshot, if one is held, or the live root. A file does not change. A
 * device does, while we read, and nothing is reserved. So before each batch leaves, the superblock is read again, and
 * the devices in question must still have the root and creation time they had. The tree of an untouched snapshot never
 * changes, and its nodes cannot be reused before a commit that no longer refers to it. So what was read until then was
 * right.
 */
import { allOf } from '../../all-of.ts'
import { DeltamapperError, invalid } from '../../errors.ts'
import { type BlockReader, damaged, type ReadOptions, type ReadStatistics } from '../block-reader.ts'
import { entries, highestKey, lookup, U64_SIZE } from '../btree.ts'
import { checksumSalt } from '../checksum.ts'
import type { ExtentBatch, ExtentStream } from '../extents.ts'
import {
  checkSize,
  checkStartingOffset,
  isDamage,
  type MetadataFormat,
  type MetadataView,
  MOST_LOOKS,
  type OpenedMetadata,
  openMetadata,
  type ReadSuperblock,
  readSuperblock
} from '../metadata-view.ts'
import type { DeviceNumber } from '../target-words.ts'
import type { BaseRecordReader } from './base-record/reader.ts'
import { checkRecordBlocks } from './base-record/trust.ts'
import { changedExtents, type MappingDelta } from './delta.ts'
import type { MappingSink } from './mapping-sink.ts'
import { DEVICE_DETAILS_SIZE, type DeviceDetails, MAX_DEVICES, parseDeviceDetails } from './device-details.ts'
import { packDevices, type PoolMoment } from './base-record/pool-moment.ts'
import { type MappedLeaf, mappedLeaf } from './mapped-leaf.ts'
import { checkHeldCopy, parseThinSuperblock, type ThinSuperblock } from './superblock.ts'

/** How many mappings are checked for one that is older than its device. */
const MOST_MAPPINGS = 65_536

/** A thin device in this view. `root` is the block number of its mapping tree's root. */
export interface ThinDevice {
  id: number
  root: number
  details: DeviceDetails
}

/**
 * What stays the same about a snapshot as long as nobody writes to it or trims it. A change moves the root to another
 * block; later changes can move it back, with the same content (freed metadata blocks are used again). So it shows
 * changes between two messages of an answer, unless both happened in between. Over a longer time it proves nothing.
 */
export interface Fingerprint {
  creationTime: number
  mappedBlocks: number
  root: number
  /** The checksum in the root node, unsigned. */
  rootChecksum: number
}

/** What a walk needs of a device; a fingerprint tells as much. */
export interface WalkedDevice extends Pick<ThinDevice, 'id' | 'root'> {
  readonly details: Pick<DeviceDetails, 'mappedBlocks' | 'creationTime'>
}

/** A device, and its earlier fingerprint, if there is one. */
export interface PinnedDevice {
  readonly device: WalkedDevice
  readonly fingerprint?: Fingerprint | undefined
}

/** A device and its fingerprint, of one look. */
export interface PinnedNow extends PinnedDevice {
  readonly device: ThinDevice
  readonly fingerprint: Fingerprint
}

/** An answer, and what was learned about its target on the way. */
export interface MappingStream extends ExtentStream {
  readonly batches: AsyncGenerator<ExtentBatch>
  /**
   * After the end of `batches`: whether the target was never written since it was taken, as far as it was read (from
   * the starting offset on, and only where it differs from the base). Only a snapshot can be pristine: a volume's
   * mappings are all its own.
   */
  readonly isPristine: () => boolean
}

export interface AllocatedQuestion {
  /** Thin device id, 0 to 2^24 - 1. */
  deviceId: number
  /** Size of the device in bytes; by default up to the end of its highest mapping. */
  sizeBytes?: number | undefined
  /** Leave out extents that end at or before this byte. Rounded down to a data block. 0 to `sizeBytes`. */
  startingOffset?: number | undefined
  /**
   * Size in bytes of the external origin that shows wherever the device maps nothing; all of it counts as allocated.
   */
  externalOriginBytes?: number | undefined
  /** The device's earlier fingerprint; on a live pool it must still be the same. */
  fingerprint?: Fingerprint | undefined
  /** Is told all mappings of the target from `startingOffset` on, also those beyond its size (delta.ts). */
  sink?: MappingSink | undefined
  signal?: AbortSignal | undefined
}

/** What changed since a base that is gone, by its record (base-record/). */
export interface RecordedDeltaQuestion extends AllocatedQuestion {
  readonly record: BaseRecordReader
}

export interface DeltaQuestion {
  baseId: number
  targetId: number
  /** Size of the base in bytes; by default as large as the target. */
  baseSizeBytes?: number | undefined
  /**
   * Whether the base is known to be a snapshot, to which nobody should have written: then a block written since is an
   * error.
   */
  baseIsSnapshot?: boolean | undefined
  /** Earlier fingerprints of base and target; on a live pool they must still be the same. */
  baseFingerprint?: Fingerprint | undefined
  fingerprint?: Fingerprint | undefined
  /** If given, the blocks that the external origin provides count as changed, whatever the trees say of them. */
  externalOriginBytes?: number | undefined
  /** Size of the target in bytes; by default up to the end of its highest mapping. */
  sizeBytes?: number | undefined
  startingOffset?: number | undefined
  sink?: MappingSink | undefined
  signal?: AbortSignal | undefined
}

/** What is compared with: a device of the pool, or the record of one that is gone. */
interface Base {
  readonly device?: WalkedDevice
  readonly record?: BaseRecordReader
  readonly sizeBytes: number | undefined
  readonly takenAt?: number
  readonly fingerprint?: Fingerprint | undefined
}

/**
 * Opens a thin pool's metadata.
 *
 * @param path a metadata device, or a file that holds a copy of one
 * @param liveRoot read the live root even if a metadata snapshot is held
 * @throws DM_READ_FAILED, DM_METADATA_FOREIGN, DM_METADATA_DAMAGED, DM_METADATA_UNSUPPORTED
 */
export async function openPoolMetadata(
  path: string,
  options: { liveRoot?: boolean } & ReadOptions = {}
): Promise<PoolMetadata> {
  const opened = await openMetadata(path, poolFormat, options)
  return new PoolMetadata(opened, opened.live.superblock.heldRoot)
}

export class PoolMetadata {
  /** The superblock of the view: the live one, or the copy that is the metadata snapshot. */
  readonly superblock: ThinSuperblock
  readonly view: MetadataView
  /** Block of the metadata snapshot that was held at opening; 0 for none. */
  readonly heldRoot: number
  readonly #reader: BlockReader
  /** The view's superblock as it was read. */
  readonly #block: Buffer

  constructor({ reader, seen, view }: OpenedMetadata<ThinSuperblock>, heldRoot: number) {
    this.#reader = reader
    this.#block = seen.block
    this.superblock = seen.superblock
    this.view = view
    this.heldRoot = heldRoot
  }

  get path(): string {
    return this.#reader.path
  }

  /** The block device that is open; undefined for a file. */
  get openDevice(): DeviceNumber | undefined {
    return this.#reader.device
  }

  /** Its descriptor, for as long as it is open. */
  get descriptor(): number {
    return this.#reader.descriptor
  }

  /** The cost of reading since opening. */
  get statistics(): Readonly<ReadStatistics> {
    return this.#reader.statistics
  }

  async close(): Promise<void> {
    await this.#reader.close()
  }

  /**
   * One device of the view.
   *
   * @throws DM_DEVICE_NOT_FOUND; DM_ARGUMENT_INVALID for an impossible device id
   */
  async device(id: number, signal?: AbortSignal): Promise<ThinDevice> {
    return this.#lookedUp(id, (superblock) => findDevice(this.#reader, superblock, id, signal))
  }

  /** A device and its fingerprint, of one look. @throws what `device` throws */
  async pinned(id: number, signal?: AbortSignal): Promise<PinnedNow> {
    return this.#lookedUp(id, async (superblock) => {
      const device = await findDevice(this.#reader, superblock, id, signal)
      return device && { device, fingerprint: await this.#fingerprintOf(device) }
    })
  }

  async #lookedUp<T>(id: number, look: (superblock: ThinSuperblock) => Promise<T | undefined>): Promise<T> {
    if (!Number.isInteger(id) || id < 0 || id >= MAX_DEVICES) {
      throw invalid(`${id} is no thin device id`, `ids are whole numbers from 0 to ${MAX_DEVICES - 1}`)
    }
    const found = await this.#settled(look)
    if (found !== undefined) return found
    const isHeld = this.view === 'metadata-snapshot'
    throw new DeltamapperError(
      'DM_DEVICE_NOT_FOUND',
      `the pool in ${this.path} has no thin device ${id}${isHeld ? ' in its metadata snapshot' : ''}`,
      isHeld
        ? '`deltamapper inspect` lists the devices; what is newer than the metadata snapshot shows with --live-root'
        : '`deltamapper inspect` lists the devices'
    )
  }

  /** The fingerprint of the device. @throws DM_SNAPSHOT_CHANGED when it has changed since it was handed out */
  async fingerprint(device: ThinDevice): Promise<Fingerprint> {
    return (await this.#fingerprints([device]))[0]
  }

  /**
   * A device's id and fingerprint in words that can be kept and compared.
   *
   * @throws DM_DEVICE_NOT_FOUND
   */
  async fingerprintText(id: number): Promise<string> {
    const { creationTime, mappedBlocks, root, rootChecksum } = (await this.pinned(id)).fingerprint
    return `thin ${id}, time ${creationTime}, ${mappedBlocks} blocks, root ${root}, checksum ${rootChecksum}`
  }

  async deviceDetails(id: number): Promise<DeviceDetails> {
    return (await this.device(id)).details
  }

  /** How far the pool has come in this view. */
  async moment(signal?: AbortSignal): Promise<PoolMoment> {
    return this.#settled(async ({ time, transactionId, detailsRoot }) => {
      const details = entries(this.#reader, detailsRoot, DEVICE_DETAILS_SIZE, parseDeviceDetails, signal)
      const devices: Parameters<typeof packDevices>[0][number][] = []
      for await (const { key: id, value } of details) {
        devices.push({ id, creationTime: value.creationTime, transactionId: value.transactionId })
      }
      return { time, transactionId, devices: packDevices(devices) }
    })
  }

  /**
   * All devices of the view, by ascending id, with a few blocks in memory. From the live root of a device, which may
   * change under a longer look, all are read before the first is handed out.
   */
  async *devices(signal?: AbortSignal): AsyncGenerator<ThinDevice> {
    if (this.#reader.isDevice)
      yield* await this.#settled((superblock) => Array.fromAsync(this.#listed(superblock, signal)))
    else yield* this.#listed(this.superblock, signal)
  }

  async *#listed({ mappingRoot, detailsRoot }: ThinSuperblock, signal?: AbortSignal): AsyncGenerator<ThinDevice> {
    const roots = entries(this.#reader, mappingRoot, U64_SIZE, u64, signal)
    for await (const { key: id, value: details } of entries(
      this.#reader,
      detailsRoot,
      DEVICE_DETAILS_SIZE,
      parseDeviceDetails,
      signal
    )) {
      const next = await roots.next()
      if (next.done || next.value.key !== id) throw this.#inconsistent(next.done ? id : Math.min(id, next.value.key))
      yield { id, root: next.value.value, details }
    }
    const rest = await roots.next()
    if (!rest.done) throw this.#inconsistent(rest.value.key)
  }

  /**
   * Everything the device maps.
   *
   * @throws DM_DEVICE_NOT_FOUND, or DM_SNAPSHOT_CHANGED with an earlier fingerprint; DM_OFFSET_OUT_OF_RANGE, and what
   *   reading metadata throws
   */
  async allocated(question: AllocatedQuestion): Promise<MappingStream> {
    return this.#answer(undefined, await this.#targetOf(question), question)
  }

  /**
   * What changed between two devices of the pool: every block that is mapped elsewhere, newly mapped or no longer
   * mapped, and everything the target maps beyond the base's size.
   */
  async delta({
    baseId,
    targetId,
    baseSizeBytes,
    baseIsSnapshot,
    baseFingerprint,
    ...rest
  }: DeltaQuestion): Promise<MappingStream> {
    const [device, target] = await allOf([
      this.#deviceAsSeen(baseId, baseFingerprint, rest.signal),
      this.#deviceAsSeen(targetId, rest.fingerprint, rest.signal)
    ])
    const takenAt = baseIsSnapshot ? device.details.creationTime : Infinity
    const base = { device, sizeBytes: baseSizeBytes, takenAt, fingerprint: baseFingerprint }
    return this.#answer(base, target, rest)
  }

  /**
   * What changed between a base that is gone and a device of the pool: every block whose pair of data block and time is
   * not the recorded one, or as young as the base, and everything the target maps beyond the base's size. Reads all of
   * the target's tree.
   *
   * Whether the pool is still the one that went on from the record is for `checkWentOn` (base-record/trust.ts) to tell.
   * The record may be read again afterwards.
   *
   * @throws DM_BASE_RECORD_REBUILT, DM_BASE_RECORD_DAMAGED, and what `allocated` throws
   */
  async deltaFromRecord({ record, ...question }: RecordedDeltaQuestion): Promise<MappingStream> {
    checkRecordBlocks(record, this.superblock.dataBlockBytes)
    const base = { record, sizeBytes: record.header.device.sizeBytes }
    return this.#answer(base, await this.#targetOf(question), question)
  }

  async #targetOf({ deviceId, fingerprint, signal }: AllocatedQuestion): Promise<WalkedDevice> {
    return this.#deviceAsSeen(deviceId, fingerprint, signal)
  }

  async #answer(
    base: Base | undefined,
    target: WalkedDevice,
    {
      sizeBytes,
      startingOffset = 0,
      externalOriginBytes = 0,
      fingerprint,
      sink,
      signal
    }: Omit<AllocatedQuestion, 'deviceId'>
  ): Promise<MappingStream> {
    for (const size of [sizeBytes, base?.sizeBytes, externalOriginBytes]) checkSize(size)
    const capacityBytes = sizeBytes ?? (await this.mappedEnd(target, signal))
    checkStartingOffset(startingOffset, capacityBytes)
    const { dataBlockBytes } = this.superblock
    const delta: MappingDelta = {
      reader: this.#reader,
      baseRoot: base?.device?.root,
      baseRecord: base?.record,
      targetRoot: target.root,
      baseMapped: base?.device?.details.mappedBlocks,
      targetMapped: target.details.mappedBlocks,
      blockBytes: dataBlockBytes,
      sizeBytes: capacityBytes,
      sizeIsFromTree: sizeBytes === undefined,
      // At the very end nothing is left, not even of a last block that the end cuts in two.
      firstBlock:
        startingOffset < capacityBytes || startingOffset === 0 ? Math.floor(startingOffset / dataBlockBytes) : Infinity,
      // Only blocks beyond a *smaller* base are missing from every backup of it.
      baseEndBlock:
        base?.sizeBytes !== undefined && base.sizeBytes < capacityBytes
          ? Math.floor(base.sizeBytes / dataBlockBytes)
          : Infinity,
      baseTakenAt: base?.takenAt ?? Infinity,
      targetTakenAt: target.details.creationTime,
      originBlocks: Math.ceil(externalOriginBytes / dataBlockBytes),
      sink,
      signal
    }
    const devices = base?.device ? [target, base.device] : [target]
    const extents = sink ? this.#toldWhole(delta, devices) : changedExtents(delta)
    const pinned = [
      ...(base?.device ? [{ device: base.device, fingerprint: base.fingerprint }] : []),
      { device: target, fingerprint }
    ]
    const batches = this.whileUnchanged(extents, pinned, signal)
    let pristine = false
    return {
      capacityBytes,
      batches: (async function* () {
        pristine = yield* batches
      })(),
      isPristine: () => pristine
    }
  }

  /**
   * The walk of an answer, and for its sink the rest of the trees: what lies below the end of an external origin, where
   * the answer does not depend on it, and behind the size, where a volume that was larger once still has mappings.
   */
  async *#toldWhole(delta: MappingDelta, devices: readonly WalkedDevice[]): AsyncGenerator<ExtentBatch, boolean> {
    const { blockBytes, sizeBytes, firstBlock, originBlocks, signal } = delta
    const rest = { ...delta, originBlocks: 0, sizeIsFromTree: false }
    const endBlock = Math.ceil(sizeBytes / blockBytes)
    const originEnd = Math.min(originBlocks, endBlock)
    let pristine = true
    if (firstBlock < originEnd) {
      pristine = await ended(changedExtents({ ...rest, sizeBytes: Math.min(originEnd * blockBytes, sizeBytes) }))
    }
    pristine = (yield* changedExtents(delta)) && pristine
    let mappedEnd = 0
    for (const device of devices) mappedEnd = Math.max(mappedEnd, await this.mappedEnd(device, signal))
    if (mappedEnd <= endBlock * blockBytes) return pristine
    return (await ended(changedExtents({ ...rest, firstBlock: endBlock, sizeBytes: mappedEnd }))) && pristine
  }

  /**
   * Whether a device is known to be a snapshot: one of its first mappings is older than the device. (A snapshot of
   * which all those were written anew cannot be told from a volume.)
   */
  async isSnapshot({ id, details: { creationTime } }: ThinDevice, signal?: AbortSignal): Promise<boolean> {
    return this.#settled(async (superblock) => {
      const device = await findDevice(this.#reader, superblock, id, signal)
      if (device?.details.creationTime !== creationTime) throw this.#changed({ id })
      let looked = 0
      for await (const { value } of entries(this.#reader, device.root, U64_SIZE, time, signal)) {
        if (value < creationTime) return true
        if (++looked === MOST_MAPPINGS) break
      }
      return false
    })
  }

  /**
   * Whether a device was never written since it was taken: it has no mapping as young as itself. All mappings of a
   * volume are. Reads its whole tree.
   *
   * @param fingerprint its earlier one; on a live pool it must still be the same
   * @throws what `allocated` throws
   */
  async isPristine(deviceId: number, signal?: AbortSignal, fingerprint?: Fingerprint): Promise<boolean> {
    // Without its size: the end of a tree that may change is not read first.
    const sizeBytes = Number.MAX_SAFE_INTEGER
    const { batches, isPristine } = await this.allocated({ deviceId, sizeBytes, fingerprint, signal })
    while (!(await batches.next()).done) signal?.throwIfAborted()
    return isPristine()
  }

  /**
   * Where the data blocks of a device are, in the neighbourhood of a virtual block. On a live pool it counts only where
   * the device's fingerprint is found to be the same afterwards.
   *
   * @throws what reading metadata throws
   */
  async mappedLeaf({ root }: ThinDevice, block: number, signal?: AbortSignal): Promise<MappedLeaf> {
    return mappedLeaf(this.#reader, root, block, signal)
  }

  /**
   * Where the device's highest mapping ends, in bytes: the best guess at a size that thin metadata does not hold.
   *
   * @throws DM_METADATA_UNSUPPORTED when that is beyond 2^53, where byte offsets would no longer be exact
   */
  async mappedEnd({ id, root }: WalkedDevice, signal?: AbortSignal): Promise<number> {
    const highest = await highestKey(this.#reader, root, U64_SIZE, signal)
    const end = highest === undefined ? 0 : (highest + 1) * this.superblock.dataBlockBytes
    if (end > Number.MAX_SAFE_INTEGER) {
      throw new DeltamapperError(
        'DM_METADATA_UNSUPPORTED',
        `thin device ${id} of ${this.path} maps bytes beyond 2^53`,
        'give its size, if it is smaller than that'
      )
    }
    return end
  }

  /**
   * Lets a batch pass, of any producer, only after its devices were found unchanged: since the walk began, or since an
   * earlier fingerprint. A file does not change.
   *
   * @throws DM_SNAPSHOT_CHANGED, and what `extents` throws
   */
  whileUnchanged(
    extents: AsyncGenerator<ExtentBatch, boolean>,
    pinned: readonly PinnedDevice[],
    signal: AbortSignal | undefined
  ): AsyncGenerator<ExtentBatch, boolean> {
    return this.#reader.isDevice ? this.#validated(extents, pinned, signal) : extents
  }

  async *#validated(
    extents: AsyncGenerator<ExtentBatch, boolean>,
    pinned: readonly PinnedDevice[],
    signal: AbortSignal | undefined
  ): AsyncGenerator<ExtentBatch, boolean> {
    const devices = pinned.map(({ device }) => device)
    // What was seen earlier is held against what is there with the first batch, and with each after it.
    const areKnown = pinned.every(({ fingerprint }) => fingerprint !== undefined)
    const found = areKnown ? [] : await this.#fingerprints(devices)
    const expected = pinned.map(({ fingerprint }, i) => fingerprint ?? found[i])
    const checkUnchanged = async () => {
      signal?.throwIfAborted()
      const now = await this.#fingerprints(devices)
      const changed = devices.findIndex((_, i) => !sameFingerprint(now[i], expected[i]))
      if (changed >= 0) throw this.#changed(devices[changed])
    }
    try {
      for (;;) {
        const next = await extents.next()
        await checkUnchanged()
        if (next.done) return next.value
        yield next.value
      }
    } catch (error) {
      // A node that was freed and is being overwritten looks damaged. It is damaged only if the snapshots are still the
      // same.
      if (isDamage(error)) await checkUnchanged()
      throw error
    } finally {
      await extents.return(false)
    }
  }

  /**
   * The devices as they are now. @throws DM_SNAPSHOT_CHANGED when one is gone, or has another root than when it was
   * handed out
   */
  async #fingerprints(devices: WalkedDevice[]): Promise<Fingerprint[]> {
    return this.#settled(async (superblock) => allOf(devices.map((device) => this.#fingerprintIn(superblock, device))))
  }

  async #fingerprintIn(superblock: ThinSuperblock, device: WalkedDevice): Promise<Fingerprint> {
    const found = await findDevice(this.#reader, superblock, device.id)
    if (found?.root !== device.root) throw this.#changed(device)
    // A root may come back to its block; so its mappings are checked against the details at the time when it was handed
    // out.
    const { creationTime, mappedBlocks } = found.details
    if (mappedBlocks !== device.details.mappedBlocks || creationTime !== device.details.creationTime)
      throw this.#changed(device)
    return this.#fingerprintOf(found)
  }

  async #fingerprintOf({ root, details: { creationTime, mappedBlocks } }: ThinDevice): Promise<Fingerprint> {
    const rootChecksum = await this.#reader.read(
      root,
      checksumSalt.btreeNode,
      (window) => window.words[window.firstWord(0)]
    )
    return { creationTime, mappedBlocks, root, rootChecksum }
  }

  /**
   * A look that no commit has disturbed. Blocks that one commit has freed may be overwritten during the next, and then
   * still be intact and in their place. So the superblock must be the same before and after. A look at a file needs no
   * second one.
   */
  async #settled<T>(look: (superblock: ThinSuperblock) => Promise<T>): Promise<T> {
    if (!this.#reader.isDevice) return look(this.superblock)
    for (let attempt = 0; attempt < MOST_LOOKS; attempt++) {
      const before = await readSuperblock(this.#reader, 0, poolFormat)
      if (this.view === 'metadata-snapshot') await this.#checkHeld(before)
      const seen = this.view === 'live' ? before.superblock : this.superblock
      const looked = await look(seen).then(
        (value) => ({ value }),
        (error: unknown) => ({ error })
      )
      const after = await readSuperblock(this.#reader, 0, poolFormat)
      if (this.view === 'metadata-snapshot') await this.#checkHeld(after)
      const undisturbed = this.view === 'metadata-snapshot' || before.block.equals(after.block)
      if (!undisturbed) continue
      if ('error' in looked) throw looked.error
      return looked.value
    }
    throw new DeltamapperError(
      'DM_READ_FAILED',
      `the pool in ${this.path} commits faster than its metadata can be read`,
      'ask again when it is less busy'
    )
  }

  /**
   * A metadata snapshot does not change as long as it is held, but another one may have taken its block. @throws
   * DM_SNAPSHOT_CHANGED
   */
  async #checkHeld({ superblock: { heldRoot } }: ReadSuperblock<ThinSuperblock>): Promise<void> {
    if (heldRoot === this.heldRoot && (await this.#reader.readRaw(heldRoot)).equals(this.#block)) return
    throw new DeltamapperError(
      'DM_SNAPSHOT_CHANGED',
      `the metadata snapshot in ${this.path} was released while it was read`,
      'ask again from the beginning'
    )
  }

  /**
   * What was seen of a device earlier says where its tree begins. Whether it still is as it was, the check of the first
   * batch finds out; a file has no such check. One that was seen and is gone was removed meanwhile.
   */
  async #deviceAsSeen(id: number, seen: Fingerprint | undefined, signal?: AbortSignal): Promise<WalkedDevice> {
    if (seen && this.#reader.isDevice) return { id, root: seen.root, details: seen }
    try {
      return await this.device(id, signal)
    } catch (error) {
      const isGone = error instanceof DeltamapperError && error.code === 'DM_DEVICE_NOT_FOUND'
      throw isGone && seen ? this.#changed({ id }) : error
    }
  }

  #changed({ id }: Pick<ThinDevice, 'id'>): DeltamapperError {
    return new DeltamapperError(
      'DM_SNAPSHOT_CHANGED',
      `thin device ${id} of ${this.path} was written to, trimmed or removed while it was read`,
      'ask again from the beginning; if it happens again, take the snapshot read-only'
    )
  }

  #inconsistent(id: number): DeltamapperError {
    return damaged(
      this.path,
      this.superblock.mappingRoot,
      `thin device ${id} is in only one of the tree below it and that of the device details below block ${this.superblock.detailsRoot}`
    )
  }
}

/** Walks to the end, for what a sink is told of it. */
async function ended(extents: AsyncGenerator<ExtentBatch, boolean>): Promise<boolean> {
  for (;;) {
    const next = await extents.next()
    if (next.done) return next.value
  }
}

export function sameFingerprint(one: Fingerprint, other: Fingerprint): boolean {
  return (
    one.creationTime === other.creationTime &&
    one.mappedBlocks === other.mappedBlocks &&
    one.root === other.root &&
    one.rootChecksum === other.rootChecksum
  )
}

const poolFormat: MetadataFormat<ThinSuperblock> = {
  target: 'dm-thin',
  remedy: "name a thin pool's metadata device (LVM: VG/POOL_tmeta), or a copy of it",
  parse: parseThinSuperblock,
  heldRoot: ({ heldRoot }) => heldRoot,
  readHeld: async (reader, live) => {
    const { heldRoot } = live.superblock
    const held = await readSuperblock(reader, heldRoot, poolFormat)
    checkHeldCopy(held.block, live.block, heldRoot, reader.path)
    return held
  }
}

async function findDevice(
  reader: BlockReader,
  { mappingRoot, detailsRoot }: ThinSuperblock,
  id: number,
  signal?: AbortSignal
): Promise<ThinDevice | undefined> {
  const [details, root] = await allOf([
    lookup(reader, detailsRoot, id, DEVICE_DETAILS_SIZE, parseDeviceDetails, signal),
    lookup(reader, mappingRoot, id, U64_SIZE, u64, signal)
  ])
  if (!details && root === undefined) return undefined
  if (!details) {
    throw damaged(
      reader.path,
      detailsRoot,
      `the device details below it lack thin device ${id}, which has a mapping tree`
    )
  }
  if (root === undefined) {
    throw damaged(reader.path, mappingRoot, `the tree below it lacks thin device ${id}, which the device details name`)
  }
  // Two devices may have one root, which is then not read.
  if (root === 0 || root >= reader.blocks) {
    throw damaged(
      reader.path,
      mappingRoot,
      `by the tree below it, thin device ${id} begins at block ${root}, where no tree can`
    )
  }
  return { id, root, details }
}

function u64(bytes: Buffer, offset: number): number {
  return bytes.readUInt32LE(offset) + bytes.readUInt32LE(offset + 4) * 2 ** 32
}

/** The time in a mapping: its low 24 bits (pack_block_time in drivers/md/dm-thin-metadata.c). */
function time(bytes: Buffer, offset: number): number {
  return bytes.readUInt32LE(offset) & 0xffffff
}
