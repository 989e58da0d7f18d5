/**
 * Waiting for calls that are under way, for so long and no longer.
 */

/** Resolves when all have ended, or after `withinMs`, whichever is first. None of them may reject. */
export async function settledWithin(running: Iterable<Promise<unknown>>, withinMs: number): Promise<void> {
  let timer: NodeJS.Timeout | undefined
  const patience = new Promise<void>((resolve) => (timer = setTimeout(resolve, withinMs)))
  await Promise.race([Promise.all(running), patience])
  clearTimeout(timer)
}
