/**
 * The handshake limit: a limit to connections that have not sent anything useful yet. When it is reached, the one that
 * has waited longest gives way to the newest.
 *
 * Node's own limit (`maxConnections`) refuses the newest. A client that opens connections and sends nothing would lock
 * everybody else out for as long as it likes, without a certificate or a request. A real client finishes its handshake
 * in milliseconds, so the oldest pending connection is the safe one to drop.
 */
import type { Socket } from 'node:net'

export class HandshakeLimit {
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

  /** Adds a connection, which waits until it is `let in` or closes. */
  came(socket: Socket): void {
    const [oldest] = this.#waiting
    if (this.#waiting.size >= this.#most) {
      this.#waiting.delete(oldest)
      oldest.destroy()
    }
    this.#waiting.add(socket)
    socket.once('close', () => this.#waiting.delete(socket))
  }

  /** The connection has finished its handshake, and no longer counts. */
  letIn(socket: Socket): void {
    this.#waiting.delete(socket)
  }
}
