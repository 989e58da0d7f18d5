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
export async function resuming(
  ask: (startingOffset: number | bigint, resumed: boolean, signal: AbortSignal) => Promise<ExtentAnswer>,
  options: ResumingOptions
): Promise<ExtentAnswer> {
  const { signal, tries, pauseMs, mayResume, onResume, onEnd } = options
  let at = options.startingOffset
  let failed = 0
  let asked = false
  let call = new AbortController()

  const again = async (thrown: unknown): Promise<void> => {
    signal.throwIfAborted()
    const failure = asDeltamapperError(thrown)
    const fromTheBeginning = failure.status === 'ABORTED' && Number(at) === 0
    if (!(mayResume(failure) || fromTheBeginning) || ++failed >= tries) throw failure
    const pause = Math.min(pauseMs * 2 ** (failed - 1), LONGEST_PAUSE_MS)
    await sleep(pause, undefined, { signal }).catch(() => signal.throwIfAborted())
    onResume?.({ startingOffset: at, failure })
  }
  const begin = async (): Promise<ExtentAnswer> => {
    for (;;) {
      try {
        const resumed = asked
        asked = true
        call = new AbortController()
        return await ask(at, resumed, AbortSignal.any([signal, call.signal]))
      } catch (error) {
        call.abort()
        await again(error)
      }
    }
  }
  const end = (): void => {
    call.abort()
    onEnd?.()
  }

  const first = await begin()
  const { capacityBytes } = first
  async function* batches(): AsyncGenerator<ExtentBatch, void> {
    let handedOn = false
    try {
      for (let stream = first; ; stream = await begin()) {
        if (stream.capacityBytes !== undefined && stream.capacityBytes !== capacityBytes) {
          throw differs(`the capacity was ${capacityBytes}, and is ${stream.capacityBytes} now`)
        }
        try {
          for await (const batch of stream.batches) {
            const rest = handedOn ? after(batch, Number(at)) : batch
            if (rest.count === 0) continue
            at = rest.offsets[rest.count - 1] + rest.sizes[rest.count - 1]
            handedOn = true
            failed = 0
            yield rest
          }
          return
        } catch (error) {
          signal.throwIfAborted()
          if (handedOn && Number(at) >= (capacityBytes ?? Infinity) && mayResume(asDeltamapperError(error))) return
          call.abort()
          await again(error)
        }
      }
    } finally {
      end()
    }
  }
  const answer = batches()
  return {
    capacityBytes,
    batches: {
      [Symbol.asyncIterator]: () => ({
        next: () => answer.next(),
        return: () => {
          // A generator that was never asked for anything has nothing to leave, but its call has begun.
          end()
          return answer.return()
        }
      })
    }
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
    `the answer does not go on as it began: ${how}`,
    'do not use what was received; ask again from the beginning'
  )
}
