/** How agent and router receive the request to stop. */

/** How often to check whether npm's shell is still there, in milliseconds. */
const LOOK_MS = 500

/**
 * Resolves with the first SIGTERM or SIGINT from now on; a second one ends the process at once. Call it before anything
 * is started: a reader of the log may ask for the end as soon as it says "listening".
 *
 * With `npx`, there is a shell in between. npm passes a signal on, the shell dies of it and tells nobody: its end
 * counts as SIGTERM.
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

/** How long a start that hangs may go on after the request to stop, in milliseconds. */
const START_MS = 10_000

/**
 * The result of `starting`. If the end is requested meanwhile, the start is awaited, because it has things to clean up.
 * A start that hangs ends the process by the same signal.
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
