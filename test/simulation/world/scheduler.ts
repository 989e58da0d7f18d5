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
  /** How often a read takes long: 0 to 1. */
  slowness = 0
  #ready: Ready[] = []
  /** Reads that take long, and the turn at which they are done. */
  #late: (Ready & { readonly at: number })[] = []
  #timers: Timer[] = []
  readonly #dead = new Set<string>()

  constructor(random: Random) {
    this.random = random
  }

  /** What is done at some turn, and heard of at that turn or a later one. @param mayBeLate it is a read of a disk */
  io<T>(owner: string, act: () => T, mayBeLate = false): Promise<T> {
    const { promise, resolve, reject } = Promise.withResolvers<T>()
    // What another process tells a dead one, it does not hear.
    if (this.#dead.has(owner)) return promise
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
    if (mayBeLate && this.slowness > 0 && this.random.chance(this.slowness)) {
      this.#late.push({ owner, run, at: this.turn + this.random.integer(20, 400) })
    } else this.#ready.push({ owner, run })
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
    this.#dead.add(owner)
    this.#ready = this.#ready.filter((each) => each.owner !== owner)
    this.#late = this.#late.filter((each) => each.owner !== owner)
    this.#timers = this.#timers.filter((each) => each.owner !== owner)
  }

  /** Nothing can go on but what takes long. */
  get isStalled(): boolean {
    return this.#ready.length === 0
  }

  get isIdle(): boolean {
    return this.#ready.length === 0 && this.#late.length === 0
  }

  /** When the next timer is due; Infinity where there is none. */
  get nextTimerAt(): number {
    return this.#timers.reduce((first, { at }) => Math.min(first, at), Infinity)
  }

  /** Lets one of those that are ready go on. */
  step(): void {
    if (this.#ready.length === 0) this.turn = Math.max(this.turn, Math.min(...this.#late.map(({ at }) => at)))
    this.#takeDue()
    const i = this.random.integer(0, this.#ready.length - 1)
    const [{ run }] = this.#ready.splice(i, 1)
    run()
  }

  #takeDue(): void {
    if (this.#late.length === 0) return
    this.#ready.push(...this.#late.filter(({ at }) => at <= this.turn))
    this.#late = this.#late.filter(({ at }) => at > this.turn)
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
    this.#takeDue()
    await new Promise<void>((resolve) => {
      setImmediate(resolve)
    })
  }
}
