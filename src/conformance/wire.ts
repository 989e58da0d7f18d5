/**
 * gRPC as a conformance run speaks it: HTTP/2 by hand (gRPC over HTTP2, PROTOCOL-HTTP2), over one unix socket.
 *
 * A gRPC library would hold each message until it is complete, hide what the trailers say, and choose the
 * flow-control window. Here a message of any size goes by in pieces, every trailer is seen, and a window of a few
 * bytes keeps a driver in mid-stream for as long as that is wanted.
 */
import {
  type ClientHttp2Session,
  type ClientHttp2Stream,
  connect as connectHttp2,
  constants,
  type IncomingHttpHeaders
} from 'node:http2'
import { connect as connectSocket } from 'node:net'
import { getDefaultHighWaterMark, setDefaultHighWaterMark } from 'node:stream'
import { once } from 'node:events'

/** How a call ended. */
export type End =
  | {
      readonly how: 'status'
      /** gRPC's number. */
      readonly code: number
      readonly message: string
      /** grpc-status-details-bin, decoded from base64; empty where there is none. */
      readonly detailsBase64: string
    }
  /** We gave it up: its time was over, or we had what we wanted. */
  | { readonly how: 'deadline' | 'cancelled' }
  /** The connection broke, or (unreached) was never made. */
  | { readonly how: 'connection'; readonly why: string; readonly unreached?: true }
  /** What came is no gRPC, or no message of the service. */
  | { readonly how: 'undecodable'; readonly why: string }

export interface WireRequest {
  /** As in /csi.v1.Identity/Probe. */
  readonly path: string
  readonly body: Uint8Array
  /** We give up after so many milliseconds. */
  readonly deadlineMs: number
  /** What the driver is told of its deadline, in milliseconds; nothing unless given. */
  readonly grpcTimeoutMs?: number | undefined
  readonly authority?: string | undefined
  readonly signal?: AbortSignal | undefined
  /** For how long it is tried to connect, in milliseconds: a driver that restarts may take a moment. */
  readonly connectMs: number
}

/** Told of the body as it comes. What it throws ends the call as undecodable; a promise makes the driver wait. */
export interface Receiver {
  messageBegins(bytes: number): void
  bytes(chunk: Uint8Array): void
  /** True: we have what we wanted. */
  messageEnds(): boolean | Promise<boolean>
}

/** Thrown by a receiver for what is no message. */
export class Undecodable extends Error {}

/** Characters of a status message that are kept. */
const LONGEST_STATUS_MESSAGE = 2000

/** gRPC's default, and what the sidecar offers. */
const USUAL_WINDOW_BYTES = 64 * 1024

export class Wire {
  readonly #path: string
  readonly #windowBytes: number
  #session: ClientHttp2Session | undefined

  /** @param windowBytes how much of a stream the driver may send before we take it */
  constructor(socketPath: string, windowBytes = USUAL_WINDOW_BYTES) {
    this.#path = socketPath
    this.#windowBytes = windowBytes
  }

  /** One call; never throws. */
  async call(request: WireRequest, receiver: Receiver): Promise<End> {
    const until = performance.now() + request.deadlineMs
    let session: ClientHttp2Session
    try {
      session = await this.#connected(Math.min(until, performance.now() + request.connectMs))
    } catch (error) {
      return {
        how: 'connection',
        unreached: true,
        why: (error as NodeJS.ErrnoException).code ?? (error as Error).message
      }
    }
    return new Exchange(session, request, receiver, until).run()
  }

  /** Cuts the connection, whatever runs on it. */
  destroy(): void {
    this.#session?.destroy()
    this.#session = undefined
  }

  async #connected(patience: number): Promise<ClientHttp2Session> {
    if (this.#session && !this.#session.closed && !this.#session.destroyed) return this.#session
    for (;;) {
      try {
        return (this.#session = await this.#connect(patience))
      } catch (error) {
        if (performance.now() >= patience) throw error
        await new Promise((resolve) => setTimeout(resolve, 100))
      }
    }
  }

  async #connect(until: number): Promise<ClientHttp2Session> {
    const session = connectHttp2('http://localhost', {
      createConnection: () => connectSocket(this.#path),
      settings: { initialWindowSize: this.#windowBytes, enablePush: false },
      // An answer of headers without end is none.
      maxHeaderListPairs: 64,
      maxSessionMemory: 10
    })
    session.on('error', () => undefined)
    const timer = setTimeout(
      () => session.destroy(new Error('no connection in time')),
      Math.max(until - performance.now(), 1)
    )
    try {
      await once(session, 'connect')
      return session
    } catch (error) {
      session.destroy()
      throw error
    } finally {
      clearTimeout(timer)
    }
  }
}

class Exchange {
  readonly #request: WireRequest
  readonly #receiver: Receiver
  readonly #stream: ClientHttp2Stream
  readonly #session: ClientHttp2Session
  readonly #until: number
  readonly #header = Buffer.alloc(5)
  #headerBytes = 0
  /** Of the message that is coming. */
  #left = 0
  #inMessage = false
  #status: End | undefined
  #gaveUp: 'deadline' | 'cancelled' | undefined

  constructor(session: ClientHttp2Session, request: WireRequest, receiver: Receiver, until: number) {
    this.#request = request
    this.#receiver = receiver
    this.#session = session
    this.#until = until
    const { path, grpcTimeoutMs, authority = 'localhost' } = request
    this.#stream = unbuffered(() =>
      session.request({
        ':method': 'POST',
        ':scheme': 'http',
        ':authority': authority,
        ':path': path,
        'content-type': 'application/grpc',
        te: 'trailers',
        ...(grpcTimeoutMs === undefined ? {} : { 'grpc-timeout': `${grpcTimeoutMs}m` })
      })
    )
  }

  async run(): Promise<End> {
    const stream = this.#stream
    const { signal } = this.#request
    const timer = setTimeout(() => this.#giveUp('deadline'), Math.max(this.#until - performance.now(), 1))
    const cancel = () => this.#giveUp('cancelled')
    signal?.addEventListener('abort', cancel, { once: true })
    stream.on('error', () => undefined)
    stream.on('response', (headers) => this.#takeHeaders(headers))
    stream.on('trailers', (headers: IncomingHttpHeaders) => this.#takeHeaders(headers))
    try {
      if (signal?.aborted) this.#giveUp('cancelled')
      stream.end(framed(this.#request.body))
      for await (const chunk of stream) {
        if (await this.#take(chunk as Buffer)) this.#giveUp('cancelled')
        if (performance.now() > this.#until) this.#giveUp('deadline')
        if (this.#gaveUp) break
      }
      return this.#end()
    } catch (error) {
      if (error instanceof Undecodable) return { how: 'undecodable', why: error.message }
      return this.#end(error as Error)
    } finally {
      clearTimeout(timer)
      signal?.removeEventListener('abort', cancel)
      if (!stream.closed) stream.close(constants.NGHTTP2_CANCEL)
    }
  }

  #giveUp(why: 'deadline' | 'cancelled'): void {
    this.#gaveUp ??= why
    this.#stream.close(constants.NGHTTP2_CANCEL)
    // Whoever waits for more of it waits no longer.
    this.#stream.destroy()
  }

  #end(error?: Error): End {
    if (this.#gaveUp !== undefined) return { how: this.#gaveUp }
    if (this.#status !== undefined) {
      const { code } = this.#status as { code?: number }
      if (code === 0 && (this.#inMessage || this.#headerBytes > 0)) {
        return { how: 'undecodable', why: `it ended OK in the middle of a message, with ${this.#left} bytes to come` }
      }
      return this.#status
    }
    if (this.#session.destroyed || this.#session.closed || error !== undefined) {
      return { how: 'connection', why: error?.message ?? 'the connection was closed' }
    }
    return { how: 'connection', why: `the stream was reset (HTTP/2 error ${this.#stream.rstCode}) without a status` }
  }

  #takeHeaders(headers: IncomingHttpHeaders): void {
    const status = headers['grpc-status']
    if (typeof status === 'string') {
      const message = decodeMessage(String(headers['grpc-message'] ?? ''))
      const details = headers['grpc-status-details-bin']
      this.#status = {
        how: 'status',
        code: Number(status),
        message: message.slice(0, LONGEST_STATUS_MESSAGE),
        detailsBase64: typeof details === 'string' ? details.slice(0, LONGEST_STATUS_MESSAGE) : ''
      }
    } else if (headers[':status'] !== undefined && Number(headers[':status']) !== 200) {
      this.#status = { how: 'undecodable', why: `HTTP status ${String(headers[':status'])}` }
    }
  }

  /** Whether the receiver has enough. */
  async #take(chunk: Buffer): Promise<boolean> {
    let at = 0
    while (at < chunk.length || (this.#inMessage && this.#left === 0)) {
      if (!this.#inMessage) {
        const taken = chunk.copy(this.#header, this.#headerBytes, at)
        at += taken
        this.#headerBytes += taken
        if (this.#headerBytes < this.#header.length) return false
        this.#begin()
      }
      const length = Math.min(this.#left, chunk.length - at)
      if (length > 0) this.#receiver.bytes(chunk.subarray(at, at + length))
      at += length
      this.#left -= length
      if (this.#left > 0) return false
      this.#inMessage = false
      const enough = this.#receiver.messageEnds()
      if (enough === true || (enough !== false && (await enough))) return true
    }
    return false
  }

  #begin(): void {
    if (this.#header[0] !== 0) throw new Undecodable('a message is compressed, which nobody asked for')
    this.#headerBytes = 0
    this.#inMessage = true
    this.#left = this.#header.readUInt32BE(1)
    this.#receiver.messageBegins(this.#left)
  }
}

/**
 * A stream that takes nothing ahead of its reader: with the usual buffer, a small answer would be here as a whole
 * before anybody has looked at it, and nothing could fall into its middle.
 */
function unbuffered<T>(make: () => T): T {
  const usual = getDefaultHighWaterMark(false)
  setDefaultHighWaterMark(false, 1)
  try {
    return make()
  } finally {
    setDefaultHighWaterMark(false, usual)
  }
}

/** A message with its prefix of five bytes. */
function framed(body: Uint8Array): Buffer {
  const prefix = Buffer.alloc(5)
  prefix.writeUInt32BE(body.length, 1)
  return Buffer.concat([prefix, body])
}

/** Percent-encoded UTF-8. */
function decodeMessage(text: string): string {
  try {
    return decodeURIComponent(text)
  } catch {
    return text
  }
}
