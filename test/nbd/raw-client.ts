/**
 * A client that knows the protocol's bytes by itself, and can say anything: written from the specification, sharing nothing with the server.
 */
import { once } from 'node:events'
import { connect, type Socket } from 'node:net'

export function u16(value: number): Buffer {
  const bytes = Buffer.alloc(2)
  bytes.writeUInt16BE(value)
  return bytes
}

export function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32BE(value)
  return bytes
}

export function u64(value: bigint): Buffer {
  const bytes = Buffer.alloc(8)
  bytes.writeBigUInt64BE(BigInt.asUintN(64, value))
  return bytes
}

export const text = (value: string): Buffer => Buffer.concat([u32(Buffer.byteLength(value)), Buffer.from(value)])

export function optionBytes(number: number, data: Buffer = Buffer.alloc(0), length = data.length): Buffer {
  return Buffer.concat([Buffer.from('IHAVEOPT'), u32(number), u32(length), data])
}

export const goBytes = (name: string, ...infos: number[]) =>
  Buffer.concat([text(name), u16(infos.length), ...infos.map(u16)])

export const queriesBytes = (name: string, ...queries: string[]) =>
  Buffer.concat([text(name), u32(queries.length), ...queries.map(text)])

export interface RawRequest {
  flags?: number
  type: number
  cookie?: bigint
  offset?: bigint
  length?: number
}

export function requestBytes({ flags = 0, type, cookie = 7n, offset = 0n, length = 0 }: RawRequest): Buffer {
  return Buffer.concat([u32(0x25609513), u16(flags), u16(type), u64(cookie), u64(offset), u32(length)])
}

export interface OptionReply {
  option: number
  type: number
  data: Buffer
}

export interface Chunk {
  flags: number
  type: number
  cookie: bigint
  payload: Buffer
}

export class RawClient {
  readonly socket: Socket
  #bytes = Buffer.alloc(0)
  #isOver = false
  #wake: (() => void) | undefined

  constructor(path: string) {
    this.socket = connect(path)
    const over = () => {
      this.#isOver = true
      this.#wake?.()
    }
    this.socket.on('data', (bytes) => {
      this.#bytes = Buffer.concat([this.#bytes, bytes])
      this.#wake?.()
    })
    this.socket.on('error', over).on('end', over).on('close', over)
  }

  /** Undefined where the server has said its last before. */
  async take(count: number): Promise<Buffer | undefined> {
    while (this.#bytes.length < count) {
      if (this.#isOver) return undefined
      await new Promise<void>((resolve) => (this.#wake = resolve))
    }
    const taken = this.#bytes.subarray(0, count)
    this.#bytes = this.#bytes.subarray(count)
    return taken
  }

  send(...parts: Buffer[]): void {
    this.socket.write(Buffer.concat(parts))
  }

  /** The greeting, answered. */
  async greet(flags = 3): Promise<Buffer | undefined> {
    const greeting = await this.take(18)
    this.send(u32(flags))
    return greeting
  }

  async optionReply(): Promise<OptionReply | undefined> {
    const head = await this.take(20)
    if (!head) return undefined
    if (head.readBigUInt64BE() !== 0x3e889045565a9n) throw new Error('no option reply')
    const data = await this.take(head.readUInt32BE(16))
    return data && { option: head.readUInt32BE(8), type: head.readUInt32BE(12), data }
  }

  /** Replies up to the one that ends it. */
  async option(number: number, data?: Buffer): Promise<OptionReply[]> {
    this.send(optionBytes(number, data))
    const replies: OptionReply[] = []
    for (;;) {
      const reply = await this.optionReply()
      if (!reply) return replies
      replies.push(reply)
      if (reply.type === 1 || reply.type >= 2 ** 31) return replies
    }
  }

  async chunk(): Promise<Chunk | undefined> {
    const head = await this.take(20)
    if (!head) return undefined
    if (head.readUInt32BE() !== 0x668e33ef) throw new Error(`no chunk: ${head.toString('hex')}`)
    const payload = await this.take(head.readUInt32BE(16))
    return (
      payload && {
        ...{ flags: head.readUInt16BE(4), type: head.readUInt16BE(6), cookie: head.readBigUInt64BE(8) },
        payload
      }
    )
  }

  /** The chunks of one reply. */
  async chunks(): Promise<Chunk[]> {
    const chunks: Chunk[] = []
    for (;;) {
      const chunk = await this.chunk()
      if (!chunk) return chunks
      chunks.push(chunk)
      if ((chunk.flags & 1) !== 0) return chunks
    }
  }

  async simpleReply(): Promise<{ error: number; cookie: bigint } | undefined> {
    const head = await this.take(16)
    if (!head) return undefined
    if (head.readUInt32BE() !== 0x67446698) throw new Error('no simple reply')
    return { error: head.readUInt32BE(4), cookie: head.readBigUInt64BE(8) }
  }

  async close(): Promise<void> {
    if (this.socket.destroyed) return
    const closed = once(this.socket, 'close')
    this.socket.destroy()
    await closed
  }
}
