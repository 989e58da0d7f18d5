/**
 * Which chunks of the origin a store has entries for, in one stretch of the volume: entries stand in order of time, and
 * answers ascend.
 *
 * A bit for each chunk, whatever the number of entries. A volume that has more chunks than the budget has bits is gone
 * through stretch by stretch, and the areas are read once for each: the data never, and memory is the same for 2^32
 * chunks as for 2^26.
 */
import { damagedStore } from './damaged-store.ts'
import type { AreaEntries } from './areas.ts'

/**
 * Chunks of a stretch at most: a bitmap of 8 MiB for each of two stores. 256 GiB of 4 KiB chunks, 4 TiB of 64 KiB ones.
 */
export const STRETCH_CHUNKS = 2 ** 26
/** A stretch begins at a multiple of so many: no word of a bitmap, and no large chunk, is of two. */
export const STRETCH_UNIT = 4096

/** Chunks `[begin, end)` of the volume, in the smaller chunks of the two stores; `begin` is a multiple of
 * STRETCH_UNIT. */
export interface Stretch {
  readonly begin: number
  readonly end: number
}

/**
 * The stretches of a volume, in ascending order.
 *
 * @param chunks of the smaller size; `most`: a multiple of STRETCH_UNIT
 */
export function stretchesOf(chunks: number, most = STRETCH_CHUNKS): Stretch[] {
  const stretches: Stretch[] = []
  for (let begin = 0; begin < chunks; begin += most) stretches.push({ begin, end: Math.min(begin + most, chunks) })
  return stretches
}

/** Words of a bitmap for any of the stretches of a volume. A large chunk, of 128 at most, may reach beyond its end. */
export function wordsFor(stretches: readonly Stretch[]): number {
  return Math.ceil(Math.max(0, ...stretches.map(({ begin, end }) => end - begin)) / 32) + 4
}

export class ChunkMarks {
  readonly stretch: Stretch
  /** Bit `i` is chunk `begin + i`. */
  readonly bitmap: Uint32Array
  readonly #path: string
  /** Chunks of the store, and how many smaller ones each of them is: 1 to 128. */
  readonly #chunks: number
  readonly #ratio: number

  /**
   * @param path of the store, for errors
   * @param chunks of the store that its snapshot has; `ratio`: how many chunks of the stretch one of them is
   * @param bitmap memory that may be used for it: as much as `wordsFor` says, all zero
   */
  constructor(stretch: Stretch, path: string, chunks: number, ratio: number, bitmap: Uint32Array) {
    this.stretch = stretch
    this.#path = path
    this.#chunks = chunks
    this.#ratio = ratio
    this.bitmap = bitmap
  }

  /** Marks the chunks of an area's entries. @throws DM_METADATA_DAMAGED for one beyond the end, or there already */
  add({ words, from, count, first }: AreaEntries): void {
    const { bitmap } = this
    const { begin, end } = this.stretch
    const ratio = this.#ratio
    for (let i = 0, at = from; i < count; i++, at += 4) {
      const chunk = words[at] + words[at + 1] * 2 ** 32
      if (chunk >= this.#chunks) throw this.#beyond(chunk, first + i)
      const bit = chunk * ratio - begin
      if (bit < 0 || bit >= end - begin) continue
      const word = bit >>> 5
      const mask = 1 << (bit & 31)
      if ((bitmap[word] & mask) !== 0) throw this.#twice(chunk, first + i)
      if (ratio === 1) bitmap[word] |= mask
      else if (ratio < 32) bitmap[word] |= ((1 << ratio) - 1) << (bit & 31)
      else bitmap.fill(0xffffffff, word, word + ratio / 32)
    }
  }

  has(chunk: number): boolean {
    const bit = chunk - this.stretch.begin
    return ((this.bitmap[bit >>> 5] >>> (bit & 31)) & 1) === 1
  }

  clear(chunk: number): void {
    const bit = chunk - this.stretch.begin
    this.bitmap[bit >>> 5] &= ~(1 << (bit & 31))
  }

  #beyond(chunk: number, index: number): Error {
    return damagedStore(
      this.#path,
      `entry ${index} is of chunk ${chunk}, and the snapshot ends after ${this.#chunks} chunks`
    )
  }

  #twice(chunk: number, index: number): Error {
    return damagedStore(this.#path, `entry ${index} is of chunk ${chunk}, which an earlier one is of as well`)
  }
}
