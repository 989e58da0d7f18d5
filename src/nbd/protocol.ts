/**
 * The numbers of NBD, the network block device protocol (NetworkBlockDevice/nbd, doc/proto.md). All integers are big
 * endian. Only what a read-only server of fixed newstyle with structured replies needs.
 */

/** What the server says first, twice eight bytes: "NBDMAGIC" and "IHAVEOPT". The second also begins every option. */
export const INIT_MAGIC = 0x4e42444d41474943n
export const OPTION_MAGIC = 0x49484156454f5054n
export const OPTION_REPLY_MAGIC = 0x3e889045565a9n
export const REQUEST_MAGIC = 0x25609513
export const SIMPLE_REPLY_MAGIC = 0x67446698
export const CHUNK_MAGIC = 0x668e33ef

/** Of the server's greeting; a client answers with the same bits. */
export const handshakeFlag = { fixedNewstyle: 1, noZeroes: 2 } as const

export const option = {
  exportName: 1,
  abort: 2,
  list: 3,
  info: 6,
  go: 7,
  structuredReply: 8,
  listMetaContext: 9,
  setMetaContext: 10
} as const

const ERROR_BIT = 2 ** 31
export const optionReply = {
  ack: 1,
  server: 2,
  info: 3,
  metaContext: 4,
  unsupported: ERROR_BIT + 1,
  invalid: ERROR_BIT + 3,
  unknown: ERROR_BIT + 6,
  shutdown: ERROR_BIT + 7,
  tooBig: ERROR_BIT + 9
} as const

export const info = { export: 0, name: 1, description: 2, blockSize: 3 } as const

/** Of an export. Nothing is ever written, so that flushing does nothing, and several connections see the same. */
export const transmissionFlag = { hasFlags: 1, readOnly: 2, sendFlush: 4, canMultiConn: 256 } as const

export const command = {
  read: 0,
  write: 1,
  disconnect: 2,
  flush: 3,
  trim: 4,
  cache: 5,
  writeZeroes: 6,
  blockStatus: 7
} as const

/** Of a request. */
export const commandFlag = { fua: 1, noHole: 2, requestOne: 8 } as const

export const chunk = { none: 0, offsetData: 1, offsetHole: 2, blockStatus: 5, error: 0x8001 } as const
export const CHUNK_DONE = 1

/** Numbers of Linux's errno, which NBD took over. */
export const nbdError = { EPERM: 1, EIO: 5, EINVAL: 22, ENOTSUP: 95, ESHUTDOWN: 108 } as const

/** What a client may ask to read in one request, in bytes, and the most that it may send in one. */
export const MAX_PAYLOAD_BYTES = 32 * 1024 * 1024
/** The protocol's limit for strings: names of exports and of contexts. */
export const MAX_STRING_BYTES = 4096
/** Options with more data than this get an error, in bytes: a list of queries is the longest that makes sense. */
export const MAX_OPTION_BYTES = 64 * 1024

/** States of `base:allocation`: bits of a descriptor's flags. */
export const HOLE = 1
export const ZERO = 2
/** The state of `qemu:dirty-bitmap:` for what differs. */
export const DIRTY = 1
