/**
 * One client, from the greeting to its last request.
 *
 *   haggle → take a request → find its parts → read a piece → confirm that the snapshot is what it was → send
 *                                              └ the next ones are read meanwhile
 *
 * Many requests are under way at once, each in pieces that are sent in order: so reads are large, and one look at the
 * snapshot is for many of them. What a client does not take holds up its own requests, and nobody else's.
 */
import type { Socket } from 'node:net'
import { Unanswered } from '../devicemapper/device-reads.ts'
import { asDeltamapperError, type DeltamapperError } from '../errors.ts'
import type { Export, Part } from './export.ts'
import {
  CLIENT_FLAGS_BYTES,
  decodeClientFlags,
  decodeOptionHeader,
  encodeOptionError,
  GREETING,
  OPTION_HEADER_BYTES
} from './handshake.ts'
import { type Chosen, OptionHaggling } from './option-haggling.ts'
import { command, commandFlag, MAX_OPTION_BYTES, MAX_PAYLOAD_BYTES, nbdError, optionReply } from './protocol.ts'
import { BufferShare, PIECE_BYTES, type ReadBuffers } from './read-buffers.ts'
import {
  decodeRequest,
  encodeBlockStatus,
  encodeDataHead,
  encodeDone,
  encodeErrorChunk,
  encodeHole,
  encodeSimpleReply,
  type Request,
  REQUEST_BYTES
} from './requests.ts'
import { SocketInput } from './socket-input.ts'
import type { Validity } from './validity.ts'

/** Requests of one client that are under way at once; what it sends beyond them waits in its socket. */
const REQUESTS_AT_ONCE = 64
/** Pieces of one client that are in memory at once, over all its requests: 8 MiB. */
const PIECES_AT_ONCE = 32
/** Pieces of one request that are read before the first of them is sent. */
const PIECES_AHEAD = 16
/** A handshake with more options than these is none. */
const MOST_OPTIONS = 256
/** An option longer than this is not even skipped, in bytes. */
const LONGEST_SKIPPED = MAX_PAYLOAD_BYTES

export interface Served {
  /** The first one is the default. */
  readonly exports: readonly Export[]
  readonly validity: Validity
  readonly buffers: ReadBuffers
  /** Told of what a client's request failed of that was not the client's fault. */
  readonly onFailure: (error: DeltamapperError) => void
}

/**
 * Serves a client until it has gone.
 *
 * @param handshakeMs how long its handshake may take, in milliseconds
 */
export async function serveConnection(socket: Socket, served: Served, handshakeMs: number): Promise<void> {
  const input = new SocketInput(socket)
  // A client that is gone shows as the end of its input.
  socket.on('error', () => undefined)
  try {
    const timer = setTimeout(() => socket.destroy(), handshakeMs)
    let chosen: Chosen | undefined
    try {
      chosen = await handshake(socket, input, served)
    } finally {
      clearTimeout(timer)
    }
    if (chosen) await new Transmission(socket, input, served, chosen).run()
  } finally {
    socket.end()
    socket.destroySoon()
  }
}

/** Undefined where it came to nothing. */
async function handshake(socket: Socket, input: SocketInput, served: Served): Promise<Chosen | undefined> {
  socket.write(GREETING)
  const flags = await input.take(CLIENT_FLAGS_BYTES)
  const client = flags && decodeClientFlags(flags)
  if (!client) return undefined
  const refusal = () => {
    const { failure } = served.validity
    return failure === undefined ? undefined : asDeltamapperError(failure).line
  }
  const haggling = new OptionHaggling(served.exports, refusal, client.noZeroes)
  for (let count = 0; count < MOST_OPTIONS; count++) {
    const header = await input.take(OPTION_HEADER_BYTES)
    const named = header && decodeOptionHeader(header)
    if (!named) return undefined
    if (named.length > MAX_OPTION_BYTES) {
      if (named.length > LONGEST_SKIPPED || !(await input.skip(named.length))) return undefined
      await sent(socket, [encodeOptionError(named.option, optionReply.tooBig, 'this option is too long')])
      continue
    }
    const data = await input.take(named.length)
    if (!data) return undefined
    const { replies, then } = haggling.answer(named.option, data)
    // A client that does not read its answers gets no more of them.
    await sent(socket, replies)
    if (then === 'disconnect') return undefined
    if (then === 'transmit') return haggling.chosen
  }
  return undefined
}

/** Hands buffers to the socket together, and resolves when they are gone, or the client is. */
async function sent(socket: Socket, buffers: readonly Buffer[]): Promise<void> {
  if (socket.destroyed || buffers.length === 0) return
  await new Promise<void>((resolve) => {
    socket.cork()
    buffers.slice(0, -1).forEach((each) => socket.write(each))
    // Called with an error where the socket is destroyed: nobody is there to take it.
    socket.write(buffers[buffers.length - 1], () => resolve())
    socket.uncork()
  })
}

class Transmission {
  readonly #socket: Socket
  readonly #input: SocketInput
  readonly #served: Served
  readonly #export: Export
  readonly #structured: boolean
  readonly #contexts: readonly string[]
  readonly #buffers: BufferShare
  readonly #underWay = new Set<Promise<void>>()
  #wakeReader: (() => void) | undefined
  /** Simple replies have no frame around their data: one has to be over before the next begins. */
  #turn: Promise<void> = Promise.resolve()

  constructor(socket: Socket, input: SocketInput, served: Served, chosen: Chosen) {
    this.#socket = socket
    this.#input = input
    this.#served = served
    this.#export = chosen.export
    this.#structured = chosen.structuredReplies
    this.#contexts = chosen.contexts
    this.#buffers = new BufferShare(served.buffers, PIECES_AT_ONCE)
  }

  async run(): Promise<void> {
    for (;;) {
      const header = await this.#input.take(REQUEST_BYTES)
      const request = header && decodeRequest(header)
      if (!request || request.command === command.disconnect) break
      // Its data follow at once, wanted or not.
      if (request.command === command.write) {
        if (request.length > MAX_PAYLOAD_BYTES || !(await this.#input.skip(request.length))) break
      }
      this.#begin(request)
      while (this.#underWay.size >= REQUESTS_AT_ONCE) await new Promise<void>((resolve) => (this.#wakeReader = resolve))
    }
    await Promise.all(this.#underWay)
  }

  #begin(request: Request): void {
    const answer = this.#answer(request).catch((error: unknown) => {
      // Nothing that was sent of a reply can be taken back: the end of the connection is what the client can see.
      this.#socket.destroy()
      this.#served.onFailure(asDeltamapperError(error))
    })
    this.#underWay.add(answer)
    void answer.then(() => {
      this.#underWay.delete(answer)
      this.#wakeReader?.()
    })
  }

  async #answer(request: Request): Promise<void> {
    const fault = this.#faultOf(request)
    if (fault !== 0) return this.#fail(request, fault, '')
    switch (request.command) {
      case command.read:
        return this.#structured ? this.#readStructured(request) : this.#inTurn(() => this.#readSimple(request))
      case command.blockStatus:
        return this.#blockStatus(request)
      default:
        return this.#inTurn(() => this.#send(encodeSimpleReply(request.cookie)))
    }
  }

  /** What is wrong with a request, as an error number; 0 where nothing is. */
  #faultOf({ command: asked, flags, offset, length }: Request): number {
    if (asked === command.write || asked === command.trim || asked === command.writeZeroes) return nbdError.EPERM
    const allowed = asked === command.blockStatus ? commandFlag.requestOne : commandFlag.fua
    if ((flags & ~allowed) !== 0) return nbdError.EINVAL
    if (asked === command.flush) return 0
    if (asked !== command.read && asked !== command.blockStatus) return nbdError.EINVAL
    if (asked === command.blockStatus && this.#contexts.length === 0) return nbdError.EINVAL
    if (asked === command.read && length > MAX_PAYLOAD_BYTES) return nbdError.EINVAL
    const isInside = length > 0 && offset + length <= this.#export.sizeBytes
    return isInside ? 0 : nbdError.EINVAL
  }

  async #readStructured(request: Request): Promise<void> {
    const { cookie } = request
    try {
      await this.#pieces(request, async ({ offset, size }, data, isLast) => {
        if (data === undefined) await this.#send(encodeHole(cookie, offset, size, isLast))
        else await this.#send(encodeDataHead(cookie, offset, size, isLast), data)
      })
    } catch (error) {
      await this.#failFor(request, error)
    }
  }

  async #readSimple(request: Request): Promise<void> {
    let isBegun = false
    try {
      await this.#pieces(request, async ({ size }, data) => {
        const head = isBegun ? [] : [encodeSimpleReply(request.cookie)]
        isBegun = true
        await this.#send(...head, ...(data === undefined ? zeros(size) : [data]))
      })
    } catch (error) {
      if (isBegun) throw error
      await this.#failFor(request, error)
    }
  }

  /**
   * A range that was asked for, piece by piece, in order: each is handed on only once the snapshot was found to be what
   * it was when it was read.
   */
  async #pieces(
    { offset, length }: Request,
    use: (part: Part, data: Buffer | undefined, isLast: boolean) => Promise<void>
  ): Promise<void> {
    const parts = (await this.#export.data.parts(offset, length)).flatMap(inPieces)
    const ahead: Promise<Piece>[] = []
    let next = 0
    try {
      for (const [i, part] of parts.entries()) {
        while (next < parts.length && ahead.length < PIECES_AHEAD) {
          const piece = this.#piece(parts[next++])
          // It is heard of in its turn.
          piece.catch(() => undefined)
          ahead.push(piece)
        }
        const piece = await ahead[0]
        void ahead.shift()
        try {
          // Whoever has gone takes nothing more.
          if (this.#socket.destroyed) return
          await use(part, piece.content, i === parts.length - 1)
        } finally {
          if (piece.buffer) this.#buffers.giveBack(piece.buffer)
        }
      }
    } finally {
      // What was read in vain: one that fails says so itself, and has no buffer any more.
      for (const each of ahead) {
        const [result] = await Promise.allSettled([each])
        if (result.status === 'fulfilled' && result.value.buffer) this.#buffers.giveBack(result.value.buffer)
      }
    }
  }

  /** @throws what reading throws, and looking at the snapshot */
  async #piece(part: Part): Promise<Piece> {
    const { validity } = this.#served
    if (part.position === undefined) {
      await validity.confirm()
      return { content: undefined, buffer: undefined }
    }
    const buffer = await this.#buffers.take()
    try {
      const content = await this.#export.data.read(part, buffer)
      await validity.confirm()
      return { content, buffer }
    } catch (error) {
      if (mayStillBeWrittenTo(error)) this.#buffers.lose()
      else this.#buffers.giveBack(buffer)
      throw error
    }
  }

  async #blockStatus(request: Request): Promise<void> {
    const { cookie, offset, length, flags } = request
    const onlyFirst = (flags & commandFlag.requestOne) !== 0
    try {
      const chunks: Buffer[] = []
      for (const [id, name] of this.#contexts.entries()) {
        const map = this.#export.contexts.get(name)
        if (!map) throw new TypeError(`no context ${name}`)
        chunks.push(encodeBlockStatus(cookie, id, await map.status(offset, length, onlyFirst), false))
      }
      await this.#served.validity.confirm()
      await this.#send(...chunks, encodeDone(cookie))
    } catch (error) {
      await this.#failFor(request, error)
    }
  }

  async #failFor(request: Request, thrown: unknown): Promise<void> {
    const error = asDeltamapperError(thrown)
    this.#served.onFailure(error)
    const isOver = this.#served.validity.failure !== undefined
    await this.#fail(request, isOver ? nbdError.ESHUTDOWN : nbdError.EIO, error.line)
  }

  async #fail({ command: asked, cookie }: Request, number: number, message: string): Promise<void> {
    const chunked = this.#structured && (asked === command.read || asked === command.blockStatus)
    if (chunked) await this.#send(encodeErrorChunk(cookie, number, message))
    else await this.#inTurn(() => this.#send(encodeSimpleReply(cookie, number)))
  }

  async #send(...buffers: Buffer[]): Promise<void> {
    await sent(this.#socket, buffers)
  }

  /** Where replies are simple, they go one after the other; chunks say themselves whose they are. */
  #inTurn(send: () => Promise<void>): Promise<void> {
    if (this.#structured) return send()
    const turn = this.#turn.then(send)
    this.#turn = turn.catch(() => undefined)
    return turn
  }
}

/** What was read, and what it is in; undefined for a hole. */
interface Piece {
  readonly content: Buffer | undefined
  readonly buffer: Buffer | undefined
}

/** Its read was given up, and not by the kernel. */
function mayStillBeWrittenTo(error: unknown): boolean {
  return error instanceof Error && error.cause instanceof Unanswered && error.cause.sent
}

const ZEROS = Buffer.alloc(PIECE_BYTES)

/** So many zeros, which take no memory of their own. */
function zeros(size: number): Buffer[] {
  const whole = Array.from({ length: Math.floor(size / PIECE_BYTES) }, () => ZEROS)
  return [...whole, ZEROS.subarray(0, size % PIECE_BYTES)]
}

function inPieces(part: Part): Part[] {
  if (part.position === undefined || part.size <= PIECE_BYTES) return [part]
  const pieces: Part[] = []
  for (let at = 0; at < part.size; at += PIECE_BYTES) {
    const size = Math.min(PIECE_BYTES, part.size - at)
    pieces.push({ offset: part.offset + at, size, position: part.position + at })
  }
  return pieces
}
