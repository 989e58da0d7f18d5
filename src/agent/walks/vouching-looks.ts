/**
 * Looks at the state of what is read, before each message leaves. A look costs as much as making several messages, so
 * that one vouches for every message that leaves within LOOK_LASTS_MS of its beginning. It does not vouch for what was
 * read after it.
 */

const LOOK_LASTS_MS = 50

export class VouchingLooks {
  readonly #look: () => Promise<void>
  readonly #reads: () => number
  readonly #now: () => number
  /** When the last look began, and how many reads there were when it was over. */
  #lookedAt = -Infinity
  #readsByThen = 0

  /**
   * @param look throws where something is not as it was. What it reads itself, it vouches for
   * @param reads how many reads there were so far
   * @param now in milliseconds, by a clock that does not go back
   */
  constructor(look: () => Promise<void>, reads: () => number, now: () => number = () => performance.now()) {
    this.#look = look
    this.#reads = reads
    this.#now = now
  }

  /** Takes a look where the last one does not vouch. @throws what the look throws */
  async vouch(): Promise<void> {
    const now = this.#now()
    if (now - this.#lookedAt < LOOK_LASTS_MS && this.#reads() === this.#readsByThen) return
    await this.#look()
    this.#lookedAt = now
    this.#readsByThen = this.#reads()
  }
}
