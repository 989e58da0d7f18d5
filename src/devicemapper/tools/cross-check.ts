/**
 * Compares one engine's answer with the other's, extent by extent, while it leaves.
 *
 * Messages do not wait for the check, but the end of the answer does: an answer that ends has been checked whole.
 * Extents are kept until the other engine has reached them, up to a bound. Beyond that the answer waits. This costs no
 * time in all, because the end waits anyway.
 */
import { asDeltamapperError, DeltamapperError } from '../../errors.ts'
import type { ExtentBatch } from '../extents.ts'

/** Extents that the answer may be ahead of its check: 4 MiB. */
const MOST_AHEAD = 256 * 1024

export type CheckOutcome =
  /** Both are the same, to the byte. */
  | { readonly check: 'agreed'; readonly extents: number }
  /** They differ; `first` is the first difference. */
  | { readonly check: 'disagreed'; readonly first: Difference }
  /** The other engine gave no complete answer, so this one is unchecked. */
  | { readonly check: 'unchecked'; readonly why: DeltamapperError }

/**
 * The first byte that only one of two answers has, and the extents that they have there; undefined if one has no more.
 */
export interface Difference {
  readonly byte: number
  readonly answered: Extent | undefined
  readonly other: Extent | undefined
}

type Extent = readonly [offset: number, size: number]

/**
 * Passes an answer on, checked.
 *
 * @param other the second answer; it is started with the first, and ended by its signal
 * @param report called with the outcome once, before the end of the answer; an error that it throws ends the answer
 * @throws DM_ENGINES_DISAGREE as soon as that is known; what the answer itself throws
 */
export async function* crossChecked<T>(
  answer: AsyncGenerator<ExtentBatch, T>,
  other: (signal: AbortSignal) => AsyncIterable<ExtentBatch>,
  report: (outcome: CheckOutcome) => void
): AsyncGenerator<ExtentBatch, T> {
  const over = new AbortController()
  const queue = new ExtentQueue()
  let outcome: CheckOutcome | undefined
  const check = compare(queue, other(over.signal)).then((result) => {
    outcome = result
    // Nothing takes extents out any more.
    queue.close()
  })
  const settle = () => {
    if (outcome === undefined) return
    report(outcome)
    if (outcome.check === 'disagreed') throw disagreement(outcome.first)
  }
  try {
    for (;;) {
      const next = await answer.next()
      if (next.done) {
        queue.end()
        await check
        settle()
        return next.value
      }
      await queue.put(next.value)
      // A batch that is known to be doubtful does not leave.
      if (outcome?.check === 'disagreed') settle()
      yield next.value
    }
  } finally {
    over.abort(new DeltamapperError('DM_CANCELLED', 'the answer is no longer wanted', 'no action is needed'))
    queue.close()
    await answer.return(undefined as T)
  }
}

/** Takes extents out of the queue as those of the other answer arrive. Never rejects. */
async function compare(queue: ExtentQueue, other: AsyncIterable<ExtentBatch>): Promise<CheckOutcome> {
  let extents = 0
  try {
    for await (const { count, offsets, sizes } of other) {
      for (let i = 0; i < count; i++) {
        // Awaiting an extent that is there already would cost more than comparing it.
        if (!queue.ready) await queue.wait()
        const answered = queue.take()
        if (answered?.[0] !== offsets[i] || answered[1] !== sizes[i]) {
          return { check: 'disagreed', first: difference(answered, [offsets[i], sizes[i]]) }
        }
        extents++
      }
    }
    if (!queue.ready) await queue.wait()
    const answered = queue.take()
    if (answered !== undefined) return { check: 'disagreed', first: difference(answered, undefined) }
    return { check: 'agreed', extents }
  } catch (error) {
    return { check: 'unchecked', why: asDeltamapperError(error) }
  }
}

/** The place of the first difference, for messages. */
export function describeDifference({ byte, answered, other }: Difference): string {
  const shown = (extent: Extent | undefined) => (extent === undefined ? 'nothing more' : `${extent[0]}+${extent[1]}`)
  return `they part at byte ${byte}: the walk says ${shown(answered)}, the tool says ${shown(other)}`
}

function difference(answered: Extent | undefined, other: Extent | undefined): Difference {
  const [offset, size] = answered ?? [Infinity, 0]
  const [otherOffset, otherSize] = other ?? [Infinity, 0]
  const byte = offset === otherOffset ? offset + Math.min(size, otherSize) : Math.min(offset, otherOffset)
  return { byte, answered, other }
}

function disagreement(first: Difference): DeltamapperError {
  return new DeltamapperError(
    'DM_ENGINES_DISAGREE',
    `our own reading of the metadata and the tools' do not agree: ${describeDifference(first)}`,
    "back up every block, keep a copy of the pool's metadata, and report it"
  )
}

/** Extents on their way from the answer to its check. */
class ExtentQueue {
  /** A ring: 2 numbers for each. */
  readonly #ring = new Float64Array(2 * MOST_AHEAD)
  #first = 0
  #count = 0
  #ended = false
  #closed = false
  #wakePutter: () => void = () => undefined
  #wakeTaker: () => void = () => undefined

  /** Whether `take` has a result: an extent, or the end. */
  get ready(): boolean {
    return this.#count > 0 || this.#ended
  }

  async wait(): Promise<void> {
    while (!this.ready) await new Promise<void>((resolve) => (this.#wakeTaker = resolve))
  }

  take(): Extent | undefined {
    if (this.#count === 0) return undefined
    const at = 2 * this.#first
    this.#first = (this.#first + 1) % MOST_AHEAD
    // Half of it at a time: the waiting side is not woken for each.
    if (--this.#count === MOST_AHEAD / 2) this.#wakePutter()
    return [this.#ring[at], this.#ring[at + 1]]
  }

  /** Copies a batch, as soon as there is room; drops it when nothing takes it. */
  async put({ count, offsets, sizes }: ExtentBatch): Promise<void> {
    for (let i = 0; i < count; i++) {
      while (this.#count === MOST_AHEAD && !this.#closed) {
        this.#wakeTaker()
        await new Promise<void>((resolve) => (this.#wakePutter = resolve))
      }
      if (this.#closed) return
      const at = 2 * ((this.#first + this.#count++) % MOST_AHEAD)
      this.#ring[at] = offsets[i]
      this.#ring[at + 1] = sizes[i]
    }
    this.#wakeTaker()
  }

  /** There are no more. */
  end(): void {
    this.#ended = true
    this.#wakeTaker()
  }

  /** Nothing is taken any more, or nothing put. */
  close(): void {
    this.#closed = true
    this.#wakePutter()
    this.end()
  }
}
