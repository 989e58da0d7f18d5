/**
 * What a context says of a volume: runs of one state, in order, made from answers of extents.
 *
 *   allocated        ████████░░░░░░░░████████████     answer 1
 *   changed          ░░░░██████░░░░░░░░░░████░░░░     answer 2
 *   state            1   0   3 1     ··· each run ends where one of the answers changes its mind
 *
 * Clients ask from the front to the back, many times and in small parts. So an answer is walked once and goes on where
 * the last part ended: a *walk* stays open between two questions, and whoever asks gets the one that is nearest before
 * what is asked about, whichever connection used it before. Only who goes back makes a new one.
 */
import type { ExtentAnswer } from '../devicemapper/extents.ts'
import { DeltamapperError, shuttingDown } from '../errors.ts'
import type { Descriptor } from './requests.ts'

/** Asks for an answer from an offset on, in bytes. */
export type ExtentQuestion = (startingOffset: number, signal: AbortSignal) => Promise<ExtentAnswer>

export interface StatusMapOptions {
  /** Of the volume. */
  readonly sizeBytes: number
  /** The answers that the state depends on. */
  readonly questions: readonly ExtentQuestion[]
  /**
   * Whether the state at an offset depends on the next answer, too, by those before it; by default it does. An answer
   * that is needed nowhere is not asked for.
   */
  readonly needsNext?: ((covered: readonly boolean[], offset: number) => boolean) | undefined
  /**
   * The flags where the answers cover a byte or do not, in the order of the questions. What is not needed is left out.
   */
  readonly state: (covered: readonly boolean[], offset: number) => number
  /** An offset in bytes at which the state may change though no answer does. */
  readonly boundary?: number | undefined
}

/** Walks of a map that are open at once, over all connections. */
const MOST_WALKS = 8
/** The most descriptors in an answer; the protocol allows 2^20. A client asks on from where they end. */
const MOST_DESCRIPTORS = 8192
/** A descriptor has 32 bits for its length: a multiple of every block size that there is. */
const LONGEST_BYTES = 2 ** 31

export class StatusMap {
  readonly #options: StatusMapOptions
  readonly #idle: Walk[] = []
  readonly #waiting: (() => void)[] = []
  readonly #closing = new AbortController()
  #walks = 0

  constructor(options: StatusMapOptions) {
    this.#options = options
  }

  /**
   * The states from an offset on.
   *
   * @param offset bytes, below the volume's size
   * @param length bytes, 1 or more, at most up to its end
   * @param onlyFirst just one run, in one descriptor
   * @returns at least one descriptor; together not longer than `length`
   * @throws what the answers throw
   */
  async status(offset: number, length: number, onlyFirst: boolean): Promise<Descriptor[]> {
    return this.#withWalk(offset, async (walk) => {
      const descriptors: Descriptor[] = []
      const end = offset + length
      let last: { size: number; flags: number } | undefined
      for (let at = offset; at < end;) {
        const run = await walk.runAt(at)
        const size = Math.min(run.end, end) - at
        if (last?.flags === run.flags) last.size += size
        else {
          if (last && (onlyFirst || descriptors.length === MOST_DESCRIPTORS)) break
          last = { size, flags: run.flags }
          descriptors.push(last)
        }
        at += size
      }
      return cut(descriptors, onlyFirst)
    })
  }

  /** Walks the whole volume once. @returns for each state how many bytes have it @throws what the answers throw */
  async survey(): Promise<Map<number, number>> {
    const bytes = new Map<number, number>()
    await this.forEachRun((offset, end, flags) => void bytes.set(flags, (bytes.get(flags) ?? 0) + end - offset))
    return bytes
  }

  /**
   * Walks the whole volume once, to the answers' very end.
   *
   * @param use told of each run, bytes `[offset, end)`, in order; neighbours may have the same state
   * @throws what the answers and `use` throw
   */
  async forEachRun(use: (offset: number, end: number, flags: number) => void | Promise<void>): Promise<void> {
    const { sizeBytes } = this.#options
    await this.#withWalk(0, async (walk) => {
      for (let at = 0; at < sizeBytes;) {
        const { end, flags } = await walk.runAt(at)
        await use(at, end, flags)
        at = end
      }
      await walk.finish()
    })
  }

  /** Ends all walks: who waits for one hears of it. */
  async close(): Promise<void> {
    this.#closing.abort(shuttingDown('the server is being stopped', 'start it again'))
    for (const wake of this.#waiting.splice(0)) wake()
    await Promise.all(this.#idle.splice(0).map((walk) => walk.close()))
  }

  async #withWalk<T>(offset: number, use: (walk: Walk) => Promise<T>): Promise<T> {
    const walk = await this.#take(offset)
    let isGood = false
    try {
      const result = await use(walk)
      isGood = true
      return result
    } finally {
      const keeps = isGood && !this.#closing.signal.aborted
      if (keeps) this.#idle.push(walk)
      else this.#walks--
      this.#waiting.shift()?.()
      if (!keeps) await walk.close()
    }
  }

  /**
   * The nearest walk that is not beyond the offset; else a new one, for which the one that was idle longest makes room.
   */
  async #take(offset: number): Promise<Walk> {
    for (;;) {
      this.#closing.signal.throwIfAborted()
      let best = -1
      this.#idle.forEach((walk, i) => {
        if (walk.position <= offset && (best < 0 || walk.position > this.#idle[best].position)) best = i
      })
      if (best >= 0) return this.#idle.splice(best, 1)[0]
      if (this.#walks < MOST_WALKS || this.#idle.length > 0) {
        const replaced = this.#walks < MOST_WALKS ? undefined : this.#idle.shift()
        if (!replaced) this.#walks++
        const walk = new Walk(this.#options, this.#closing.signal)
        await replaced?.close()
        return walk
      }
      await new Promise<void>((resolve) => this.#waiting.push(resolve))
    }
  }
}

/** Runs of more than a descriptor can hold, in parts. */
function cut(descriptors: Descriptor[], onlyFirst: boolean): Descriptor[] {
  const short = descriptors.flatMap(({ size, flags }) => {
    const parts: Descriptor[] = []
    for (let rest = size; rest > 0; rest -= LONGEST_BYTES) parts.push({ size: Math.min(rest, LONGEST_BYTES), flags })
    return parts
  })
  return onlyFirst ? short.slice(0, 1) : short
}

/** The answers of a map, read in step. */
class Walk {
  /** Nothing before this byte can be asked for any more. */
  position = 0
  /** Where it began: who is asked only later is asked from there, because not each answer can begin in its middle. */
  #begin: number | undefined
  readonly #options: StatusMapOptions
  readonly #cursors: ExtentCursor[]

  constructor(options: StatusMapOptions, signal: AbortSignal) {
    this.#options = options
    this.#cursors = options.questions.map((ask) => new ExtentCursor(ask, options.sizeBytes, signal))
  }

  /** The run that an offset lies in, from there on. */
  async runAt(offset: number): Promise<{ end: number; flags: number }> {
    const { sizeBytes, state, needsNext, boundary = sizeBytes } = this.#options
    this.#begin ??= offset
    let end = offset < boundary ? Math.min(boundary, sizeBytes) : sizeBytes
    const covered: boolean[] = []
    for (const cursor of this.#cursors) {
      if (covered.length > 0 && needsNext?.(covered, offset) === false) break
      const extent = await cursor.reach(offset, this.#begin)
      const isInside = extent !== undefined && extent.begin <= offset
      covered.push(isInside)
      if (extent) end = Math.min(end, isInside ? extent.end : extent.begin)
    }
    this.position = offset
    return { end, flags: state(covered, offset) }
  }

  /** Reads what is left of the answers that were asked for: only then are they complete. */
  async finish(): Promise<void> {
    this.position = Infinity
    for (const cursor of this.#cursors) if (cursor.isAsked) await cursor.reach(Infinity, Infinity)
  }

  async close(): Promise<void> {
    for (const cursor of this.#cursors) await cursor.close()
  }
}

/** One answer, read forward. */
class ExtentCursor {
  readonly #ask: ExtentQuestion
  readonly #sizeBytes: number
  readonly #signal: AbortSignal
  #batches: AsyncIterator<{ count: number; offsets: Float64Array; sizes: Float64Array }> | undefined
  #batch: { count: number; offsets: Float64Array; sizes: Float64Array } | undefined
  #next = 0
  #isComplete = false
  #isFresh = true
  readonly #extent = { begin: 0, end: 0 }

  constructor(ask: ExtentQuestion, sizeBytes: number, signal: AbortSignal) {
    this.#ask = ask
    this.#sizeBytes = sizeBytes
    this.#signal = signal
  }

  get isAsked(): boolean {
    return this.#batches !== undefined
  }

  /**
   * The first extent that ends beyond an offset, which is not below the last one asked for; undefined when the answer
   * has no more.
   *
   * @param begin from where on it is asked, the first time
   */
  async reach(offset: number, begin: number): Promise<{ readonly begin: number; readonly end: number } | undefined> {
    while (this.#extent.end <= offset) {
      if (!(await this.#advance(offset, begin))) return undefined
    }
    return this.#extent
  }

  async close(): Promise<void> {
    await this.#batches?.return?.()
  }

  async #advance(offset: number, begin: number): Promise<boolean> {
    while (this.#batch === undefined || this.#next === this.#batch.count) {
      if (this.#isComplete) return false
      const next = await this.#nextBatch(offset, begin)
      if (next.done) {
        this.#isComplete = true
        return false
      }
      this.#batch = next.value
      this.#next = 0
    }
    const { offsets, sizes } = this.#batch
    this.#extent.begin = offsets[this.#next]
    this.#extent.end = this.#extent.begin + sizes[this.#next++]
    return true
  }

  /** A server may give up an answer that nobody reads on for a while: then it is asked again from where it was left. */
  async #nextBatch(offset: number, begin: number) {
    try {
      this.#batches ??= await this.#open(begin)
      return await this.#batches.next()
    } catch (error) {
      const mayGoOn = !this.#isFresh && error instanceof DeltamapperError && error.status === 'UNAVAILABLE'
      if (!mayGoOn || this.#signal.aborted) throw error
      await this.close().catch(() => undefined)
      this.#batch = undefined
      this.#batches = await this.#open(Math.max(this.#extent.end, Math.min(offset, this.#sizeBytes)))
      return this.#batches.next()
    } finally {
      this.#isFresh = false
    }
  }

  /** @throws DM_SNAPSHOT_CHANGED when the volume is not as large as it was */
  async #open(offset: number) {
    const answer = await this.#ask(Math.min(offset, this.#sizeBytes), this.#signal)
    const { capacityBytes } = answer
    if (capacityBytes !== undefined && capacityBytes !== this.#sizeBytes) {
      await answer.batches[Symbol.asyncIterator]().return?.()
      throw new DeltamapperError(
        'DM_SNAPSHOT_CHANGED',
        `the snapshot has ${capacityBytes} bytes, where it had ${this.#sizeBytes} before`,
        'begin again'
      )
    }
    return answer.batches[Symbol.asyncIterator]()
  }
}
