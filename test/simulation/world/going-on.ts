/**
 * How a life goes on in which the product's own code is asked things: who can do something does it, or time goes by.
 */
import { setImmediate as giveWay } from 'node:timers/promises'
import type { Scheduler } from './scheduler.ts'

/** So often the product may give way before it is taken to wait. */
const MOST_PAUSES = 50

/**
 * @param open how many answers are waited for
 * @returns `over` where nobody waits for anything, `stuck` where somebody does and nothing can happen any more
 */
export async function goOn(scheduler: Scheduler, open: () => number): Promise<'on' | 'over' | 'stuck'> {
  // Code of the product gives way to others now and then, and does not wait for anything of the machine's then.
  for (let i = 0; i < MOST_PAUSES && scheduler.isIdle && open() > 0; i++) await giveWay()
  if (!scheduler.isIdle) scheduler.step()
  else if (open() === 0) return 'over'
  else if (scheduler.nextTimerAt < Infinity) scheduler.nextTimer()
  else return 'stuck'
  return 'on'
}
