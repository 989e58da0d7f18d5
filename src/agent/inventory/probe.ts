/**
 * One look at something that may fail or never answer. It always has a result, and in time: one missing part of the
 * inventory must not hold up the others.
 */
import { asDeltamapperError, DeltamapperError } from '../../errors.ts'
import type { Problem } from './examination.ts'

export type Probed<T> =
  { readonly value: T; readonly problem?: undefined } | { readonly value?: undefined; readonly problem: Problem }

/**
 * Waits for a look, up to a deadline. A look that takes longer goes on unnoticed.
 *
 * @param what its subject, for the message that it did not answer
 */
export async function probe<T>(what: string, deadlineMs: number, look: () => Promise<T>): Promise<Probed<T>> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => {
      const message = `${what} has not answered for ${deadlineMs / 1000} s`
      reject(
        new DeltamapperError('DM_CALL_STUCK', message, 'see what it waits for: a suspended device, a dead disk, a lock')
      )
    }, deadlineMs)
  })
  try {
    return { value: await Promise.race([look(), late]) }
  } catch (thrown) {
    return { problem: toProblem(thrown) }
  } finally {
    clearTimeout(timer)
  }
}

/** A look that does not begin again before the last one has returned. */
export class SingleLook<T> {
  readonly #look: () => Promise<T>
  #underWay: Promise<T> | undefined

  constructor(look: () => Promise<T>) {
    this.#look = look
  }

  /** The answer of the running look, or of a new one. */
  async take(): Promise<T> {
    this.#underWay ??= this.#look().finally(() => (this.#underWay = undefined))
    return this.#underWay
  }
}

export function toProblem(thrown: unknown): Problem {
  const { code, message, remedy } = asDeltamapperError(thrown)
  return { code, message, remedy }
}
