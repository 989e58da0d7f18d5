/**
 * The status gate: keeps status queries away from a volume that may be suspended. A status query to a suspended era
 * device waits in the kernel and holds its table. If that table is exchanged meanwhile, as when the volume grows, query
 * and exchange wait for each other for ever. So a change to a volume first waits for running queries, and admits no new
 * ones until it is done.
 */
export class StatusGate {
  readonly #kept = new Map<string, number>()
  readonly #asking = new Map<string, Set<Promise<unknown>>>()

  /** Runs `work` while nothing queries the volume. */
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

  /** Asks the volume something; undefined if that is not possible now. */
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
