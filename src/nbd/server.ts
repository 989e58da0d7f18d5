/**
 * Takes clients in, so many at a time, and ends with all of them.
 */
import { createServer, type Server, type Socket } from 'node:net'
import { asDeltamapperError, type DeltamapperError } from '../errors.ts'
import { serveConnection } from './connection.ts'
import type { Export } from './export.ts'
import { ReadBuffers } from './read-buffers.ts'
import type { Validity } from './validity.ts'

/** Connections at once; nbdcopy and qemu open up to 16. Those beyond are closed before the greeting. */
const MOST_CONNECTIONS = 32
/** How long a handshake may take, in milliseconds. */
const HANDSHAKE_MS = 30_000

export interface NbdServerOptions {
  /** The first one is the default. */
  readonly exports: readonly Export[]
  readonly validity: Validity
  /** Told of what went wrong with the data or the map: clients were told that their requests failed. */
  readonly onFailure: (error: DeltamapperError) => void
  readonly handshakeMs?: number
}

export class NbdServer {
  /** To be made to listen by whoever has made this. */
  readonly listener: Server
  readonly #sockets = new Set<Socket>()
  readonly #ended = new Set<Promise<void>>()
  readonly #exports: readonly Export[]

  constructor({ exports, validity, onFailure, handshakeMs = HANDSHAKE_MS }: NbdServerOptions) {
    this.#exports = exports
    const served = { exports, validity, buffers: new ReadBuffers(), onFailure }
    this.listener = createServer({ pauseOnConnect: false, allowHalfOpen: true }, (socket) => {
      this.#sockets.add(socket)
      const ended = serveConnection(socket, served, handshakeMs)
        .catch((error: unknown) => {
          socket.destroy()
          onFailure(asDeltamapperError(error))
        })
        .then(() => {
          this.#sockets.delete(socket)
          this.#ended.delete(ended)
        })
      this.#ended.add(ended)
    })
    this.listener.maxConnections = MOST_CONNECTIONS
  }

  /**
   * Ends every connection, also in the middle of a reply, and gives up the maps. The listener is its owner's to close.
   */
  async close(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy()
    const maps = new Set(this.#exports.flatMap(({ contexts }) => [...contexts.values()]))
    await Promise.all([...maps].map((map) => map.close()))
    await Promise.all(this.#ended)
  }
}
