/**
 * Tests of a file run all at once; where each keeps a processor busy, a few at a time are faster, and none runs
 * out of its time meanwhile.
 */

/** Runs what it is given, so many at a time. */
export function turns(most: number): <T>(work: () => Promise<T>) => Promise<T> {
  const waiting: (() => void)[] = []
  let running = 0
  return async (work) => {
    if (running >= most) await new Promise<void>((resolve) => waiting.push(resolve))
    running++
    try {
      return await work()
    } finally {
      running--
      waiting.shift()?.()
    }
  }
}
