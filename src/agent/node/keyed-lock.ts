/**
 * One change at a time for each key (a pool or a tracked volume), in the order in which they were requested. A pool has
 * one transaction id, and two concurrent changes would both take it. Keys do not wait for each other.
 */
import { shuttingDown } from '../../errors.ts'

export class KeyedLock {
  /** What the next change of a key waits for. */
  readonly #last = new Map<string, Promise<unknown>>()
  #closed = false

  /**
   * Runs `work` when all earlier work for this key is done.
   *
   * @throws DM_SHUTTING_DOWN when that is only after `close`; what `work` throws
   */
  async take<T>(pool: string, work: () => Promise<T>): Promise<T> {
    const before = this.#last.get(pool)
    const run = (async () => {
      await before
      if (this.#closed) {
        throw shuttingDown()
      }
      return work()
    })()
    const turn = run.then(
      () => undefined,
      () => undefined
    )
    this.#last.set(pool, turn)
    try {
      return await run
    } finally {
      if (this.#last.get(pool) === turn) this.#last.delete(pool)
    }
  }

  /** Lets nothing more begin, and waits for running work. */
  async close(): Promise<void> {
    this.#closed = true
    await Promise.all(this.#last.values())
  }
}
