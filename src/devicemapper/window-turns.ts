/**
 * Which walk of a thread goes on, when the windows of several have come: by turns the one that has read least, and the
 * one that has waited longest. So an answer that takes a few blocks is there soon, however many long ones are under way,
 * and no long one stops for short ones that follow each other.
 *
 * A turn is what a walk does with one window, until it waits for the next: all of it happens before the event loop goes
 * on. So turns are given out one for each round of the event loop, where more than one is wanted.
 */

interface Waiting {
  readonly bytesRead: number
  readonly go: () => void
}

export class WindowTurns {
  /** In the order in which they came. */
  readonly #waiting: Waiting[] = []
  #isTaken = false
  #leastIsNext = true

  /** Somebody has a window and waits for a turn: this thread has something better to do than to wait. */
  get areWanted(): boolean {
    return this.#waiting.length > 0
  }

  /** @param bytesRead by this walk so far. @returns undefined for a turn at once */
  take(bytesRead: number): Promise<void> | undefined {
    if (!this.#isTaken) {
      this.#isTaken = true
      setImmediate(this.#next)
      return undefined
    }
    return new Promise((go) => this.#waiting.push({ bytesRead, go }))
  }

  readonly #next = (): void => {
    if (this.#waiting.length === 0) {
      this.#isTaken = false
      return
    }
    let next = 0
    if (this.#leastIsNext) {
      for (let i = 1; i < this.#waiting.length; i++) {
        if (this.#waiting[i].bytesRead < this.#waiting[next].bytesRead) next = i
      }
    }
    this.#leastIsNext = !this.#leastIsNext
    this.#waiting.splice(next, 1)[0].go()
    setImmediate(this.#next)
  }
}

/** Of this JavaScript thread. */
export const windowTurns = new WindowTurns()
