/**
 * Text on its way to stdout: collected in chunks, written one after the other, each waiting until the one before has gone. However slow
 * the reader and however long the answer, one chunk is all that is in memory.
 *
 * Numbers are put down digit by digit: an answer may have 100 million lines, and strings would cost three times as much.
 */
import type { Writable } from 'node:stream'
import { DeltamapperError } from '../../errors.ts'
import { OutputClosed } from '../failure.ts'

const CHUNK_BYTES = 256 * 1024
/** What may be added after `isFull` was seen to be false: the longest thing that is written without looking. */
const SPARE_BYTES = 16 * 1024

const ZERO = 0x30
const SPACE = 0x20

export class TextOutput {
  readonly #stream: Writable
  readonly #signal: AbortSignal
  readonly #chunk = Buffer.allocUnsafe(CHUNK_BYTES)
  #used = 0

  /** @param signal what ends the waiting for a reader that does not read */
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

  /** Adds a text that was turned into bytes once, for what is repeated often. */
  bytes(bytes: Uint8Array): void {
    const chunk = this.#chunk
    const start = this.#used
    // Faster than `set` for the dozen bytes that these are.
    for (let i = 0; i < bytes.length; i++) chunk[start + i] = bytes[i]
    this.#used = start + bytes.length
  }

  /** Adds an integer from 0 to 2^53 - 1 in decimal, right-aligned in `width` columns. */
  integer(value: number, width = 0): void {
    const chunk = this.#chunk
    const digits = decimalDigits(value)
    let position = this.#used
    for (let i = digits; i < width; i++) chunk[position++] = SPACE
    position += digits
    this.#used = position
    let rest = value
    // Integers of 32 bits are divided several times faster: nine digits at a time.
    while (rest >= 1e9) {
      const high = Math.floor(rest / 1e9)
      let low = (rest - high * 1e9) | 0
      for (let i = 0; i < 9; i++) {
        const next = (low / 10) | 0
        chunk[--position] = ZERO + low - next * 10
        low = next
      }
      rest = high
    }
    let low = rest | 0
    do {
      const next = (low / 10) | 0
      chunk[--position] = ZERO + low - next * 10
      low = next
    } while (low > 0)
  }

  /**
   * Hands over what was added, and waits until it has gone.
   *
   * @throws OutputClosed when nobody reads any more; DM_INTERNAL when it cannot be written; the signal's reason
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
    'make room for it, or send it elsewhere',
    { cause: error }
  )
}

function decimalDigits(value: number): number {
  let digits = 1
  for (let power = 10; value >= power; power *= 10) digits++
  return digits
}
