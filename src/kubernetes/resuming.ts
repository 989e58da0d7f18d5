/**
 * An answer that continues after its stream broke. It is requested again from the end of the last extent that was
 * passed on: any number of times while there is progress, and a few times without.
 *
 * That is exact: extents ascend, so everything below that end was either passed on or is not part of the answer (CSI
 * specification, `starting_offset`). A server may begin its first extent before the offset; that part is cut off. The
 * capacity must be the same, if a message tells it: some drivers send none when nothing is left, and their OK is the
 * end. Once the last extent ends at the capacity, nothing is left to request, and some drivers refuse such an offset:
 * an answer that breaks then is complete.
 *
 * After ABORTED, the state of the answer's beginning is gone. It can only begin again from 0: here, if nothing was
 * passed on. Otherwise the consumer must discard the extents, and gets the failure.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import type { ExtentAnswer, ExtentBatch } from '../devicemapper/extents.ts'
import { asDeltamapperError, DeltamapperError } from '../errors.ts'

/** The longest pause between two tries, in milliseconds. */
const LONGEST_PAUSE_MS = 30_000

export interface ResumingOptions {
  /** Bytes: the offset of the answer. */
  readonly startingOffset: number | bigint
  /** How many failures in a row, without an extent in between, end the answer; 1 for the first. */
  readonly tries: number
  /** The pause before the second try, in milliseconds; doubled with each try without progress. */
  readonly pauseMs: number
  readonly signal: AbortSignal
  /** Whether it may help to ask again from where it broke off. */
  readonly mayResume: (failure: DeltamapperError) => boolean
  /** Called before each repeated request. */
  readonly onResume?: ((event: Resumption) => void) | undefined
  /** Called when the answer is complete, has failed, or was left early; perhaps more than once. */
  readonly onEnd?: (() => void) | undefined
}

export interface Resumption {
  /** Bytes: the offset from which it continues. */
  readonly startingOffset: number | bigint
  readonly failure: DeltamapperError
}

/**
 * @param ask begins the answer at an offset; `resumed` from the second time on. Its signal aborts once its stream is no
 *   longer wanted, whatever its state
 * @throws a failure that cannot be repaired, or DM_ANSWER_INVALID when the answer continues differently
 */
export async function resuming(ask: Ask, options: ResumingOptions): Promise<ExtentAnswer> {
  const asked = new Resuming(ask, options)
  const first = await asked.begin()
  const answer = asked.batches(first)
  return {
    capacityBytes: first.capacityBytes,
    ...(first.blockMetadataType !== undefined && { blockMetadataType: first.blockMetadataType }),
    batches: {
      [Symbol.asyncIterator]: () => ({
        next: () => answer.next(),
        return: () => {
          // A generator that was never asked for anything has nothing to leave, but its call has begun.
          asked.end()
          return answer.return()
        }
      })
    }
  }
}

type Ask = (startingOffset: number | bigint, resumed: boolean, signal: AbortSignal) => Promise<ExtentAnswer>

/** An answer on its way, over as many calls as it takes. */
class Resuming {
  readonly #ask: Ask
  readonly #options: ResumingOptions
  /** From where it goes on, in bytes. */
  #at: number | bigint
  /** Tries since something was received. */
  #failed = 0
  #asked = false
  #call = new AbortController()

  constructor(ask: Ask, options: ResumingOptions) {
    this.#ask = ask
    this.#options = options
    this.#at = options.startingOffset
  }

  /** Asks until an answer has begun. @throws the failure that cannot be got over */
  async begin(): Promise<ExtentAnswer> {
    for (;;) {
      try {
        const resumed = this.#asked
        this.#asked = true
        this.#call = new AbortController()
        return await this.#ask(this.#at, resumed, AbortSignal.any([this.#options.signal, this.#call.signal]))
      } catch (error) {
        this.#call.abort()
        await this.#again(error)
      }
    }
  }

  async *batches(first: ExtentAnswer): AsyncGenerator<ExtentBatch, void> {
    const { capacityBytes } = first
    const { signal, mayResume } = this.#options
    let handedOn = false
    try {
      for (let stream = first; ; stream = await this.begin()) {
        if (stream.capacityBytes !== undefined && stream.capacityBytes !== capacityBytes) {
          throw differs(`the capacity was ${capacityBytes}, and is ${stream.capacityBytes} now`)
        }
        try {
          for await (const batch of stream.batches) {
            const rest = handedOn ? after(batch, Number(this.#at)) : batch
            if (rest.count === 0) continue
            this.#at = rest.offsets[rest.count - 1] + rest.sizes[rest.count - 1]
            handedOn = true
            this.#failed = 0
            yield rest
          }
          return
        } catch (error) {
          signal.throwIfAborted()
          const isAtEnd = handedOn && Number(this.#at) >= (capacityBytes ?? Infinity)
          if (isAtEnd && mayResume(asDeltamapperError(error))) return
          this.#call.abort()
          await this.#again(error)
        }
      }
    } finally {
      this.end()
    }
  }

  /** Nobody wants more of it. */
  end(): void {
    this.#call.abort()
    this.#options.onEnd?.()
  }

  /** Waits for the next try. @throws the failure, where there is none */
  async #again(thrown: unknown): Promise<void> {
    const { signal, tries, pauseMs, mayResume, onResume } = this.#options
    signal.throwIfAborted()
    const failure = asDeltamapperError(thrown)
    const fromTheBeginning = failure.status === 'ABORTED' && Number(this.#at) === 0
    if (!(mayResume(failure) || fromTheBeginning) || ++this.#failed >= tries) throw failure
    const pause = Math.min(pauseMs * 2 ** (this.#failed - 1), LONGEST_PAUSE_MS)
    await sleep(pause, undefined, { signal }).catch(() => signal.throwIfAborted())
    onResume?.({ startingOffset: this.#at, failure })
  }
}

/** The part of a batch from an offset on. Only the first extents of a stream can begin before it. */
function after(batch: ExtentBatch, end: number): ExtentBatch {
  if (batch.count === 0 || batch.offsets[0] >= end) return batch
  let first = 0
  while (first < batch.count && batch.offsets[first] + batch.sizes[first] <= end) first++
  const offsets = batch.offsets.slice(first, batch.count)
  const sizes = batch.sizes.slice(first, batch.count)
  if (first < batch.count && offsets[0] < end) {
    sizes[0] -= end - offsets[0]
    offsets[0] = end
  }
  return { count: batch.count - first, offsets, sizes }
}

function differs(how: string): DeltamapperError {
  return new DeltamapperError(
    'DM_ANSWER_INVALID',
    `the answer does not continue as it began: ${how}`,
    'do not use what was received; ask again from the beginning'
  )
}
