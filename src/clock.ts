/**
 * What time it is, and waiting for it: as an argument of whatever waits, so that time can be made to pass in tests.
 */
import { setTimeout as sleepFor } from 'node:timers/promises'

export interface Clock {
  /** Milliseconds since 1970; may be set back. */
  now(): number
  /** Milliseconds since some moment; never goes back. */
  monotonic(): number
  /** Resolves after so many milliseconds, or when the signal is aborted. */
  sleep(ms: number, signal: AbortSignal): Promise<void>
  /**
   * Runs something after so many milliseconds. @param mayEnd the process need not stay for it @returns what takes
   * it back
   */
  after(ms: number, run: () => void, mayEnd?: boolean): () => void
}

export const systemClock: Clock = {
  now: () => Date.now(),
  monotonic: () => performance.now(),
  sleep: (ms, signal) => sleepFor(ms, undefined, { signal }).catch(() => undefined),
  after: (ms, run, mayEnd = false) => {
    const timer = setTimeout(run, ms)
    if (mayEnd) timer.unref()
    return () => {
      clearTimeout(timer)
    }
  }
}

/** What is enough for most waiting. */
export type PlainClock = Pick<Clock, 'now' | 'monotonic'> & {
  /** @param mayEnd the process need not stay for it @param signal ends it when it is aborted */
  readonly sleep: (ms: number, mayEnd?: boolean, signal?: AbortSignal) => Promise<void>
}

export const plainClock: PlainClock = {
  now: () => systemClock.now(),
  monotonic: () => systemClock.monotonic(),
  sleep: (ms, mayEnd = false, signal) =>
    sleepFor(ms, undefined, { ref: !mayEnd, ...(signal && { signal }) }).catch(() => undefined)
}
