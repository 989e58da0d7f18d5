/**
 * A limit to connections that have not shown yet what they want, at which the one that has waited longest gives way to the newest.
 *
 * Node's own limit (`maxConnections`) turns the newest away: whoever opens connections and says nothing locks everybody else out for as long as
 * it likes, without a certificate or a request. Who means it needs milliseconds, so that of many the oldest is never the one that matters.
 */
import type { Socket } from 'node:net'

export class CrowdedDoor {
  readonly #most: number
  /** In the order in which they came. */
  readonly #waiting = new Set<Socket>()

  /** @param most connections that may wait at the same time */
  constructor(most: number) {
    this.#most = most
  }

  get waiting(): number {
    return this.#waiting.size
  }

  /** A connection has come; it waits until it is `let in` or closes. */
  came(socket: Socket): void {
    const [oldest] = this.#waiting
    if (this.#waiting.size >= this.#most) {
      this.#waiting.delete(oldest)
      oldest.destroy()
    }
    this.#waiting.add(socket)
    socket.once('close', () => this.#waiting.delete(socket))
  }

  /** It has shown what it wants, and no longer counts. */
  letIn(socket: Socket): void {
    this.#waiting.delete(socket)
  }
}
