/**
 * Reads GetMetadataAllocatedResponse and GetMetadataDeltaResponse piece by piece, as the bytes come: what is held is
 * one field at most, however large the message. (The layout is drawn in grpc/block-metadata.ts. That reader takes a
 * message as a whole and trusts no number beyond 2^53; a conformance run has to see every one.)
 */
import type { AnswerFold } from './answer.ts'
import { type Receiver, Undecodable } from './wire.ts'

/** A field's tag and length, and a BlockMetadata of every size that makes sense. */
const LONGEST_FIELD = 1024

const typeTag = 0x08
const capacityTag = 0x10
const tupleTag = 0x1a

/** What a field turned out to be: incomplete as yet. */
const INCOMPLETE = -1

export class MessageReader implements Receiver {
  readonly #fold: AnswerFold
  readonly #onMessage: (fold: AnswerFold) => boolean | Promise<boolean>
  /** The beginning of a field whose rest is to come. */
  readonly #carry = Buffer.alloc(LONGEST_FIELD + 32)
  #carried = 0
  /** Bytes of a field nobody knows that are still to come. */
  #skip = 0
  #type = 0
  #capacity = 0

  /** @param onMessage called after each message; true ends the call, a promise makes the driver wait */
  constructor(fold: AnswerFold, onMessage: (fold: AnswerFold) => boolean | Promise<boolean>) {
    this.#fold = fold
    this.#onMessage = onMessage
  }

  messageBegins(bytes: number): void {
    this.#fold.begin(bytes)
    this.#type = 0
    this.#capacity = 0
  }

  bytes(chunk: Uint8Array): void {
    this.#fold.body(chunk)
    let at = this.#skipped(chunk, 0)
    while (this.#carried > 0 && at < chunk.length) {
      const before = this.#carried
      const more = Math.min(chunk.length - at, this.#carry.length - before)
      this.#carry.set(chunk.subarray(at, at + more), before)
      const end = this.#field(this.#carry, 0, before + more)
      if (end === INCOMPLETE) {
        if (before + more === this.#carry.length) throw new Undecodable(this.#where('a field is too long'))
        this.#carried = before + more
        return
      }
      at = this.#skipped(chunk, at + end - before)
      this.#carried = 0
    }
    while (at < chunk.length) {
      const end = this.#field(chunk, at, chunk.length)
      if (end === INCOMPLETE) break
      at = this.#skipped(chunk, end)
    }
    if (at < chunk.length) {
      if (chunk.length - at > this.#carry.length) throw new Undecodable(this.#where('a field is too long'))
      this.#carry.set(chunk.subarray(at))
      this.#carried = chunk.length - at
    }
  }

  messageEnds(): boolean | Promise<boolean> {
    if (this.#carried > 0 || this.#skip > 0) throw new Undecodable(this.#where('it ends within a field'))
    this.#fold.end(this.#type, this.#capacity)
    return this.#onMessage(this.#fold)
  }

  /** Leaves out what is to be skipped; returns the place behind it. */
  #skipped(chunk: Uint8Array, at: number): number {
    const length = Math.min(this.#skip, chunk.length - at)
    this.#skip -= length
    return at + length
  }

  /** Takes one field and returns the place behind it, or INCOMPLETE. */
  #field(bytes: Uint8Array, start: number, end: number): number {
    let at = readVarint(bytes, start, end)
    if (at === INCOMPLETE) return at
    const tag = value
    if (tag === tupleTag) {
      at = readVarint(bytes, at, end)
      if (at === INCOMPLETE) return at
      const length = value
      if (length > LONGEST_FIELD) throw new Undecodable(this.#where(`a BlockMetadata has ${length} bytes`))
      if (at + length > end) return INCOMPLETE
      this.#tuple(bytes, at, at + length)
      return at + length
    }
    switch (tag & 7) {
      case 0:
        at = readVarint(bytes, at, end)
        if (at === INCOMPLETE) return at
        if (tag === typeTag) this.#type = value
        else if (tag === capacityTag) this.#capacity = value
        return at
      case 2:
        at = readVarint(bytes, at, end)
        if (at === INCOMPLETE) return at
        if (tag >> 3 <= 2) throw new Undecodable(this.#where(`field ${tag >> 3} has wire type 2`))
        this.#skip = Math.max(at + value - end, 0)
        return Math.min(at + value, end)
      case 1:
      case 5: {
        const width = (tag & 7) === 1 ? 8 : 4
        return at + width > end ? INCOMPLETE : at + width
      }
      default:
        throw new Undecodable(this.#where(`a field has tag ${tag}`))
    }
  }

  #tuple(bytes: Uint8Array, start: number, end: number): void {
    let [offset, size, at] = [0, 0, start]
    while (at < end) {
      at = readVarint(bytes, at, end)
      const tag = value
      if (at === INCOMPLETE) throw new Undecodable(this.#where('a BlockMetadata is cut off'))
      if ((tag & 7) === 0) {
        at = readVarint(bytes, at, end)
        if (at === INCOMPLETE) throw new Undecodable(this.#where('a BlockMetadata is cut off'))
        if (tag === 0x08) offset = value
        else if (tag === 0x10) size = value
      } else if ((tag & 7) === 2) {
        at = readVarint(bytes, at, end)
        at = at === INCOMPLETE ? end + 1 : at + value
      } else at += (tag & 7) === 1 ? 8 : 4
      if (at > end) throw new Undecodable(this.#where('a BlockMetadata is cut off'))
    }
    this.#fold.tuple(offset, size)
  }

  #where(what: string): string {
    return `message ${this.#fold.messages} is no response of the service: ${what}`
  }
}

/** What the last varint was: an int64, exact up to 2^53. */
let value = 0

/** Returns the place behind it, or INCOMPLETE. */
function readVarint(bytes: Uint8Array, start: number, end: number): number {
  let result = 0
  let factor = 1
  for (let at = start; at < end; at++) {
    const byte = bytes[at]
    if (at - start === 9) return readNegative(bytes, start, at)
    result += (byte & 0x7f) * factor
    if (byte < 0x80) {
      value = result
      return at + 1
    }
    factor *= 128
  }
  return INCOMPLETE
}

/** The tenth byte has bit 63 only: the number is below 0. */
function readNegative(bytes: Uint8Array, start: number, last: number): number {
  if (bytes[last] > 1) throw new Undecodable('a number has more than 64 bits')
  let result = 0n
  for (let at = last; at >= start; at--) result = (result << 7n) | BigInt(bytes[at] & 0x7f)
  value = Number(BigInt.asIntN(64, result))
  return last + 1
}
