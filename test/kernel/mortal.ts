/**
 * Processes that die at a moment that is chosen, without a process.
 */
import { intercepted } from './intercepted.ts'

/** At which of the calls that change something, from 1. */
export interface Moment {
  call: number
  when: 'before' | 'after'
}

/** At none. */
export const never: Moment = { call: 0, when: 'before' }

/** Stands for a process that dies at one of its calls: neither that one nor any after it ever returns. */
export class Mortal {
  readonly death: Promise<'died'>
  readonly #changing: ReadonlySet<string>
  readonly #moment: Moment
  readonly #never = new Promise<never>(() => undefined)
  #die: () => void
  #dead = false
  #calls = 0

  /** @param changing names of methods that change something: where a process can die with something half done */
  constructor(moment: Moment, changing: ReadonlySet<string>) {
    this.#changing = changing
    const { promise, resolve } = Promise.withResolvers<'died'>()
    this.death = promise
    this.#die = () => {
      this.#dead = true
      resolve('died')
    }
    this.#moment = moment
  }

  /** Calls so far that change something. */
  get calls(): number {
    return this.#calls
  }

  /** The same object, whose calls are this process's. */
  mortal<T extends object>(target: T): T {
    return intercepted(target, (name, _args, go) => this.#call(name, go))
  }

  async #call(name: string, perform: () => unknown): Promise<unknown> {
    if (this.#dead) return this.#never
    const last = this.#changing.has(name) && ++this.#calls === this.#moment.call
    if (last && this.#moment.when === 'before') {
      this.#die()
      return this.#never
    }
    try {
      return await perform()
    } finally {
      if (last) this.#die()
      // The dead do not even throw.
      if (this.#dead) await this.#never
    }
  }
}
