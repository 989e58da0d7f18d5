/**
 * Looks at the node for metrics: only when somebody asks, and not again at once. A look that fails or hangs leaves the
 * one before, whose time says so.
 */
import { setTimeout as sleep } from 'node:timers/promises'

/** A look that has succeeded. */
export interface Seen<T> {
  /** Milliseconds since 1970. */
  readonly at: number
  readonly what: T
}

export class Looks<T> {
  readonly #look: () => Promise<T>
  readonly #freshMs: number
  readonly #waitMs: number
  #seen: Seen<T> | undefined
  #looking: Promise<void> | undefined

  /**
   * @param freshMs how long a look is used
   * @param waitMs how long to wait for a new one, before the last one is used again
   */
  constructor(look: () => Promise<T>, { freshMs = 10_000, waitMs = 1000 } = {}) {
    this.#look = look
    this.#freshMs = freshMs
    this.#waitMs = waitMs
  }

  /** The last look that has succeeded; a new one if that is old. Never rejects. */
  async latest(): Promise<Seen<T> | undefined> {
    if (this.#seen && Date.now() - this.#seen.at < this.#freshMs) return this.#seen
    this.#looking ??= this.#again().finally(() => (this.#looking = undefined))
    await Promise.race([this.#looking, sleep(this.#waitMs, undefined, { ref: false })])
    return this.#seen
  }

  async #again(): Promise<void> {
    const at = Date.now()
    try {
      this.#seen = { at, what: await this.#look() }
    } catch {
      // Its age shows the failure; every other call reports what is wrong.
    }
  }
}
