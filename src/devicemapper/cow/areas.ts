/**
 * A store's list of entries, in the order of time: which chunks of the origin were copied, and whereto.
 *
 *     chunk    0        1          2 … n+1        n+2        n+3 … 2n+2       (n entries of 16 bytes fill a chunk)
 *              header   area 0     n old chunks   area 1     n old chunks   …
 *
 *     area     ┌ u64 old_chunk: of the origin ─ u64 new_chunk: of the store ┐ × n; new_chunk 0 ends the list
 *
 * What the kernel does, and what is held against each store (drivers/md/dm-snap-persistent.c):
 *
 * - Chunks are given out in turn (prepare_exception) and committed in that very order (dm-snap.c,
 *   exception_complete_sequence, since 3.14). So the old content of entry `i` is at one place only, and no `new_chunk`
 *   needs to be remembered to find one that is wrong.
 * - An area is written as a whole, and the next one is zeroed before it is full (persistent_commit_exception): behind
 *   the last entry, all is zero up to the end of its area. Beyond that area, a device holds whatever was there before.
 *
 * An area may be written while it is read. Sectors are whole, so that entries can be missing in between, but none is
 * torn: what does not fit together is read once more.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { type BlockReader, type BlockWindow, WINDOW_BLOCKS } from '../block-reader.ts'
import { damagedStore } from './damaged-store.ts'
import type { CowHeader } from './header.ts'
import { METADATA_BLOCK_BYTES } from '../../units.ts'

export const ENTRY_BYTES = 16
const ENTRY_WORDS = 4
/**
 * Windows under way while another is taken in, where reading takes time: the device and the processor both have work.
 */
const WINDOWS_AHEAD = 3
/** How long an entry that the kernel has counted may take to be written, in milliseconds: a copy waits for its disk. */
const COMMIT_MS = 10_000
const LOOK_AGAIN_MS = 5
/** How often an area that is being written is read again before it counts as damaged. */
const MOST_LOOKS = 100

/**
 * Entries of one area. `words` has four to an entry, from word `from` on; all of it is valid until the next area is
 * asked for.
 */
export interface AreaEntries {
  /** Number of the first of them in the list, from 0. */
  readonly first: number
  readonly count: number
  readonly words: Uint32Array
  readonly from: number
  /** The same entries, as bytes. */
  readonly bytes: Buffer
}

export interface AreaQuestion {
  /** So many entries and no more: an error when there are fewer. Undefined for all there are. */
  readonly limit?: number | undefined
  readonly signal?: AbortSignal | undefined
}

/** How many entries an area has. */
export function entriesPerArea({ chunkBytes }: CowHeader): number {
  return chunkBytes / ENTRY_BYTES
}

/** The chunk of the store that holds what entry `index` has copied. */
export function placeOf(index: number, perArea: number): number {
  return 2 + index + Math.floor(index / perArea)
}

/**
 * Yields the entries area by area; an area without any ends the list, and is not among them.
 *
 * @throws DM_METADATA_DAMAGED; DM_READ_FAILED
 */
export async function* entries(
  reader: BlockReader,
  header: CowHeader,
  { limit, signal }: AreaQuestion = {}
): AsyncGenerator<AreaEntries> {
  const reading = new AreaReading(reader, header, limit ?? Infinity, signal)
  try {
    for (let area = 0; ; area++) {
      const found = await reading.next(area)
      if (found.count > 0) yield found
      if (!reading.goesOn(found)) return
    }
  } finally {
    await reading.end()
  }
}

interface Load {
  /** Number of the first area in it, and how many there are. */
  readonly first: number
  readonly count: number
  readonly window: Promise<BlockWindow>
}

class AreaReading {
  readonly #reader: BlockReader
  readonly #limit: number
  readonly #signal: AbortSignal | undefined
  readonly #perArea: number
  /** Size of a chunk in blocks of 4 KiB. */
  readonly #chunkBlocks: number
  /** Windows under way, the next one first. */
  #ahead: Load[] = []
  #current: (Omit<Load, 'window'> & { readonly window: BlockWindow }) | undefined
  /**
   * The first area that nobody has asked for yet; it grows from one area to a window's worth, for most stores are
   * short.
   */
  #planned = 0
  #width = 1

  constructor(reader: BlockReader, header: CowHeader, limit: number, signal: AbortSignal | undefined) {
    this.#reader = reader
    this.#limit = limit
    this.#signal = signal
    this.#perArea = entriesPerArea(header)
    this.#chunkBlocks = header.chunkBytes / METADATA_BLOCK_BYTES
  }

  /** The entries of an area; areas are asked for in turn. */
  async next(area: number): Promise<AreaEntries> {
    const due = Math.min(this.#limit - area * this.#perArea, this.#perArea)
    let deadline: number | undefined
    for (let look = 1; ; look++) {
      this.#signal?.throwIfAborted()
      const found = await this.#decode(area)
      const isShort = typeof found !== 'string' && this.#limit !== Infinity && found.count < due
      if (typeof found !== 'string' && !isShort) return this.#limited(found)
      deadline ??= performance.now() + COMMIT_MS
      const gaveUp = isShort ? performance.now() > deadline : look === MOST_LOOKS
      if (!this.#reader.isDevice || gaveUp) {
        throw damagedStore(this.#reader.path, typeof found === 'string' ? found : this.#fewer(found))
      }
      // What was read ahead of an area that was not full may be from before it was zeroed.
      await this.#forget()
      this.#planned = area
      this.#width = 1
      await sleep(LOOK_AGAIN_MS)
    }
  }

  /** Whether there may be more behind these. */
  goesOn({ first, count }: AreaEntries): boolean {
    return count === this.#perArea && first + count < this.#limit
  }

  /** Waits for what is still being read, so that the file may be closed. */
  async end(): Promise<void> {
    await this.#forget()
  }

  async #forget(): Promise<void> {
    if (this.#current) this.#reader.release(this.#current.window)
    this.#current = undefined
    const ahead = this.#ahead
    this.#ahead = []
    for (const { window } of ahead) await window.then((each) => this.#reader.release(each), ignore)
  }

  #limited(found: AreaEntries): AreaEntries {
    const count = Math.min(found.count, this.#limit - found.first)
    return { ...found, count, bytes: found.bytes.subarray(0, count * ENTRY_BYTES) }
  }

  /** The entries of an area, or what is wrong with it. */
  async #decode(area: number): Promise<AreaEntries | string> {
    const { first: firstArea, window } = await this.#load(area)
    const from = window.firstWord((area - firstArea) * this.#chunkBlocks)
    const { words } = window
    const end = from + this.#perArea * ENTRY_WORDS
    const first = area * this.#perArea
    let place = placeOf(first, this.#perArea)
    let at = from
    for (; at < end; at += ENTRY_WORDS) {
      if (words[at + 2] !== place % 2 ** 32 || words[at + 3] !== Math.floor(place / 2 ** 32)) break
      place++
    }
    const count = (at - from) / ENTRY_WORDS
    const stored = Math.floor(this.#reader.blocks / this.#chunkBlocks)
    if (count > 0 && place > stored) return `entry ${first + count - 1} points beyond its end`
    for (let rest = at; rest < end; rest++) {
      if (words[rest] !== 0) return wrongAt(words, at, first + count, place, area)
    }
    return { first, count, words, from, bytes: window.bytes.subarray(from * 4, at * 4) }
  }

  /** The window that has an area, which is the one after that of the last call, or the same. */
  async #load(area: number): Promise<Omit<Load, 'window'> & { readonly window: BlockWindow }> {
    if (this.#current && area < this.#current.first + this.#current.count) return this.#current
    if (this.#current) this.#reader.release(this.#current.window)
    this.#current = undefined
    this.#loadAhead(area)
    const next = this.#ahead.shift()
    if (!next) throw damagedStore(this.#reader.path, `it ends where area ${area} of its entries is due`)
    this.#current = { ...next, window: await next.window }
    return this.#current
  }

  #loadAhead(area: number): void {
    const most = Math.floor(WINDOW_BLOCKS / this.#chunkBlocks)
    // (An area that is cut off by the end is none.)
    const stored = Math.floor(this.#reader.blocks / this.#chunkBlocks)
    const areas = Math.ceil((stored - 1) / (this.#perArea + 1))
    const wanted = Math.min(areas, Math.ceil(this.#limit / this.#perArea))
    const end = Math.max(wanted, Math.min(areas, area + 1))
    while (this.#ahead.length < (this.#reader.isDirect ? WINDOWS_AHEAD : 1) && this.#planned < end) {
      const count = Math.min(this.#width, end - this.#planned)
      const blocks: number[] = []
      for (let each = this.#planned; each < this.#planned + count; each++) {
        const block = (1 + each * (this.#perArea + 1)) * this.#chunkBlocks
        for (let i = 0; i < this.#chunkBlocks; i++) blocks.push(block + i)
      }
      const window = this.#reader.loadUnverified(blocks, blocks.length)
      // Whoever waits for the window hears of a failure; until someone does, it is nobody's unhandled rejection.
      window.catch(ignore)
      this.#ahead.push({ first: this.#planned, count, window })
      this.#planned += count
      this.#width = Math.min(2 * this.#width, most)
    }
  }

  #fewer({ first, count }: AreaEntries): string {
    return `it has ${first + count} entries, and ${this.#limit} were written`
  }
}

/** What is wrong with the first entry that is not what its place calls for. */
function wrongAt(words: Uint32Array, at: number, index: number, place: number, area: number): string {
  const [low, high] = [words[at + 2], words[at + 3]]
  if (low === 0 && high === 0) {
    const what =
      words[at] === 0 && words[at + 1] === 0 ? 'is empty, and others follow it' : 'is at no place of the store'
    return `entry ${index} ${what} (area ${area})`
  }
  return `entry ${index} says that its chunk is ${low + high * 2 ** 32}, and ${place} is its place (area ${area})`
}

function ignore(): void {}
