/**
 * What a client sends, taken in portions of known length. Never more of it is in memory than the socket's own buffer
 * and the portion that is asked for.
 */
import type { Socket } from 'node:net'

export class SocketInput {
  readonly #socket: Socket
  #wake: (() => void) | undefined
  #isOver = false

  constructor(socket: Socket) {
    this.#socket = socket
    const wake = () => this.#wake?.()
    const end = () => {
      this.#isOver = true
      wake()
    }
    socket.on('readable', wake).on('end', end).on('close', end).on('error', end)
  }

  /** Exactly so many bytes; undefined when the client has sent its last. @param bytes up to 64 KiB */
  async take(bytes: number): Promise<Buffer | undefined> {
    if (bytes === 0) return Buffer.alloc(0)
    for (;;) {
      const content = this.#socket.read(bytes) as Buffer | null
      // At its end a stream hands out what is left, however little.
      if (content !== null) return content.length === bytes ? content : undefined
      if (this.#isOver || this.#socket.destroyed) return undefined
      await new Promise<void>((resolve) => (this.#wake = resolve))
    }
  }

  /** Drops so many bytes. False when the client has sent its last before. */
  async skip(bytes: number): Promise<boolean> {
    for (let rest = bytes; rest > 0;) {
      const portion = Math.min(rest, 65536)
      if ((await this.take(portion)) === undefined) return false
      rest -= portion
    }
    return true
  }
}
