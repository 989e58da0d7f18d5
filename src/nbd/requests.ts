/**
 * The bytes of the transmission phase (proto.md, "Transmission"):
 *
 *   request   u32 REQUEST_MAGIC, u16 flags, u16 command, u64 cookie, u64 offset, u32 length
 *   chunk     u32 CHUNK_MAGIC, u16 flags, u16 type, u64 cookie, u32 length, payload   one or more for each reply
 *   simple    u32 SIMPLE_REPLY_MAGIC, u32 error, u64 cookie, and for a read its data
 *
 * A cookie is the client's, and goes back as it came.
 */
import { chunk, CHUNK_DONE, CHUNK_MAGIC, REQUEST_MAGIC, SIMPLE_REPLY_MAGIC } from './protocol.ts'

export const REQUEST_BYTES = 28

export interface Request {
  readonly flags: number
  readonly command: number
  readonly cookie: bigint
  /** Bytes; not yet held against the export's size. Beyond 2^53 it is rounded, and is beyond every export anyhow. */
  readonly offset: number
  /** Bytes, 0 to 2^32 - 1. */
  readonly length: number
}

/** Undefined for what is no request: nothing that follows can be understood then. @param bytes REQUEST_BYTES of them */
export function decodeRequest(bytes: Buffer): Request | undefined {
  if (bytes.readUInt32BE(0) !== REQUEST_MAGIC) return undefined
  return {
    flags: bytes.readUInt16BE(4),
    command: bytes.readUInt16BE(6),
    cookie: bytes.readBigUInt64BE(8),
    offset: Number(bytes.readBigUInt64BE(16)),
    length: bytes.readUInt32BE(24)
  }
}

export function encodeSimpleReply(cookie: bigint, error = 0): Buffer {
  const bytes = Buffer.alloc(16)
  bytes.writeUInt32BE(SIMPLE_REPLY_MAGIC, 0)
  bytes.writeUInt32BE(error, 4)
  bytes.writeBigUInt64BE(cookie, 8)
  return bytes
}

/**
 * A chunk's header, with room for as much of its payload as the caller writes behind it.
 *
 * @param more bytes of payload sent apart
 */
function chunkHead(cookie: bigint, type: number, isLast: boolean, payload: number, more = 0): Buffer {
  const bytes = Buffer.alloc(20 + payload)
  bytes.writeUInt32BE(CHUNK_MAGIC, 0)
  bytes.writeUInt16BE(isLast ? CHUNK_DONE : 0, 4)
  bytes.writeUInt16BE(type, 6)
  bytes.writeBigUInt64BE(cookie, 8)
  bytes.writeUInt32BE(payload + more, 16)
  return bytes
}

/** What goes before the data of a part of a read. Offset and size in bytes. */
export function encodeDataHead(cookie: bigint, offset: number, size: number, isLast: boolean): Buffer {
  const bytes = chunkHead(cookie, chunk.offsetData, isLast, 8, size)
  bytes.writeBigUInt64BE(BigInt(offset), 20)
  return bytes
}

/** A part of a read that is zeros, without the zeros. @param size 1 to 2^32 - 1 */
export function encodeHole(cookie: bigint, offset: number, size: number, isLast: boolean): Buffer {
  const bytes = chunkHead(cookie, chunk.offsetHole, isLast, 12)
  bytes.writeBigUInt64BE(BigInt(offset), 20)
  bytes.writeUInt32BE(size, 28)
  return bytes
}

/** The last chunk of a reply that has nothing to say. */
export function encodeDone(cookie: bigint): Buffer {
  return chunkHead(cookie, chunk.none, true, 0)
}

/** The last chunk of a reply that failed: what was sent of it before does not count. The message is for people. */
export function encodeErrorChunk(cookie: bigint, error: number, message = ''): Buffer {
  const text = Buffer.from(message.slice(0, 1000))
  const bytes = chunkHead(cookie, chunk.error, true, 6 + text.length)
  bytes.writeUInt32BE(error, 20)
  bytes.writeUInt16BE(text.length, 24)
  text.copy(bytes, 26)
  return bytes
}

/** Consecutive ranges from the offset that was asked about. Sizes in bytes, 1 to 2^32 - 1. */
export interface Descriptor {
  readonly size: number
  readonly flags: number
}

export function encodeBlockStatus(
  cookie: bigint,
  contextId: number,
  descriptors: readonly Descriptor[],
  isLast: boolean
): Buffer {
  const bytes = chunkHead(cookie, chunk.blockStatus, isLast, 4 + 8 * descriptors.length)
  bytes.writeUInt32BE(contextId, 20)
  descriptors.forEach(({ size, flags }, i) => {
    bytes.writeUInt32BE(size, 24 + 8 * i)
    bytes.writeUInt32BE(flags, 28 + 8 * i)
  })
  return bytes
}
