/**
 * Which walk goes on, when more want to than a thread can serve well: clients take turns, however many walks each has.
 *
 * A turn is one message: making it in a walker thread, or passing it on in the main thread. A few turns run at a time,
 * so that one walk computes while others wait for their reads. Every client has an equal share of them, at least one: a
 * client with a single walk never waits behind the hundreds of another. Among the walks of one client, the one that has
 * waited longest is next.
 *
 * A walk that waits for a device, or has no message for long, must not hold up others: while others wait, a turn that
 * takes too long no longer counts. So this limits no answer in time; it only decides the order.
 */

/** Turns at a time in one thread. */
const AT_ONCE = 4
/** After so long, a turn no longer counts, in milliseconds. */
const OVERDUE_MS = 50

/**
 * End it once. The next turn is given out only after the thread has read its incoming messages, so that all waiting
 * clients are known.
 */
export interface Turn {
  end(): void
}

export interface TurnsOptions {
  /** Turns at a time. */
  readonly atOnce?: number | undefined
  /** After so long, a turn no longer counts, in milliseconds. */
  readonly overdueMs?: number | undefined
}

interface CountedTurn extends Turn {
  readonly client: string
  readonly since: number
}

interface Waiting {
  readonly grant: (turn: Turn) => void
}

const noTurn: Turn = { end: () => undefined }

export class WalkTurns {
  readonly #atOnce: number
  readonly #overdueMs: number
  /** Running turns that count. */
  readonly #counted = new Set<CountedTurn>()
  /** By client; the first in each list is next. */
  readonly #waiting = new Map<string, Waiting[]>()
  #timer: NodeJS.Timeout | undefined

  constructor({ atOnce = AT_ONCE, overdueMs = OVERDUE_MS }: TurnsOptions = {}) {
    this.#atOnce = atOnce
    this.#overdueMs = overdueMs
  }

  /** A turn, at once or when it is this client's. If the signal aborts first, the wait ends with an empty turn. */
  take(client: string, signal: AbortSignal): Turn | Promise<Turn> {
    if (signal.aborted) return noTurn
    if (!this.#waiting.has(client) && this.#mayBegin(client)) return this.#begin(client)
    return new Promise((resolve) => {
      const leave = () => {
        this.#leave(client, waiting)
        resolve(noTurn)
      }
      const waiting: Waiting = {
        grant(turn) {
          signal.removeEventListener('abort', leave)
          resolve(turn)
        }
      }
      signal.addEventListener('abort', leave, { once: true })
      const others = this.#waiting.get(client)
      if (others) others.push(waiting)
      else this.#waiting.set(client, [waiting])
      this.#timer ??= setTimeout(() => this.#forgetOverdue(), this.#overdueMs).unref()
    })
  }

  #mayBegin(client: string): boolean {
    let own = 0
    const clients = new Set(this.#waiting.keys()).add(client)
    for (const turn of this.#counted) {
      clients.add(turn.client)
      if (turn.client === client) own++
    }
    if (own === 0) return true
    return this.#counted.size < this.#atOnce && own < Math.floor(this.#atOnce / clients.size)
  }

  #begin(client: string): Turn {
    const turn: CountedTurn = {
      client,
      since: performance.now(),
      end: () => setImmediate(() => this.#over(turn))
    }
    this.#counted.add(turn)
    return turn
  }

  #over(turn: CountedTurn): void {
    if (this.#counted.delete(turn) && this.#waiting.size > 0) this.#next()
  }

  /** Gives out the free turns. A client that gets one goes to the end of the queue. */
  #next(): void {
    for (const [client, queue] of [...this.#waiting]) {
      if (!this.#mayBegin(client)) continue
      this.#waiting.delete(client)
      const waiting = queue.shift()
      if (queue.length > 0) this.#waiting.set(client, queue)
      waiting?.grant(this.#begin(client))
    }
    if (this.#waiting.size > 0) return
    clearTimeout(this.#timer)
    this.#timer = undefined
  }

  #leave(client: string, waiting: Waiting): void {
    const rest = this.#waiting.get(client)?.filter((each) => each !== waiting) ?? []
    if (rest.length > 0) this.#waiting.set(client, rest)
    else this.#waiting.delete(client)
    this.#next()
  }

  #forgetOverdue(): void {
    this.#timer = undefined
    const before = performance.now() - this.#overdueMs
    for (const turn of this.#counted) if (turn.since <= before) this.#counted.delete(turn)
    this.#next()
    if (this.#waiting.size > 0) this.#timer ??= setTimeout(() => this.#forgetOverdue(), this.#overdueMs).unref()
  }
}
