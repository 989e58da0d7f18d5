/**
 * How agent and router are asked to stop.
 */

/** How often to look whether npm's shell is still there, in milliseconds. */
const LOOK_MS = 500

/**
 * Resolves with the first SIGTERM or SIGINT from now on; a second one ends the process at once. To be called before anything is started:
 * whoever reads in the log that it listens may ask for the end right away.
 *
 * Started by `npx`, there is a shell in between, which dies of a signal that npm passes on, and tells nobody: its end counts as SIGTERM.
 */
export function stopSignal(): Promise<NodeJS.Signals> {
  const asked = Promise.withResolvers<NodeJS.Signals>()
  const signals: NodeJS.Signals[] = ['SIGTERM', 'SIGINT']
  let looking: NodeJS.Timeout | undefined
  const listen = (signal: NodeJS.Signals) => {
    clearInterval(looking)
    for (const each of signals) process.removeListener(each, listen)
    asked.resolve(signal)
  }
  for (const each of signals) process.on(each, listen)
  if (process.env['npm_command'] === 'exec') {
    const parent = process.ppid
    looking = setInterval(() => {
      if (process.ppid !== parent) listen('SIGTERM')
    }, LOOK_MS).unref()
  }
  return asked.promise
}

/** How long a start that hangs may go on once the end has been asked for, in milliseconds. */
const START_MS = 10_000

/**
 * What `starting` resolves with. Where the end is asked for meanwhile, the start is waited for, since it has things to put back; one that hangs ends
 * the process by the same signal.
 */
export async function startedBefore<T>(
  asked: Promise<NodeJS.Signals>,
  starting: Promise<T>,
  withinMs = START_MS
): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  let isStarted = false
  void asked.then((signal) => {
    if (isStarted) return
    timer = setTimeout(() => process.kill(process.pid, signal), withinMs)
  })
  try {
    return await starting
  } finally {
    isStarted = true
    clearTimeout(timer)
  }
}
