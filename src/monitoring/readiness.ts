/**
 * Whether a process can do its work, and if not, why: named checks, each of which returns what is wrong and what to do,
 * or nothing.
 */
import { asDeltamapperError } from '../errors.ts'

/** Undefined when all is well; otherwise what is wrong, and what to do. Throwing counts as wrong as well. */
export type Check = () => string | undefined | Promise<string | undefined>

/** A check without an answer by then has failed, in milliseconds: probes wait for a second by default. */
const CHECK_MS = 800

export class Readiness {
  readonly #checks = new Map<string, Check>()
  readonly #withinMs: number

  constructor(withinMs = CHECK_MS) {
    this.#withinMs = withinMs
  }

  /** A check replaces an earlier one of the same name. */
  add(name: string, check: Check): void {
    this.#checks.set(name, check)
  }

  /** A line for each check that has failed, `NAME: what is wrong; what to do`. None: ready. */
  async problems(): Promise<string[]> {
    const checks = [...this.#checks]
    const found = await Promise.all(checks.map(([, check]) => this.#ask(check)))
    return checks.flatMap(([name], i) => (found[i] === undefined ? [] : [`${name}: ${found[i]}`]))
  }

  async #ask(check: Check): Promise<string | undefined> {
    let timer: NodeJS.Timeout | undefined
    const silence = new Promise<string>((resolve) => {
      timer = setTimeout(
        () => resolve(`it has not answered within ${this.#withinMs} ms; if that stays, see the log`),
        this.#withinMs
      )
    })
    try {
      return await Promise.race([check(), silence])
    } catch (error) {
      return asDeltamapperError(error).line
    } finally {
      clearTimeout(timer)
    }
  }
}
