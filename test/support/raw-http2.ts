/**
 * HTTP/2 by hand (RFC 9113), as only somebody with bad intentions speaks it: frames as fast as a socket takes them, with no regard to what the
 * other side says. Node's own client sends no call that it has already cancelled, and no more than it was allowed.
 */
import { once } from 'node:events'
import { connect, type Socket } from 'node:net'

const PREFACE = Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n')
const FRAME = { data: 0, headers: 1, reset: 3, settings: 4, goaway: 7, windowUpdate: 8 } as const
const [END_STREAM, END_HEADERS, ACK] = [1, 4, 1]
const CANCEL = Buffer.from([0, 0, 0, 8])

function frame(type: number, flags: number, stream: number, payload: Buffer = Buffer.alloc(0)): Buffer {
  const header = Buffer.alloc(9)
  header.writeUIntBE(payload.length, 0, 3)
  header[3] = type
  header[4] = flags
  header.writeUInt32BE(stream, 5)
  return Buffer.concat([header, payload])
}

/** Header fields as literals without indexing (RFC 7541, 6.2.2), so that no state is needed. */
function headerBlock(fields: Record<string, string>): Buffer {
  const text = (value: string) => Buffer.concat([Buffer.from([value.length]), Buffer.from(value)])
  return Buffer.concat(Object.entries(fields).flatMap(([name, value]) => [Buffer.from([0]), text(name), text(value)]))
}

export interface RawOptions {
  /**
   * What the other side may send of each stream before it is told that it was read, in bytes; 65,535 unless given. Of the whole connection as
   * much where it is more, else 65,535. Nothing is ever told.
   */
  readonly window?: number
  readonly path?: string
}

export class RawConnection {
  readonly socket: Socket
  /** Bytes of answers that have arrived, by stream. */
  readonly received = new Map<number, number>()
  /** Streams that have ended, each with the flag END_STREAM (0) or an error code. */
  readonly ended = new Map<number, number>()
  /** Error codes of all GOAWAY frames. */
  readonly goaways: number[] = []
  #nextStream = 1
  #unread = Buffer.alloc(0)
  readonly #headers: Buffer

  private constructor(socket: Socket, { path = '/csi.v1.SnapshotMetadata/GetMetadataAllocated' }: RawOptions) {
    this.socket = socket
    this.#headers = headerBlock({
      ...{ ':method': 'POST', ':scheme': 'http', ':path': path, ':authority': 'localhost' },
      ...{ 'content-type': 'application/grpc', te: 'trailers' }
    })
    socket.on('error', () => undefined)
    socket.on('data', (bytes: Buffer) => this.#read(bytes))
  }

  static async open(path: string, options: RawOptions = {}): Promise<RawConnection> {
    const socket = connect(path)
    const connection = new RawConnection(socket, options)
    await once(socket, 'connect')
    // SETTINGS_INITIAL_WINDOW_SIZE.
    const settings = Buffer.alloc(6)
    settings.writeUInt16BE(4, 0)
    settings.writeUInt32BE(options.window ?? 65_535, 2)
    socket.write(Buffer.concat([PREFACE, frame(FRAME.settings, 0, 0, settings)]))
    const more = (options.window ?? 0) - 65_535
    if (more > 0) {
      const increment = Buffer.alloc(4)
      increment.writeUInt32BE(more, 0)
      socket.write(frame(FRAME.windowUpdate, 0, 0, increment))
    }
    return connection
  }

  /** The frames of so many calls, each with its message; cancelled at once, or left. */
  calls(count: number, message: Buffer, cancelled: boolean): Buffer {
    const frames: Buffer[] = []
    for (let i = 0; i < count; i++) {
      const stream = this.#nextStream
      this.#nextStream += 2
      frames.push(frame(FRAME.headers, END_HEADERS, stream, this.#headers))
      frames.push(frame(FRAME.data, END_STREAM, stream, message))
      if (cancelled) frames.push(frame(FRAME.reset, 0, stream, CANCEL))
    }
    return Buffer.concat(frames)
  }

  /** Begins a call. @returns its stream */
  call(message: Buffer): number {
    this.socket.write(this.calls(1, message, false))
    return this.#nextStream - 2
  }

  cancel(stream: number): void {
    this.socket.write(frame(FRAME.reset, 0, stream, CANCEL))
  }

  #read(bytes: Buffer): void {
    this.#unread = Buffer.concat([this.#unread, bytes])
    while (this.#unread.length >= 9) {
      const length = this.#unread.readUIntBE(0, 3)
      if (this.#unread.length < 9 + length) return
      const [type, flags] = [this.#unread[3], this.#unread[4]]
      const stream = this.#unread.readUInt32BE(5) & 0x7fffffff
      const payload = this.#unread.subarray(9, 9 + length)
      this.#unread = this.#unread.subarray(9 + length)
      if (type === FRAME.settings && (flags & ACK) === 0) this.socket.write(frame(FRAME.settings, ACK, 0))
      if (type === FRAME.data) this.received.set(stream, (this.received.get(stream) ?? 0) + length)
      if (type === FRAME.goaway) this.goaways.push(payload.readUInt32BE(4))
      if (type === FRAME.reset) this.ended.set(stream, payload.readUInt32BE(0))
      else if ((type === FRAME.data || type === FRAME.headers) && (flags & END_STREAM) !== 0) this.ended.set(stream, 0)
    }
  }
}
