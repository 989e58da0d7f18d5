/**
 * A classic snapshot's store, opened for questions: which chunks were copied since it was taken.
 *
 * A write to the origin is held back until the old chunk is copied and the area with its entry is on disk, with flush
 * and FUA (drivers/md/dm-snap.c, dm-snap-persistent.c). So everything that was written before a store is read is in it;
 * what is appended meanwhile is more than was asked for, never less. Entries are only taken out by a merge, and nothing
 * in the store says that one is under way: whoever serves a store asks the kernel.
 */
import { createHash, type Hash } from 'node:crypto'
import { BlockReader, type ReadOptions, type ReadStatistics } from '../block-reader.ts'
import { type AreaEntries, type AreaQuestion, entries, ENTRY_BYTES, entriesPerArea, placeOf } from './areas.ts'
import { damagedStore } from './damaged-store.ts'
import { type CowHeader, parseCowHeader } from './header.ts'
import { METADATA_BLOCK_BYTES } from '../../units.ts'

/** How often a store whose list goes back is read again. */
const MOST_READINGS = 20

/** What a store's list was found to be. */
export interface StoreList {
  /** Number of its entries. */
  readonly entries: number
  /** SHA-256 of them, 16 bytes each as they stand in the areas, in hexadecimal digits. */
  readonly digest: string
}

/** What `inspect` tells. */
export interface CowInspection extends StoreList {
  /** Chunks of the store that are used: header, areas and old contents. */
  readonly usedChunks: number
  /** Chunks that the store has room for. */
  readonly storeChunks: number
  /** The lowest and the highest chunk of the origin that was copied; undefined where none was. */
  readonly lowest: number | undefined
  readonly highest: number | undefined
}

/**
 * Opens a store.
 *
 * @param path the store's device (LVM: `/dev/mapper/VG-SNAPSHOT-cow`), or a copy of it
 * @throws DM_READ_FAILED, DM_METADATA_FOREIGN, DM_COW_INVALID, DM_METADATA_DAMAGED, DM_METADATA_UNSUPPORTED
 */
export async function openCowStore(path: string, reading: ReadOptions = {}): Promise<CowStore> {
  const reader = await BlockReader.open(path, reading)
  try {
    if (reader.blocks === 0) throw damagedStore(path, `it is smaller than a header of ${METADATA_BLOCK_BYTES} bytes`)
    return new CowStore(reader, parseCowHeader(await reader.readRaw(0), path))
  } catch (error) {
    await reader.close()
    throw error
  }
}

export class CowStore {
  readonly header: CowHeader
  readonly reader: BlockReader

  constructor(reader: BlockReader, header: CowHeader) {
    this.reader = reader
    this.header = header
  }

  get path(): string {
    return this.reader.path
  }

  /** What reading has cost since opening. */
  get statistics(): Readonly<ReadStatistics> {
    return this.reader.statistics
  }

  /** The entries in order of time, area by area. @throws DM_METADATA_DAMAGED, DM_READ_FAILED */
  entries(question: AreaQuestion = {}): AsyncGenerator<AreaEntries> {
    return entries(this.reader, this.header, question)
  }

  /**
   * Whether the kernel still keeps this store: it overwrites the header when it gives a snapshot up.
   *
   * @throws DM_COW_INVALID; DM_METADATA_DAMAGED when it has become another
   */
  async checkValid(): Promise<void> {
    const { chunkBytes } = parseCowHeader(await this.reader.readRaw(0), this.path)
    if (chunkBytes !== this.header.chunkBytes) {
      throw damagedStore(
        this.path,
        `its chunks are of ${chunkBytes} bytes, and were of ${this.header.chunkBytes} before`
      )
    }
  }

  /**
   * The list as it is now. What is behind its end, a device has from whoever had it before, until the kernel has zeroed
   * it: a list that grows while it is read is read until a second reading agrees.
   *
   * @throws DM_METADATA_DAMAGED, DM_READ_FAILED, DM_COW_INVALID
   */
  async list(signal?: AbortSignal): Promise<StoreList> {
    for (let reading = 1; ; reading++) {
      const list = await this.#readList({ signal })
      if (!this.reader.isDevice) return list
      const again = await this.#readList({ limit: list.entries, signal }).catch((error: unknown) => {
        if (reading === MOST_READINGS) throw error
        return undefined
      })
      await this.checkValid()
      if (again?.digest === list.digest) return list
      if (reading === MOST_READINGS) throw damagedStore(this.path, 'its list is another each time it is read')
    }
  }

  /** What a person may want to know of it. @throws what `list` does */
  async inspect(signal?: AbortSignal): Promise<CowInspection> {
    const { header } = this
    const list = await this.list(signal)
    let lowest = Infinity
    let highest = -1
    for await (const { words, from, count } of this.entries({ limit: list.entries, signal })) {
      for (let at = from; at < from + 4 * count; at += 4) {
        const chunk = words[at] + words[at + 1] * 2 ** 32
        lowest = Math.min(lowest, chunk)
        highest = Math.max(highest, chunk)
      }
    }
    const storeChunks = Math.floor((this.reader.blocks * METADATA_BLOCK_BYTES) / header.chunkBytes)
    const usedChunks = placeOf(list.entries, entriesPerArea(header))
    const found = list.entries === 0 ? { lowest: undefined, highest: undefined } : { lowest, highest }
    return { ...list, ...found, usedChunks: Math.min(usedChunks, storeChunks), storeChunks }
  }

  async close(): Promise<void> {
    await this.reader.close()
  }

  async #readList(question: AreaQuestion): Promise<StoreList> {
    const digest = new ListDigest()
    for await (const area of this.entries(question)) digest.add(area)
    return digest.end()
  }
}

/** Takes the digest of a list while it is read, and that of its beginning. */
export class ListDigest {
  readonly #hash: Hash = createHash('sha256')
  readonly #prefix: number | undefined
  #entries = 0
  #prefixDigest: string | undefined

  /** @param prefix how many entries from the first are to have a digest of their own */
  constructor(prefix?: number) {
    this.#prefix = prefix
    if (prefix === 0) this.#prefixDigest = this.#hash.copy().digest('hex')
  }

  add({ first, count, bytes }: AreaEntries): void {
    const before = (this.#prefix ?? Infinity) - first
    if (before > 0 && before <= count) {
      this.#hash.update(bytes.subarray(0, before * ENTRY_BYTES))
      this.#prefixDigest = this.#hash.copy().digest('hex')
      this.#hash.update(bytes.subarray(before * ENTRY_BYTES))
    } else {
      this.#hash.update(bytes)
    }
    this.#entries = first + count
  }

  /** Undefined while there are fewer entries than that. */
  get prefixDigest(): string | undefined {
    return this.#prefixDigest
  }

  end(): StoreList {
    return { entries: this.#entries, digest: this.#hash.digest('hex') }
  }
}
