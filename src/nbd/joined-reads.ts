/**
 * Reads that wait together and lie side by side go to the kernel as one: clients ask in small parts, and a disk is as
 * fast as its requests are large.
 *
 *   asked for      ▇▇▇▇ ▇▇▇▇ ▇▇▇▇           ▇▇▇▇ ▇▇▇▇
 *   read           └──────1─────┘           └───2───┘      each part into a buffer of its own (preadv)
 */

import { Unanswered } from '../devicemapper/device-reads.ts'

/** Reads side by side into buffers, one after the other. @returns how many bytes came back in all */
export type ReadTogether = (into: readonly Uint8Array[], position: number) => Promise<number>

/** The most that one read brings, in bytes: what dd and backup tools ask for at once. */
const LONGEST_READ = 2 * 2 ** 20
/** Reads under way at once. A device may take 16 threads (device-reads.ts), and the metadata want some meanwhile. */
const READS_AT_ONCE = 8

interface Waiting {
  readonly into: Uint8Array
  readonly position: number
  readonly resolve: (bytes: number) => void
  readonly reject: (error: unknown) => void
}

export class JoinedReads {
  readonly #read: ReadTogether
  /** The one that came first is first. */
  readonly #waiting: Waiting[] = []
  #underWay = 0
  #isScheduled = false

  constructor(read: ReadTogether) {
    this.#read = read
  }

  /**
   * Fills a buffer.
   *
   * @param position in bytes
   * @returns how many bytes came back: fewer where the file ends
   * @throws what reading throws
   */
  async read(into: Uint8Array, position: number): Promise<number> {
    return new Promise((resolve, reject) => {
      this.#waiting.push({ into, position, resolve, reject })
      this.#sendSoon()
    })
  }

  /** Once all that is asked for in this turn of the event loop is here. */
  #sendSoon(): void {
    if (this.#isScheduled) return
    this.#isScheduled = true
    setImmediate(() => {
      this.#isScheduled = false
      while (this.#underWay < READS_AT_ONCE && this.#waiting.length > 0) void this.#send(this.#next())
    })
  }

  /** Whoever has waited longest, and what lies behind it. */
  #next(): Waiting[] {
    const [first] = this.#waiting.splice(0, 1)
    const joined = [first]
    let bytes = first.into.length
    for (;;) {
      const at = this.#waiting.findIndex(({ position }) => position === first.position + bytes)
      if (at < 0 || bytes + this.#waiting[at].into.length > LONGEST_READ) return joined
      const [next] = this.#waiting.splice(at, 1)
      joined.push(next)
      bytes += next.into.length
    }
  }

  async #send(joined: readonly Waiting[]): Promise<void> {
    this.#underWay++
    try {
      await this.#fill(joined)
    } finally {
      this.#underWay--
      this.#sendSoon()
    }
  }

  async #fill(joined: readonly Waiting[]): Promise<void> {
    const into = joined.map((each) => each.into)
    const outcome = await this.#read(into, joined[0].position).catch((error: unknown) => ({ error }))
    const isFailed = typeof outcome === 'object'
    if (joined.length > 1 && !(isFailed && outcome.error instanceof Unanswered)) {
      let rest = isFailed ? 0 : outcome
      for (const each of joined) {
        // One bad sector, or the end, concerns only whoever asked for it.
        if (rest < each.into.length) await this.#fill([each])
        else each.resolve(each.into.length)
        rest -= each.into.length
      }
    } else if (isFailed) joined.forEach((each) => each.reject(outcome.error))
    else joined[0].resolve(outcome)
  }
}
