/**
 * Keeps questions away from a volume that may be suspended. A status that is asked of a suspended era device waits in the kernel, holding its
 * table; should that be exchanged meanwhile, as it is when a volume grows, each waits for the other, for good. So whoever changes a volume lets
 * questions that are under way come back first, and none begin until it is done.
 */
export class Quiet {
  readonly #kept = new Map<string, number>()
  readonly #asking = new Map<string, Set<Promise<unknown>>>()

  /** Does `work` while nothing is asked of the volume. */
  async keep<T>(name: string, work: () => Promise<T>): Promise<T> {
    this.#kept.set(name, (this.#kept.get(name) ?? 0) + 1)
    try {
      await Promise.all([...(this.#asking.get(name) ?? [])])
      return await work()
    } finally {
      const left = (this.#kept.get(name) ?? 1) - 1
      if (left > 0) this.#kept.set(name, left)
      else this.#kept.delete(name)
    }
  }

  /** Asks something of the volume; undefined where that is not possible now. */
  async ask<T>(name: string, question: () => Promise<T>): Promise<T | undefined> {
    if (this.#kept.has(name)) return undefined
    const asking = this.#asking.get(name) ?? new Set()
    this.#asking.set(name, asking)
    const answer = question()
    const over = answer.catch(() => undefined)
    asking.add(over)
    try {
      return await answer
    } finally {
      asking.delete(over)
    }
  }
}
