/**
 * An era device's metadata, opened for questions: which eras exist, and which blocks were written since one of them.
 *
 * The answers come from one *view*: the metadata snapshot, if one was taken, or the live root. A file does not change.
 * A device does, while its era device is active:
 *
 * - A metadata snapshot stays as it is until it is dropped, which is checked before each batch leaves. It has the
 *   writes of all eras before it was taken, because taking one ends an era.
 * - The live root changes with every first write to a block, and nothing counts these changes: two superblocks may be
 *   equal byte for byte and lead to different trees. So the live root is read only while we have claimed the device,
 *   which nobody has active then.
 *
 * A write is committed to the metadata before the data is written (dm-era-target.c, process_deferred_bios). The
 * kernel's bitmap in memory never has more than the metadata.
 */
import { resolve } from 'node:path'
import { DeltamapperError, invalid } from '../../errors.ts'
import { ArrayIndex } from '../array.ts'
import { ClaimedDevice } from '../block-device.ts'
import { type BlockReader, damaged, type ReadOptions, type ReadStatistics } from '../block-reader.ts'
import { entries } from '../btree.ts'
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
import { writtenExtents } from './delta.ts'
import { type EraSuperblock, parseEraSuperblock } from './superblock.ts'
import { parseWriteset, type Writeset, WRITESET_SIZE } from './writeset.ts'

export interface WrittenQuestion {
  /**
   * Blocks written in this era or a later one; 0 to `lastEra`. Eras count from 1, so 0 asks for every written block.
   */
  sinceEra: number
  /** Leave out what was written in later eras only, as far as that can be told; all eras of the view by default. */
  untilEra?: number | undefined
  /** Size of the device in bytes, at most that of all its blocks, which is the default. */
  sizeBytes?: number | undefined
  /** Size in bytes of the device in that era; as large as now by default. Everything beyond counts as written. */
  baseSizeBytes?: number | undefined
  /** Leave out extents that end at or before this byte. Rounded down to a block. 0 to `sizeBytes`. */
  startingOffset?: number | undefined
  signal?: AbortSignal | undefined
}

/**
 * Opens an era device's metadata.
 *
 * @param path a metadata device, or a file that holds a copy of one
 * @param liveRoot read the live root even if there is a metadata snapshot
 * @throws DM_READ_FAILED, DM_METADATA_FOREIGN, DM_METADATA_DAMAGED, DM_METADATA_UNSUPPORTED
 */
export async function openEraMetadata(
  path: string,
  { claim, ...options }: { liveRoot?: boolean; claim?: ClaimDevice } & ReadOptions = {}
): Promise<EraMetadata> {
  return new EraMetadata(await openMetadata(path, eraFormat, options), claim)
}

/** What claims a metadata device whose live root is to be read; by default, the kernel. */
export type ClaimDevice = (path: string) => Promise<Pick<ClaimedDevice, 'close'>>

/** The written blocks. */
export interface WrittenStream extends ExtentStream {
  /**
   * Whether the answer contains only blocks written up to `untilEra`; ask when it is complete. Later writes in a
   * writeset can be left out. A later era in the array hides whether there was an earlier one, and counts.
   */
  readonly isExact: () => boolean
}

export class EraMetadata {
  /** The superblock of the view: the live one, or the copy that is the metadata snapshot. */
  readonly superblock: EraSuperblock
  /** The live superblock as it was at opening. */
  readonly live: EraSuperblock
  readonly view: MetadataView
  readonly #reader: BlockReader
  /** The view's superblock as it was read. */
  readonly #block: Buffer
  readonly #claimDevice: ClaimDevice

  constructor(
    { reader, live, seen, view }: OpenedMetadata<EraSuperblock>,
    claim: ClaimDevice = (path) => ClaimedDevice.open(path)
  ) {
    this.#claimDevice = claim
    this.#reader = reader
    this.#block = seen.block
    this.live = live.superblock
    this.superblock = seen.superblock
    this.view = view
  }

  get path(): string {
    return this.#reader.path
  }

  /** The cost of reading since opening. */
  get statistics(): Readonly<ReadStatistics> {
    return this.#reader.statistics
  }

  /**
   * Size of the device in bytes, up to the end of its last block. The metadata does not say whether that is a partial
   * one.
   */
  get sizeBytes(): number {
    return this.superblock.blocks * this.superblock.blockBytes
  }

  /**
   * The last era whose writes this view has. A metadata snapshot is taken between two eras, so its current era has not
   * begun.
   */
  get lastEra(): number {
    return lastEraOf(this.superblock, this.view)
  }

  async close(): Promise<void> {
    await this.#reader.close()
  }

  /**
   * The writesets that are not yet digested, by ascending era; in the live view, the last is that of the current era.
   *
   * @throws DM_METADATA_DAMAGED, DM_READ_FAILED; DM_SNAPSHOT_CHANGED when the metadata snapshot was dropped
   */
  async writesets(signal?: AbortSignal): Promise<Writeset[]> {
    if (!this.#reader.isDevice) return this.#writesets(this.superblock, signal)
    if (this.view === 'metadata-snapshot') {
      return this.#whileHeld(() => this.#writesets(this.superblock, signal))
    }
    // Good enough for inspection. Blocks are reported only from metadata under a claim.
    for (let attempt = 0; attempt < MOST_LOOKS; attempt++) {
      const before = await readSuperblock(this.#reader, 0, eraFormat)
      const looked = await this.#writesets(before.superblock, signal).then(
        (value) => ({ value }),
        (error: unknown) => ({ error })
      )
      if (!before.block.equals(await this.#reader.readRaw(0))) continue
      if ('error' in looked) throw looked.error
      return looked.value
    }
    throw new DeltamapperError(
      'DM_READ_FAILED',
      `the era device of ${this.path} commits faster than its metadata can be read`,
      'take a metadata snapshot (`dmsetup message DEVICE 0 take_metadata_snap`), or ask again when it is less busy'
    )
  }

  /**
   * Every block that was written in an era or later, as far as this view knows.
   *
   * @throws DM_ERA_NOT_REACHED; DM_OFFSET_OUT_OF_RANGE; DM_ARGUMENT_INVALID; DM_DEVICE_BUSY for the live root of an
   *   active device's metadata; and what reading metadata throws
   */
  async written(question: WrittenQuestion): Promise<WrittenStream> {
    const { sinceEra, untilEra = Infinity, startingOffset = 0, baseSizeBytes, signal } = question
    const { blockBytes, blocks } = this.superblock
    if (!Number.isInteger(sinceEra) || sinceEra < 0) {
      throw invalid(`${sinceEra} is no era`, 'eras are whole numbers, from 1 on')
    }
    if (sinceEra > this.lastEra) throw this.#notReached(sinceEra)
    for (const size of [question.sizeBytes, baseSizeBytes]) checkSize(size)
    const capacityBytes = question.sizeBytes ?? this.sizeBytes
    if (!Number.isSafeInteger(this.sizeBytes)) {
      throw new DeltamapperError(
        'DM_METADATA_UNSUPPORTED',
        `${this.path} is of a device with bytes beyond 2^53`,
        'back it up by other means'
      )
    }
    if (capacityBytes > this.sizeBytes) {
      throw invalid(
        `the device in ${this.path} has ${blocks} blocks of ${blockBytes} bytes, and ${capacityBytes} bytes are more than they hold`,
        'give the size that the device had when the metadata was as it is here'
      )
    }
    checkStartingOffset(startingOffset, capacityBytes)
    let isExact = true
    const batches = this.#undisturbed(async function* (this: EraMetadata) {
      const writesets = await this.#writesets(this.superblock, signal)
      // Even if nothing else of it is read: only here and in the superblock is the device's size.
      const eras = { root: this.superblock.eraArrayRoot, length: blocks, valueSize: 4 } as const
      await new ArrayIndex(this.#reader, eras).checkLength(signal)
      yield* writtenExtents({
        reader: this.#reader,
        ...this.#sources(writesets, sinceEra, untilEra),
        onLater: () => (isExact = false),
        blockBytes,
        sizeBytes: capacityBytes,
        // At the very end nothing is left, not even of a last block that the end cuts in two.
        firstBlock: startingOffset < capacityBytes ? Math.floor(startingOffset / blockBytes) : Infinity,
        baseEndBlock:
          baseSizeBytes !== undefined && baseSizeBytes < capacityBytes
            ? Math.floor(baseSizeBytes / blockBytes)
            : Infinity,
        signal
      })
    }, signal)
    return { capacityBytes, batches, isExact: () => isExact }
  }

  /**
   * Where the requested eras are. The kernel digests writesets in order, one at a time. So the array has all eras
   * before the oldest writeset, perhaps a part of that one, and nothing of later eras. Eras in writesets need no look
   * at the array.
   */
  #sources(writesets: readonly Writeset[], sinceEra: number, untilEra: number) {
    const oldest = writesets.at(0)?.era
    const { eraArrayRoot: root, blocks, currentEra, currentWriteset } = this.superblock
    const newestEra =
      oldest === undefined ? this.lastEra : oldest === currentEra && currentWriteset ? oldest - 1 : oldest
    return {
      writesets: writesets.filter(({ era }) => era >= sinceEra && era <= untilEra),
      eraArray:
        oldest !== undefined && oldest <= sinceEra
          ? undefined
          : { root, blocks, sinceEra: Math.max(sinceEra, 1), untilEra, newestEra }
    }
  }

  /**
   * @throws DM_METADATA_DAMAGED, also when an era is missing: writesets are digested in order, so those that are left
   *   follow each other up to now. A crash leaves a gap on kernels before 5.12, and the writes of that era are lost
   */
  async #writesets(superblock: EraSuperblock, signal?: AbortSignal): Promise<Writeset[]> {
    const { writesetTreeRoot: root, currentWriteset } = superblock
    const { path, blocks } = this.#reader
    const found: Writeset[] = []
    const roots = new Set<number>()
    for await (const { key: era, value } of entries(this.#reader, root, WRITESET_SIZE, parseWriteset, signal)) {
      const before = found.at(-1)?.era
      if (before !== undefined && era !== before + 1) throw damaged(path, root, lacks(before + 1, era))
      if (value.bits === 0 || value.root === 0)
        throw damaged(path, root, `the writeset of era ${era} is of no blocks at all`)
      // Each era has a bitset of its own, so there are no more of them than blocks. This bounds what readers do.
      if (roots.size >= blocks || roots.has(value.root)) throw damaged(path, value.root, sharedBy(era))
      roots.add(value.root)
      found.push({ era, ...value })
    }
    if (found.length > 0) {
      const due = currentWriteset ? currentWriteset.era - 1 : lastEraOf(superblock, this.view)
      const { era } = found[found.length - 1]
      if (era > due) throw damaged(path, root, `it has a writeset of era ${era}, and ${due} is the last that is over`)
      if (era < due) throw damaged(path, root, lacks(era + 1, due + 1))
    }
    if (currentWriteset) {
      if (roots.has(currentWriteset.root)) throw damaged(path, currentWriteset.root, sharedBy(currentWriteset.era))
      found.push(currentWriteset)
    }
    return found
  }

  /** Lets extents pass only if their source cannot have changed meanwhile. */
  async *#undisturbed(
    read: (this: EraMetadata) => AsyncGenerator<ExtentBatch>,
    signal: AbortSignal | undefined
  ): AsyncGenerator<ExtentBatch> {
    signal?.throwIfAborted()
    if (!this.#reader.isDevice) {
      yield* read.call(this)
    } else if (this.view === 'live') {
      const claim = await this.#claim()
      try {
        await this.#checkUnchanged()
        yield* read.call(this)
      } finally {
        await claim.close()
      }
    } else {
      const extents = read.call(this)
      try {
        for (;;) {
          const next = await this.#whileHeld(() => extents.next())
          if (next.done) return
          yield next.value
        }
      } finally {
        await extents.return(undefined)
      }
    }
  }

  /**
   * The result, if the metadata snapshot still exists. A block that was freed and is being overwritten looks damaged.
   */
  async #whileHeld<T>(read: () => Promise<T>): Promise<T> {
    const outcome = await read().then(
      (value) => ({ value }),
      (error: unknown) => ({ error })
    )
    if ('value' in outcome || isDamage(outcome.error)) await this.#checkHeld()
    if ('error' in outcome) throw outcome.error
    return outcome.value
  }

  /**
   * A metadata snapshot does not change as long as it is held, but another one may have taken its block. @throws
   * DM_SNAPSHOT_CHANGED
   */
  async #checkHeld(): Promise<void> {
    const { metadataSnapshot } = (await readSuperblock(this.#reader, 0, eraFormat)).superblock
    const held = this.live.metadataSnapshot
    if (metadataSnapshot === held && (await this.#reader.readRaw(held)).equals(this.#block)) return
    throw new DeltamapperError(
      'DM_SNAPSHOT_CHANGED',
      `the metadata snapshot in ${this.path} was dropped while it was read`,
      'ask again from the beginning'
    )
  }

  /** @throws DM_DEVICE_BUSY */
  async #claim(): Promise<Pick<ClaimedDevice, 'close'>> {
    try {
      return await this.#claimDevice(resolve(this.path))
    } catch (error) {
      if (!(error instanceof DeltamapperError) || error.code !== 'DM_DEVICE_BUSY') throw error
      throw new DeltamapperError(
        'DM_DEVICE_BUSY',
        `${this.path} is in use, so that its live root changes while it is read`,
        this.live.metadataSnapshot === 0
          ? 'take a metadata snapshot (`dmsetup message DEVICE 0 take_metadata_snap`) and ask again; drop it afterwards'
          : 'leave out --live-root: there is a metadata snapshot',
        { cause: error }
      )
    }
  }

  async #checkUnchanged(): Promise<void> {
    if ((await this.#reader.readRaw(0)).equals(this.#block)) return
    throw new DeltamapperError(
      'DM_SNAPSHOT_CHANGED',
      `${this.path} has changed since it was opened`,
      'ask again from the beginning'
    )
  }

  #notReached(sinceEra: number): DeltamapperError {
    const { lastEra } = this
    const live = this.live.currentEra
    if (this.view === 'metadata-snapshot' && sinceEra <= live) {
      return new DeltamapperError(
        'DM_ERA_NOT_REACHED',
        `the metadata snapshot in ${this.path} knows the writes up to era ${lastEra} only, and none of era ${sinceEra}`,
        'drop it and take a new one; --live-root reads the metadata as it is now, where nobody is changing it'
      )
    }
    return new DeltamapperError(
      'DM_ERA_NOT_REACHED',
      `era ${sinceEra} has not begun in ${this.path}, where era ${live} is the current one`,
      'take a full backup if the era was read off this device: its metadata is not what it was then'
    )
  }
}

function lastEraOf({ currentEra }: EraSuperblock, view: MetadataView): number {
  return view === 'live' ? currentEra : currentEra - 1
}

function sharedBy(era: number): string {
  return `the writeset of era ${era} begins there, and so does another's`
}

function lacks(first: number, next: number): string {
  const eras = next - first > 1 ? `eras ${first} to ${next - 1}` : `era ${first}`
  return `it lacks the writeset of ${eras}, so that what was written to then is not known`
}

const eraFormat: MetadataFormat<EraSuperblock> = {
  target: 'dm-era',
  remedy: "name an era device's metadata device, or a copy of it",
  parse: parseEraSuperblock,
  heldRoot: ({ metadataSnapshot }) => metadataSnapshot,
  readHeld: (reader, { superblock }) => readSnapshot(reader, superblock)
}

async function readSnapshot(reader: BlockReader, live: EraSuperblock): Promise<ReadSuperblock<EraSuperblock>> {
  const block = live.metadataSnapshot
  const snapshot = await readSuperblock(reader, block, eraFormat)
  const { currentEra, blockSectors } = snapshot.superblock
  if (currentEra === 0 || currentEra > live.currentEra) {
    throw damaged(
      reader.path,
      block,
      `a metadata snapshot of era ${currentEra} cannot be, where ${live.currentEra} is the current one`
    )
  }
  if (blockSectors !== live.blockSectors) {
    throw damaged(reader.path, block, `its block size is ${blockSectors} sectors, that of block 0 ${live.blockSectors}`)
  }
  // Its copy of the current writeset is a stale pointer: nothing keeps the blocks that it leads to (struct
  // superblock_disk).
  return { ...snapshot, superblock: { ...snapshot.superblock, currentWriteset: undefined } }
}
