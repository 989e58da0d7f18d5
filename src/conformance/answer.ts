/**
 * What is kept of an answer while it goes by: counts, the first thing of each kind that is out of order, and the
 * bytes that it names. However long the answer is, this stays small; which of it is a breach, the rules say.
 */
import { createHash } from 'node:crypto'
import { type KnownRanges, RangeList } from './ranges.ts'

/** A tuple, and where it was: messages and tuples of a message count from 1. */
export interface SeenTuple {
  readonly message: number
  readonly tuple: number
  readonly byteOffset: number
  readonly sizeBytes: number
}

/** The end of a message that had tuples. */
export interface Boundary {
  readonly message: number
  /** Bytes: where its last tuple ended. */
  readonly end: number
}

/** An answer, as it is recorded. What is null was not there. */
export interface Answer {
  readonly messages: number
  readonly tuples: number
  readonly bytes: number
  readonly largestMessage: { readonly message: number; readonly bytes: number } | null
  readonly mostTuples: { readonly message: number; readonly tuples: number } | null
  /** block_metadata_type of the first message. */
  readonly type: number | null
  readonly otherType: { readonly message: number; readonly type: number } | null
  /** volume_capacity_bytes of the first message. */
  readonly capacityBytes: number | null
  readonly otherCapacity: { readonly message: number; readonly capacityBytes: number } | null
  readonly first: SeenTuple | null
  readonly last: SeenTuple | null
  /** The first of another size than the first. */
  readonly otherSize: SeenTuple | null
  readonly empty: SeenTuple | null
  readonly negative: SeenTuple | null
  /** The first that begins before one ended, and where that was. */
  readonly disorder: (SeenTuple & { readonly previousEnd: number }) | null
  /** The one that ends last. */
  readonly reaches: SeenTuple | null
  /** The one that begins last. */
  readonly beginsLast: SeenTuple | null
  /** The first of them. */
  readonly boundaries: readonly Boundary[]
  /** Of all messages, with their lengths. */
  readonly sha256: string
  readonly named: KnownRanges
}

/** Boundaries that are kept. */
const MOST_BOUNDARIES = 64

/** Builds an Answer, one tuple at a time. */
export class AnswerFold {
  readonly #hash = createHash('sha256')
  readonly #named: RangeList
  readonly #boundaries: Boundary[] = []
  #messages = 0
  #tuples = 0
  #bytes = 0
  #largestMessage: Answer['largestMessage'] = null
  #mostTuples: Answer['mostTuples'] = null
  #type: number | null = null
  #otherType: Answer['otherType'] = null
  #capacity: number | null = null
  #otherCapacity: Answer['otherCapacity'] = null
  #first: SeenTuple | null = null
  #otherSize: SeenTuple | null = null
  #empty: SeenTuple | null = null
  #negative: SeenTuple | null = null
  #disorder: Answer['disorder'] = null
  #inMessage = 0
  #previousEnd = -Infinity
  // Kept as numbers, since they change with nearly every tuple.
  #last = new Float64Array(4)
  #reaches = new Float64Array(4)
  #beginsLast = new Float64Array(4)

  /** @param mostRanges that are kept */
  constructor(mostRanges: number) {
    this.#named = new RangeList(mostRanges)
  }

  get tuples(): number {
    return this.#tuples
  }

  get messages(): number {
    return this.#messages
  }

  begin(bytes: number): void {
    this.#messages++
    this.#inMessage = 0
    this.#bytes += bytes
    this.#hash.update(`${bytes}:`)
    if (this.#largestMessage === null || bytes > this.#largestMessage.bytes) {
      this.#largestMessage = { message: this.#messages, bytes }
    }
  }

  body(chunk: Uint8Array): void {
    this.#hash.update(chunk)
  }

  tuple(byteOffset: number, sizeBytes: number): void {
    this.#tuples++
    this.#inMessage++
    const end = byteOffset + sizeBytes
    const isFirst = this.#first === null
    if (isFirst) this.#first = this.#seen(byteOffset, sizeBytes)
    else if (sizeBytes !== this.#first!.sizeBytes) this.#otherSize ??= this.#seen(byteOffset, sizeBytes)
    if (sizeBytes <= 0) this.#empty ??= this.#seen(byteOffset, sizeBytes)
    if (byteOffset < 0) this.#negative ??= this.#seen(byteOffset, sizeBytes)
    if (byteOffset < this.#previousEnd) {
      this.#disorder ??= { ...this.#seen(byteOffset, sizeBytes), previousEnd: this.#previousEnd }
    }
    put(this.#last, this.#messages, this.#inMessage, byteOffset, sizeBytes)
    if (isFirst || end > this.#reaches[2] + this.#reaches[3]) this.#reaches.set(this.#last)
    if (isFirst || byteOffset > this.#beginsLast[2]) this.#beginsLast.set(this.#last)
    this.#previousEnd = Math.max(this.#previousEnd, end)
    if (sizeBytes > 0) this.#named.add(byteOffset, sizeBytes)
  }

  end(type: number, capacityBytes: number): void {
    this.#type ??= type
    this.#capacity ??= capacityBytes
    if (type !== this.#type) this.#otherType ??= { message: this.#messages, type }
    if (capacityBytes !== this.#capacity) this.#otherCapacity ??= { message: this.#messages, capacityBytes }
    if (this.#mostTuples === null || this.#inMessage > this.#mostTuples.tuples) {
      this.#mostTuples = { message: this.#messages, tuples: this.#inMessage }
    }
    if (this.#inMessage > 0 && this.#boundaries.length < MOST_BOUNDARIES) {
      this.#boundaries.push({ message: this.#messages, end: this.#last[2] + this.#last[3] })
    }
  }

  finish(): Answer {
    return {
      messages: this.#messages,
      tuples: this.#tuples,
      bytes: this.#bytes,
      largestMessage: this.#largestMessage,
      mostTuples: this.#mostTuples,
      type: this.#type,
      otherType: this.#otherType,
      capacityBytes: this.#capacity,
      otherCapacity: this.#otherCapacity,
      first: this.#first,
      last: this.#tuples > 0 ? tupleOf(this.#last) : null,
      otherSize: this.#otherSize,
      empty: this.#empty,
      negative: this.#negative,
      disorder: this.#disorder,
      reaches: this.#tuples > 0 ? tupleOf(this.#reaches) : null,
      beginsLast: this.#tuples > 0 ? tupleOf(this.#beginsLast) : null,
      boundaries: this.#boundaries,
      sha256: this.#hash.digest('hex'),
      named: this.#named.finish()
    }
  }

  #seen(byteOffset: number, sizeBytes: number): SeenTuple {
    return { message: this.#messages, tuple: this.#inMessage, byteOffset, sizeBytes }
  }
}

function put(into: Float64Array, message: number, tuple: number, byteOffset: number, sizeBytes: number): void {
  into[0] = message
  into[1] = tuple
  into[2] = byteOffset
  into[3] = sizeBytes
}

function tupleOf(from: Float64Array): SeenTuple {
  const [message, tuple, byteOffset, sizeBytes] = from as unknown as [number, number, number, number]
  return { message, tuple, byteOffset, sizeBytes }
}

/** For people: what was sent, word for word. */
export function quoted({ message, tuple, byteOffset, sizeBytes }: SeenTuple): string {
  return `message ${message}, tuple ${tuple}: {byte_offset: ${byteOffset}, size_bytes: ${sizeBytes}}`
}
