/** Limits log lines that any client can cause, so that they cannot fill the log. */

/** At most so many lines are written within so many milliseconds; the next one says how many were left out. */
const WRITTEN = { lines: 20, withinMs: 60_000 }

/** @param say writes a line */
export function sparingly(say: (fields: object) => void, { lines, withinMs } = WRITTEN): (fields: object) => void {
  let [since, said, leftOut] = [-Infinity, 0, 0]
  return (fields) => {
    const now = performance.now()
    if (now - since > withinMs) [since, said] = [now, 0]
    if (said++ < lines) {
      say(leftOut > 0 ? { ...fields, leftOut } : fields)
      leftOut = 0
    } else leftOut++
  }
}

/** The most clients that are told apart; beyond, the oldest is forgotten. */
const MOST_CLIENTS = 1000

/** The same for each client separately. */
export function sparinglyByClient(say: (fields: object) => void, written = WRITTEN) {
  const clients = new Map<string, (fields: object) => void>()
  return (client: string, fields: object): void => {
    let log = clients.get(client)
    if (log === undefined) {
      if (clients.size >= MOST_CLIENTS) clients.delete([...clients.keys()][0])
      clients.set(client, (log = sparingly(say, written)))
    }
    log(fields)
  }
}
