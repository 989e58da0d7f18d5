/**
 * The one hand that moves a simulated world: of all that could go on, it picks what goes on next. Nothing else in a life is random or takes
 * time, so a life is told by its seed.
 *
 * Code of the product runs between two turns, for as long as it does not wait. What it waits for (a read, a call, a timer) is in `#ready`,
 * until its turn comes. Whoever dies takes what they wait for with them: the call is made or not, and nobody hears of it.
 */
import { setImmediate } from 'node:timers'
import type { Random } from '../../support/random.ts'

interface Ready {
  readonly owner: string
  readonly run: () => void
}

interface Timer {
  readonly owner: string
  readonly at: number
  readonly run: () => void
}

export class Scheduler {
  readonly random: Random
  /** Turns so far: the time that contents are told by. */
  turn = 1
  /** What clocks show, in milliseconds. */
  now = 1_700_000_000_000
  #ready: Ready[] = []
  #timers: Timer[] = []

  constructor(random: Random) {
    this.random = random
  }

  /** What is done at some turn, and heard of at that turn or a later one. */
  io<T>(owner: string, act: () => T): Promise<T> {
    const { promise, resolve, reject } = Promise.withResolvers<T>()
    const run = () => {
      let hear: () => void
      try {
        const result = act()
        hear = () => {
          resolve(result)
        }
      } catch (error) {
        hear = () => {
          reject(error)
        }
      }
      if (this.random.chance(0.25)) this.#ready.push({ owner, run: hear })
      else hear()
    }
    this.#ready.push({ owner, run })
    return promise
  }

  /** @returns what takes it back */
  after(owner: string, ms: number, run: () => void): () => void {
    const timer: Timer = { owner, at: this.now + ms, run }
    this.#timers.push(timer)
    return () => {
      this.#timers = this.#timers.filter((each) => each !== timer)
    }
  }

  /** What a process was waiting for is nobody's any more. */
  kill(owner: string): void {
    this.#ready = this.#ready.filter((each) => each.owner !== owner)
    this.#timers = this.#timers.filter((each) => each.owner !== owner)
  }

  get isIdle(): boolean {
    return this.#ready.length === 0
  }

  /** When the next timer is due; Infinity where there is none. */
  get nextTimerAt(): number {
    return this.#timers.reduce((first, { at }) => Math.min(first, at), Infinity)
  }

  /** Lets one of those that are ready go on. */
  step(): void {
    const i = this.random.integer(0, this.#ready.length - 1)
    const [{ run }] = this.#ready.splice(i, 1)
    run()
  }

  /** Lets time go by until the next timer, which then runs. */
  nextTimer(): void {
    const first = this.#timers.reduce((one, other) => (other.at < one.at ? other : one))
    this.#timers = this.#timers.filter((each) => each !== first)
    this.now = Math.max(this.now, first.at)
    first.run()
  }

  /** Lets everything that does not wait for a turn go on until it does. */
  async settle(): Promise<void> {
    this.turn++
    this.now++
    await new Promise<void>((resolve) => {
      setImmediate(resolve)
    })
  }
}
