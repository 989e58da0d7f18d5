/**
 * Memory that walks share. A walk may be held up by its client for as long as that likes, and keeps what it has. So the
 * first to come get no more than a part of what is left, later ones less, and none goes without its least.
 */
import { DeltamapperError } from '../../errors.ts'

/** A walk gets an eighth of what is left, unless it wants less. */
const PART = 8

export class WalkMemory {
  readonly #field: string
  #free: number

  /** @param bytes for all walks together; `field`: of the configuration, which says so */
  constructor(bytes: number, field: string) {
    this.#free = bytes
    this.#field = field
  }

  /**
   * Takes some of it until the walk is over.
   *
   * @param most that the walk can use, and `least` that it needs. Bytes
   * @param signal aborted when the walk is over
   * @returns bytes, from least to most
   * @throws DM_TOO_MANY_STREAMS when less than that is left
   */
  take(least: number, most: number, signal: AbortSignal): number {
    const bytes = Math.max(least, Math.min(most, Math.floor(this.#free / PART)))
    if (bytes > this.#free) {
      throw new DeltamapperError(
        'DM_TOO_MANY_STREAMS',
        'the answers under way have all the memory that is for such answers',
        `call again when one has ended, or allow more (${this.#field})`
      )
    }
    signal.throwIfAborted()
    this.#free -= bytes
    signal.addEventListener('abort', () => (this.#free += bytes), { once: true })
    return bytes
  }
}
