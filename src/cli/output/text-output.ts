/**
 * Text on its way to stdout: collected in chunks, written one after the other, each after the one before has left.
 * However slow the reader and however long the answer, only one chunk is in memory.
 *
 * An answer may have 100 million lines, and strings would cost five times as much as this. Numbers are written four
 * digits at a time, and repeated text four bytes at a time. If the last step writes too much, the next one overwrites
 * it.
 */
import type { Writable } from 'node:stream'
import { DeltamapperError } from '../../errors.ts'
import { systemRemedy } from '../../system-errors.ts'
import { OutputClosed } from '../command-line/failure.ts'

const CHUNK_BYTES = 256 * 1024
/** What may be added after `isFull` was false: the longest thing that is written without checking. */
const SPARE_BYTES = 16 * 1024

const SPACE = 0x20

/** The digits of 0 to 9999, zeros in front, four bytes each, the first in the lowest bits. */
const fourDigits = new Uint32Array(10_000)
for (let i = 0; i < fourDigits.length; i++) {
  const hundreds = (i / 100) | 0
  const first = (hundreds / 10) | 0
  const third = (i / 10) | 0
  fourDigits[i] = 0x30303030 + first + ((hundreds % 10) << 8) + ((third % 10) << 16) + ((i % 10) << 24)
}

/** A text that is repeated often, turned into bytes once. */
export class Phrase {
  readonly length: number
  /** Its bytes, four at a time; zeros behind its end. */
  readonly words: Uint32Array

  constructor(text: string) {
    const bytes = Buffer.from(text)
    this.length = bytes.length
    this.words = Uint32Array.from({ length: Math.ceil(bytes.length / 4) }, (_, i) =>
      Buffer.concat([bytes.subarray(4 * i), Buffer.alloc(4)]).readUInt32LE()
    )
  }
}

export class TextOutput {
  readonly #stream: Writable
  readonly #signal: AbortSignal
  readonly #chunk = Buffer.allocUnsafe(CHUNK_BYTES)
  readonly #view = new DataView(this.#chunk.buffer, this.#chunk.byteOffset, this.#chunk.length)
  #used = 0

  /** @param signal ends the waiting for a reader that does not read */
  constructor(stream: Writable, signal: AbortSignal) {
    this.#stream = stream
    this.#signal = signal
  }

  /** Whether it is time to `flush`. Until then there is room for 16 KiB. */
  get isFull(): boolean {
    return this.#used > CHUNK_BYTES - SPARE_BYTES
  }

  /** Adds a text of at most 16 KiB. */
  text(text: string): void {
    this.#used += this.#chunk.write(text, this.#used)
  }

  /** Adds a phrase of at most 16 KiB. */
  phrase({ length, words }: Phrase): void {
    const view = this.#view
    const start = this.#used
    for (let i = 0; i < words.length; i++) view.setUint32(start + 4 * i, words[i], true)
    this.#used = start + length
  }

  /**
   * Adds the i-th of `values`, an integer from 0 to 2^53 - 1, in decimal, right-aligned in `width` columns. (Handed
   * over by itself, a number beyond 32 bits would be put into an object first.)
   */
  integer(values: Float64Array, i: number, width = 0): void {
    const value = values[i]
    if (width > 0) this.#spaces(width - decimalDigits(value))
    // Integers of 32 bits are divided several times faster: eight digits at a time.
    if (value < 1e8) {
      this.#eightDigits(value | 0, false)
    } else {
      const high = Math.floor(value / 1e8)
      this.#eightDigits(high | 0, false)
      this.#eightDigits((value - high * 1e8) | 0, true)
    }
  }

  #spaces(count: number): void {
    for (let i = 0; i < count; i++) this.#chunk[this.#used++] = SPACE
  }

  /** Adds an integer below 10^8. */
  #eightDigits(value: number, withZeros: boolean): void {
    const high = (value / 1e4) | 0
    if (withZeros || high > 0) {
      this.#fourDigits(high, withZeros)
      this.#fourDigits(value - high * 1e4, true)
    } else this.#fourDigits(value, false)
  }

  /** Adds an integer below 10^4. */
  #fourDigits(value: number, withZeros: boolean): void {
    const digits = withZeros || value >= 1000 ? 4 : value >= 100 ? 3 : value >= 10 ? 2 : 1
    this.#view.setUint32(this.#used, fourDigits[value] >>> (32 - 8 * digits), true)
    this.#used += digits
  }

  /**
   * Hands over what was added, and waits until it has gone.
   *
   * @throws OutputClosed when the reader has ended; DM_OUTPUT_FAILED when it cannot be written; the signal's reason
   */
  async flush(): Promise<void> {
    if (this.#used === 0) return
    await written(this.#stream, this.#chunk.subarray(0, this.#used), this.#signal)
    this.#used = 0
  }
}

/** Resolves when a stream has passed `content` on. */
export function written(stream: Writable, content: string | Uint8Array, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const abort = () => {
      reject(signal?.reason as Error)
    }
    if (signal?.aborted) {
      abort()
      return
    }
    signal?.addEventListener('abort', abort)
    stream.write(content, (error) => {
      signal?.removeEventListener('abort', abort)
      if (error) reject(outputError(error))
      else resolve()
    })
  })
}

function outputError(error: NodeJS.ErrnoException): Error {
  if (error.code === 'EPIPE' || error.code === 'ERR_STREAM_DESTROYED') return new OutputClosed()
  return new DeltamapperError(
    'DM_OUTPUT_FAILED',
    `the output cannot be written: ${error.message}`,
    systemRemedy(error, 'write access to it') ?? 'send it elsewhere',
    { cause: error }
  )
}

function decimalDigits(value: number): number {
  let digits = 1
  for (let power = 10; value >= power; power *= 10) digits++
  return digits
}
