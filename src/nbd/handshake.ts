/**
 * The handshake's bytes: what client and server say before the first request (proto.md, "Newstyle negotiation" and
 * "Option haggling").
 *
 *   server   u64 INIT_MAGIC, u64 OPTION_MAGIC, u16 flags
 *   client   u32 flags
 *   client   u64 OPTION_MAGIC, u32 option, u32 length, data             as often as it likes
 *   server   u64 OPTION_REPLY_MAGIC, u32 option, u32 type, u32 length, data
 *
 * Whatever a client sends is decoded here to a value or to undefined; nothing throws, and no length is believed before
 * it was compared with what is there.
 */
import {
  handshakeFlag,
  info,
  INIT_MAGIC,
  MAX_STRING_BYTES,
  option,
  OPTION_MAGIC,
  OPTION_REPLY_MAGIC,
  optionReply
} from './protocol.ts'

export const GREETING = (() => {
  const bytes = Buffer.alloc(18)
  bytes.writeBigUInt64BE(INIT_MAGIC, 0)
  bytes.writeBigUInt64BE(OPTION_MAGIC, 8)
  bytes.writeUInt16BE(handshakeFlag.fixedNewstyle | handshakeFlag.noZeroes, 16)
  return bytes
})()

export const CLIENT_FLAGS_BYTES = 4
export const OPTION_HEADER_BYTES = 16

/** Undefined where a flag is set that was not offered: the connection has to end then. */
export function decodeClientFlags(bytes: Buffer): { readonly noZeroes: boolean } | undefined {
  const flags = bytes.readUInt32BE(0)
  if ((flags & ~(handshakeFlag.fixedNewstyle | handshakeFlag.noZeroes)) !== 0) return undefined
  return { noZeroes: (flags & handshakeFlag.noZeroes) !== 0 }
}

export interface OptionHeader {
  readonly option: number
  /** Bytes that follow. */
  readonly length: number
}

/** Undefined for what is no option. @param bytes OPTION_HEADER_BYTES of them */
export function decodeOptionHeader(bytes: Buffer): OptionHeader | undefined {
  if (bytes.readBigUInt64BE(0) !== OPTION_MAGIC) return undefined
  return { option: bytes.readUInt32BE(8), length: bytes.readUInt32BE(12) }
}

export function encodeOptionReply(option: number, type: number, data: Buffer = Buffer.alloc(0)): Buffer {
  const header = Buffer.alloc(20)
  header.writeBigUInt64BE(OPTION_REPLY_MAGIC, 0)
  header.writeUInt32BE(option, 8)
  header.writeUInt32BE(type, 12)
  header.writeUInt32BE(data.length, 16)
  return Buffer.concat([header, data])
}

/** An error reply says why, for people. */
export function encodeOptionError(option: number, type: number, why: string): Buffer {
  return encodeOptionReply(option, type, Buffer.from(why.slice(0, MAX_STRING_BYTES / 4)))
}

/** Reads fields off the front of an option's data. Each answers undefined once something was not there. */
class Fields {
  readonly #data: Buffer
  #at = 0

  constructor(data: Buffer) {
    this.#data = data
  }

  u16(): number | undefined {
    return this.#has(2) ? this.#data.readUInt16BE((this.#at += 2) - 2) : undefined
  }

  u32(): number | undefined {
    return this.#has(4) ? this.#data.readUInt32BE((this.#at += 4) - 4) : undefined
  }

  /** A u32 length and as many bytes of UTF-8. */
  text(): string | undefined {
    const length = this.u32()
    if (length === undefined || length > MAX_STRING_BYTES || !this.#has(length)) return undefined
    return decodeText(this.#data.subarray(this.#at, (this.#at += length)))
  }

  get isAtEnd(): boolean {
    return this.#at === this.#data.length
  }

  #has(bytes: number): boolean {
    return this.#at + bytes <= this.#data.length
  }
}

const strictText = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

/** Undefined for what is no UTF-8, or holds a NUL. */
function decodeText(bytes: Buffer): string | undefined {
  if (bytes.includes(0)) return undefined
  try {
    return strictText.decode(bytes)
  } catch {
    return undefined
  }
}

/** The data of NBD_OPT_EXPORT_NAME: the name alone. */
export function decodeExportName(data: Buffer): string | undefined {
  return data.length > MAX_STRING_BYTES ? undefined : decodeText(data)
}

export interface InfoRequest {
  readonly exportName: string
  /** Which information is wanted besides that of the export, at most as many as there are numbers for. */
  readonly wanted: ReadonlySet<number>
}

/** The data of NBD_OPT_INFO and NBD_OPT_GO: u32 length, name, u16 count, u16 each. */
export function decodeInfoRequest(data: Buffer): InfoRequest | undefined {
  const fields = new Fields(data)
  const exportName = fields.text()
  const count = fields.u16()
  if (exportName === undefined || count === undefined) return undefined
  const wanted = new Set<number>()
  for (let i = 0; i < count; i++) {
    const each = fields.u16()
    if (each === undefined) return undefined
    wanted.add(each)
  }
  return fields.isAtEnd ? { exportName, wanted } : undefined
}

export interface MetaContextRequest {
  readonly exportName: string
  readonly queries: readonly string[]
}

/**
 * The data of NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT: u32 length, name, u32 count, each u32 length and
 * string.
 */
export function decodeMetaContextRequest(data: Buffer): MetaContextRequest | undefined {
  const fields = new Fields(data)
  const exportName = fields.text()
  const count = fields.u32()
  // Each query takes four bytes at least.
  if (exportName === undefined || count === undefined || count > data.length / 4) return undefined
  const queries: string[] = []
  for (let i = 0; i < count; i++) {
    const query = fields.text()
    if (query === undefined) return undefined
    queries.push(query)
  }
  return fields.isAtEnd ? { exportName, queries } : undefined
}

/** @param sizeBytes of the export @param flags transmission flags */
export function encodeExportInfo(sizeBytes: number, flags: number): Buffer {
  const data = Buffer.alloc(12)
  data.writeUInt16BE(info.export, 0)
  data.writeBigUInt64BE(BigInt(sizeBytes), 2)
  data.writeUInt16BE(flags, 10)
  return data
}

export function encodeTextInfo(type: typeof info.name | typeof info.description, text: string): Buffer {
  const head = Buffer.alloc(2)
  head.writeUInt16BE(type, 0)
  return Buffer.concat([head, Buffer.from(text)])
}

/** All in bytes. */
export function encodeBlockSizeInfo(minimum: number, preferred: number, maximum: number): Buffer {
  const data = Buffer.alloc(14)
  data.writeUInt16BE(info.blockSize, 0)
  data.writeUInt32BE(minimum, 2)
  data.writeUInt32BE(preferred, 6)
  data.writeUInt32BE(maximum, 10)
  return data
}

/** One export of NBD_OPT_LIST. */
export function encodeListedExport(name: string): Buffer {
  const bytes = Buffer.from(name)
  const length = Buffer.alloc(4)
  length.writeUInt32BE(bytes.length, 0)
  return encodeOptionReply(option.list, optionReply.server, Buffer.concat([length, bytes]))
}

/** @param id what block status replies call the context; 0 in a list */
export function encodeMetaContext(option: number, id: number, name: string): Buffer {
  const head = Buffer.alloc(4)
  head.writeUInt32BE(id, 0)
  return encodeOptionReply(option, optionReply.metaContext, Buffer.concat([head, Buffer.from(name)]))
}

/** The answer to NBD_OPT_EXPORT_NAME, which has no other form, not even for errors. */
export function encodeExportNameReply(sizeBytes: number, flags: number, noZeroes: boolean): Buffer {
  const data = Buffer.alloc(noZeroes ? 10 : 134)
  data.writeBigUInt64BE(BigInt(sizeBytes), 0)
  data.writeUInt16BE(flags, 8)
  return data
}
