/**
 * Servers of tests that come back on the port that they had: it may be taken for a moment. Who dials a port of this machine that nobody listens
 * on can be given that very port for its own end.
 */
import { setTimeout as sleep } from 'node:timers/promises'

/** Listens, again and again as long as the port is taken, but not for ever. Rejects as `listen` does. */
export async function oncePortIsFree<T>(listen: () => Promise<T>): Promise<T> {
  for (const giveUp = Date.now() + 300_000; ;) {
    try {
      return await listen()
    } catch (error) {
      if (!/EADDRINUSE/.test(String(error)) || Date.now() > giveUp) throw error
      await sleep(20)
    }
  }
}
