/**
 * The two hot messages, csi.v1 GetMetadataAllocatedResponse and GetMetadataDeltaResponse, straight to and from protobuf
 * bytes.
 *
 * Both have the same shape and field numbers, so one codec serves both:
 *
 *     08 02                       block_metadata_type = 1, varint: VARIABLE_LENGTH
 *     10 <capacity>               volume_capacity_bytes = 2, varint
 *     1a <length> (               block_metadata = 3, once per extent, length-delimited:
 *       08 <offset>                 byte_offset = 1, varint
 *       10 <size> )*                size_bytes = 2, varint
 *
 * A varint holds 7 bits a byte, the lowest first; its top bit says that another byte follows. An int64 takes up to 10
 * bytes, but no value here reaches 2^53 (8 bytes), so plain numbers carry them exactly and an extent takes at most 20
 * bytes. Fields that are zero are left out, as proto3 serializers do.
 * (https://protobuf.dev/programming-guides/encoding)
 */
import { defect, DeltamapperError } from '../errors.ts'
import type { ExtentBatch } from '../devicemapper/extents.ts'

/**
 * The most extents in a message, whatever a client would take: about 100 KB. So the first message leaves soon, and the
 * stream has few messages. More would gain nothing, and every running stream holds a few messages.
 */
export const tuplesPerMessage = 8192

/**
 * No message is larger than this many bytes: half of the 4 MiB that gRPC clients, the CSI sidecar among them, accept.
 */
export const maximumMessageBytes = 2 * 1024 * 1024

/** What a CSI server says about the sizes in its stream (csi.v1 BlockMetadataType). */
export const BlockMetadataType = { UNKNOWN: 0, FIXED_LENGTH: 1, VARIABLE_LENGTH: 2 } as const

const maximumHeaderBytes = 2 + 1 + 8
const maximumTupleBytes = 2 + 1 + 8 + 1 + 8

/**
 * Where messages are written before they are cut to size. An encoder has one in the middle of a message, and none while
 * its last message waits to be sent. So many answers at a time need only a few.
 */
class MessageMemory {
  readonly bytes = new Uint8Array(maximumHeaderBytes + tuplesPerMessage * maximumTupleBytes)
  readonly view = new DataView(this.bytes.buffer)
}
const spareMemory: MessageMemory[] = []
const spareMemoryKept = 8

const typeTag = 0x08
const capacityTag = 0x10
const tupleTag = 0x1a
const offsetTag = 0x08
const sizeTag = 0x10

/** What a tuple begins with, without its length. */
const tupleAndOffsetTags = tupleTag | (offsetTag << 16)
/** Four varint bytes that all go on. */
const allContinued = 0x80808080 | 0

const twoTo28 = 2 ** 28

/**
 * Turns extents into messages. Feed it with `add` until it is full, take the message with `finish`, and go on; each
 * message repeats the type and the capacity.
 *
 * It refuses (DM_INTERNAL) extents that no CSI server may send: a size of 0, an extent that begins before the previous
 * one ended, an extent beyond the capacity. This protects from defects, at about a nanosecond per extent; it is no
 * input validation.
 */
export class BlockMetadataEncoder {
  /** Extents added since the last `finish`. */
  count = 0
  /** Bytes of the volume that they cover. */
  extentBytes = 0

  readonly #maximumCount: number
  readonly #capacityBytes: number
  /** Undefined between messages. */
  #memory: MessageMemory | undefined
  #position = 0
  #previousEnd = 0

  /**
   * @param capacityBytes size of the (target) snapshot, 0 to 2^53 - 1
   * @param maxTuples the most extents in one message: the request's `max_results`, or 0 for `tuplesPerMessage`, which
   *   is also the limit
   */
  constructor(capacityBytes: number, maxTuples: number) {
    if (!Number.isSafeInteger(capacityBytes) || capacityBytes < 0)
      throw defect(`capacity ${capacityBytes} is no byte count`)
    this.#capacityBytes = capacityBytes
    this.#maximumCount = Math.min(maxTuples > 0 ? maxTuples : tuplesPerMessage, tuplesPerMessage)
  }

  /** No more extents fit: `finish` before the next `add`. */
  get isFull(): boolean {
    return this.count === this.#maximumCount
  }

  /**
   * Adds a batch's extents from the one at `from` on, as many as fit. All offsets and sizes are integers.
   *
   * @returns the first that did not fit; the batch's count if all did
   * @throws DM_INTERNAL; nothing of the message may be used then
   */
  add({ count, offsets, sizes }: ExtentBatch, from: number): number {
    if (this.isFull) throw defect('an extent was added to a message that is full')
    const memory = (this.#memory ??= this.#begin())
    const { view } = memory
    const capacity = this.#capacityBytes
    const to = Math.min(count, from + this.#maximumCount - this.count)
    let [position, previousEnd, extentBytes] = [this.#position, this.#previousEnd, this.extentBytes]
    // Neighbours mostly have these in common.
    let [high, highLength] = [-1, 0]
    let [highBytes, sizeBytes, sizeLength] = [0, 0, 0]
    let lastSize = -1
    for (let i = from; i < to; i++) {
      const offset = offsets[i]
      const size = sizes[i]
      const end = offset + size
      // Written so that NaN fails as well.
      if (!(offset >= previousEnd && size > 0 && end <= capacity)) this.#refuse(offset, size, previousEnd)
      previousEnd = end
      extentBytes += size
      if (offset < twoTo28 || size >= twoTo28) {
        position = writeTuple(memory.bytes, position, offset, size)
        continue
      }
      const rest = (offset / twoTo28) | 0
      if (rest !== high) {
        high = rest
        highLength = varintLength(rest)
        highBytes = fourVarintBytes(rest) | continued(highLength)
      }
      if (size !== lastSize) {
        lastSize = size
        sizeLength = varintLength(size)
        sizeBytes = fourVarintBytes(size) | continued(sizeLength)
      }
      // Four bytes at a time; those beyond a varint's end are written over by what follows.
      view.setInt32(position, tupleAndOffsetTags | ((6 + highLength + sizeLength) << 8), true)
      view.setInt32(position + 3, fourVarintBytes(offset | 0) | allContinued, true)
      view.setInt32(position + 7, highBytes, true)
      position += 7 + highLength
      view.setUint8(position, sizeTag)
      view.setInt32(position + 1, sizeBytes, true)
      position += 1 + sizeLength
    }
    this.count += to - from
    this.extentBytes = extentBytes
    this.#position = position
    this.#previousEnd = previousEnd
    return to
  }

  /**
   * The message with everything added since the last one; an empty one tells only type and capacity. It has an
   * ArrayBuffer of its own size, so that it can be transferred to another thread. The next message begins.
   */
  finish(): Uint8Array<ArrayBuffer> {
    const memory = this.#memory ?? this.#begin()
    const message = memory.bytes.slice(0, this.#position)
    if (spareMemory.length < spareMemoryKept) spareMemory.push(memory)
    this.#memory = undefined
    this.count = this.extentBytes = 0
    return message
  }

  #begin(): MessageMemory {
    const memory = spareMemory.pop() ?? new MessageMemory()
    const { bytes } = memory
    bytes[0] = typeTag
    bytes[1] = BlockMetadataType.VARIABLE_LENGTH
    this.#position = 2
    if (this.#capacityBytes > 0) {
      bytes[this.#position++] = capacityTag
      this.#position = writeVarint(bytes, this.#position, this.#capacityBytes)
    }
    return memory
  }

  #refuse(offset: number, size: number, previousEnd: number): never {
    throw defect(
      `extent of ${size} bytes at ${offset} does not fit after ${previousEnd} and before ${this.#capacityBytes} (capacity)`
    )
  }
}

/** An extent of any place and size, a byte at a time. Returns the position after it. */
function writeTuple(bytes: Uint8Array, start: number, offset: number, size: number): number {
  bytes[start] = tupleTag
  let position = start + 2
  if (offset > 0) {
    bytes[position++] = offsetTag
    position = writeVarint(bytes, position, offset)
  }
  bytes[position++] = sizeTag
  position = writeVarint(bytes, position, size)
  bytes[start + 1] = position - start - 2
  return position
}

/** Bytes that a varint of up to 28 bits takes: 1 to 4. */
function varintLength(value: number): number {
  return ((38 - Math.clz32(value | 1)) / 7) | 0
}

/** The lowest 28 bits, 7 to a byte, the lowest byte first. */
function fourVarintBytes(value: number): number {
  return (value & 0x7f) | ((value & 0x3f80) << 1) | ((value & 0x1fc000) << 2) | ((value & 0xfe00000) << 3)
}

/** The top bits of so many varint bytes (1 to 4): all but the last go on. */
function continued(length: number): number {
  return allContinued & ((1 << (8 * (length - 1))) - 1)
}

/**
 * Writes an integer of 0 to 2^53 - 1 and returns the position after it. Bit operations work on 32 bits only, so larger
 * values are split: the lowest 28 bits are exactly four varint bytes, and what remains fits into 25 bits.
 */
function writeVarint(bytes: Uint8Array, position: number, value: number): number {
  let rest: number
  if (value < twoTo28) {
    rest = value | 0
  } else {
    const low = value | 0 // value modulo 2^32, exactly
    bytes[position] = (low & 0x7f) | 0x80
    bytes[position + 1] = ((low >>> 7) & 0x7f) | 0x80
    bytes[position + 2] = ((low >>> 14) & 0x7f) | 0x80
    bytes[position + 3] = ((low >>> 21) & 0x7f) | 0x80
    position += 4
    rest = Math.floor(value / twoTo28) | 0
  }
  while (rest > 0x7f) {
    bytes[position++] = (rest & 0x7f) | 0x80
    rest >>>= 7
  }
  bytes[position++] = rest
  return position
}

/** One decoded message, to be used again for the next: its arrays grow with the longest message seen. */
export class BlockMetadataMessage implements ExtentBatch {
  /** One of `BlockMetadataType`, or a number this version does not know. */
  type: number = BlockMetadataType.UNKNOWN
  capacityBytes = 0
  count = 0
  offsets = new Float64Array(1024)
  sizes = new Float64Array(1024)
}

/**
 * Reads a GetMetadataAllocatedResponse or GetMetadataDeltaResponse into `into`, whose former content is lost.
 *
 * As protobuf demands, absent fields are 0, of a repeated scalar the last one counts, and unknown fields are skipped.
 * Malformed protobuf, and every number beyond 2^53 - 1 or below 0, throws DM_ANSWER_INVALID. The caller checks what the
 * numbers mean: order, overlap and empty extents.
 */
export function decodeBlockMetadata(bytes: Uint8Array, into: BlockMetadataMessage): void {
  into.type = BlockMetadataType.UNKNOWN
  into.capacityBytes = 0
  into.count = 0
  const end = bytes.length
  let position = 0
  while (position < end) {
    const tag = readVarint(bytes, position, end)
    position = cursor
    if (tag === tupleTag) {
      const length = readVarint(bytes, position, end)
      position = cursor
      if (length > end - position) throw truncated(end)
      if (into.count === into.offsets.length) grow(into)
      decodeTuple(bytes, position, position + length, into)
      position += length
    } else if (tag === typeTag) {
      into.type = readVarint(bytes, position, end)
      position = cursor
    } else if (tag === capacityTag) {
      into.capacityBytes = readVarint(bytes, position, end)
      position = cursor
    } else {
      if (fieldOf(tag) <= 3) throw malformed(`field ${fieldOf(tag)} has wire type ${tag % 8}`, position)
      position = skipField(bytes, position, end, tag)
    }
  }
}

function decodeTuple(bytes: Uint8Array, start: number, end: number, into: BlockMetadataMessage): void {
  let offset = 0
  let size = 0
  let position = start
  while (position < end) {
    let tag = bytes[position++]
    if (tag >= 0x80) {
      tag = readVarint(bytes, position - 1, end)
      position = cursor
    }
    if (tag === offsetTag) {
      offset = readVarint(bytes, position, end)
      position = cursor
    } else if (tag === sizeTag) {
      size = readVarint(bytes, position, end)
      position = cursor
    } else {
      if (fieldOf(tag) <= 2) throw malformed(`field ${fieldOf(tag)} has wire type ${tag % 8}`, position)
      position = skipField(bytes, position, end, tag)
    }
  }
  into.offsets[into.count] = offset
  into.sizes[into.count] = size
  into.count++
}

function grow(into: BlockMetadataMessage): void {
  const { offsets, sizes } = into
  into.offsets = new Float64Array(offsets.length * 2)
  into.offsets.set(offsets)
  into.sizes = new Float64Array(sizes.length * 2)
  into.sizes.set(sizes)
}

/** Where the last varint ended: a second result without an object for each of millions of varints. */
let cursor = 0

/**
 * Reads a varint that ends before `end`. Throws when it is cut off, longer than 64 bits, or beyond 2^53 - 1 (as
 * negative numbers are).
 */
function readVarint(bytes: Uint8Array, position: number, end: number): number {
  if (position >= end) throw truncated(end)
  let byte = bytes[position++]
  if (byte < 0x80) {
    cursor = position
    return byte
  }
  const start = position - 1
  let low = byte & 0x7f // bits 0 to 27
  let shift = 7
  do {
    if (position >= end) throw truncated(end)
    byte = bytes[position++]!
    low |= (byte & 0x7f) << shift
    shift += 7
  } while (byte >= 0x80 && shift < 28)
  if (byte < 0x80) {
    cursor = position
    return low
  }
  let high = 0 // bits 28 to 55
  shift = 0
  do {
    if (position >= end) throw truncated(end)
    byte = bytes[position++]!
    high |= (byte & 0x7f) << shift
    shift += 7
  } while (byte >= 0x80 && shift < 28)
  let top = 0 // bits 56 to 63; the tenth byte may hold bit 63 only
  if (byte >= 0x80) {
    if (position >= end) throw truncated(end)
    byte = bytes[position++]!
    top = byte & 0x7f
    if (byte >= 0x80) {
      if (position >= end) throw truncated(end)
      byte = bytes[position++]!
      if (byte > 1) throw malformed('a varint of more than 64 bits', start)
      top |= byte
    }
  }
  if (top !== 0 || high >= 2 ** 25) throw malformed('a number below 0 or beyond 2^53', start)
  cursor = position
  return high * twoTo28 + low
}

const fieldOf = (tag: number) => Math.floor(tag / 8)

/**
 * Skips a field whose tag has just been read, and returns the position after it. Groups (wire types 3 and 4) may nest.
 */
function skipField(bytes: Uint8Array, start: number, end: number, firstTag: number): number {
  const openGroups: number[] = []
  let tag = firstTag
  let position = start
  for (;;) {
    const field = fieldOf(tag)
    if (field === 0 || tag >= 2 ** 32) throw malformed(`tag ${tag} is no field's`, position)
    switch (tag % 8) {
      case 0:
        position = skipVarint(bytes, position, end)
        break
      case 1:
        position += 8
        break
      case 2: {
        const length = readVarint(bytes, position, end)
        position = cursor + length
        break
      }
      case 3:
        openGroups.push(field)
        break
      case 4:
        if (openGroups.pop() !== field) throw malformed(`group ${field} ends without beginning`, position)
        break
      case 5:
        position += 4
        break
      default:
        throw malformed(`field ${field} has wire type ${tag % 8}`, position)
    }
    if (position > end) throw truncated(end)
    if (openGroups.length === 0) return position
    tag = readVarint(bytes, position, end)
    position = cursor
  }
}

/** An unknown varint may be any 64-bit value: only its length is checked. */
function skipVarint(bytes: Uint8Array, start: number, end: number): number {
  for (let position = start; position < start + 10; position++) {
    if (position >= end) throw truncated(end)
    const byte = bytes[position]
    if (byte < 0x80) {
      if (position === start + 9 && byte > 1) break
      return position + 1
    }
  }
  throw malformed('a varint of more than 64 bits', start)
}

function truncated(end: number): DeltamapperError {
  return malformed('the message is cut off', end)
}

function malformed(what: string, position: number): DeltamapperError {
  return new DeltamapperError(
    'DM_ANSWER_INVALID',
    `undecodable answer: ${what} (byte ${position} of the message)`,
    'do not use what was received of this answer; the server speaks another protocol or is defective'
  )
}
