/**
 * How agent and router are asked to stop.
 */

/**
 * Resolves with the first SIGTERM or SIGINT from now on; a second one ends the process at once. To be called before anything is started:
 * whoever reads in the log that it listens may ask for the end right away.
 */
export function stopSignal(): Promise<NodeJS.Signals> {
  const asked = Promise.withResolvers<NodeJS.Signals>()
  const signals: NodeJS.Signals[] = ['SIGTERM', 'SIGINT']
  const listen = (signal: NodeJS.Signals) => {
    for (const each of signals) process.removeListener(each, listen)
    asked.resolve(signal)
  }
  for (const each of signals) process.on(each, listen)
  return asked.promise
}
