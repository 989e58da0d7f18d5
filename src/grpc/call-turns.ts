/**
 * When a call begins: one in each turn of the event loop, and clients by turns.
 *
 * A client may send hundreds of calls in one packet. Begun at once, they would keep everybody else waiting until each
 * has asked its backend. So the next call of another client begins after one of them, not after all. A call that is
 * cancelled while it waits never begins, and costs nobody anything.
 */
export class CallTurns {
  /** By client; the first of each is next. A client that has had its turn goes to the end. */
  readonly #waiting = new Map<string, Set<() => void>>()
  #isTaken = false

  /** Resolves when a call of this client may begin. @throws the signal's reason when it aborts before */
  async take(client: string, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted()
    if (!this.#isTaken) {
      this.#isTaken = true
      setImmediate(() => this.#next())
      return
    }
    await new Promise<void>((resolve, reject) => {
      const begin = () => {
        signal.removeEventListener('abort', leave)
        resolve()
      }
      const leave = () => {
        this.#remove(client, begin)
        reject(signal.reason)
      }
      signal.addEventListener('abort', leave, { once: true })
      const own = this.#waiting.get(client)
      if (own) own.add(begin)
      else this.#waiting.set(client, new Set([begin]))
    })
  }

  #next(): void {
    for (const [client, own] of this.#waiting) {
      const [begin] = own
      this.#waiting.delete(client)
      own.delete(begin)
      if (own.size > 0) this.#waiting.set(client, own)
      setImmediate(() => this.#next())
      begin()
      return
    }
    this.#isTaken = false
  }

  #remove(client: string, begin: () => void): void {
    const own = this.#waiting.get(client)
    if (own?.delete(begin) && own.size === 0) this.#waiting.delete(client)
  }
}
