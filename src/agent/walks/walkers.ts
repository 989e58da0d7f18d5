/**
 * The walker threads, seen from the main thread: starts walks on the least busy one, passes messages on as fast as
 * clients take them, and replaces a thread that dies.
 */
import { extname } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Worker } from 'node:worker_threads'
import { asDeltamapperError, DeltamapperError, shuttingDown } from '../../errors.ts'
import type { WayToRead } from '../../devicemapper/metadata-medium.ts'
import type { EncodedStream } from '../../grpc/snapshot-metadata.ts'
import type { Plan, Reading, WalkKind, WalkUnderWay } from './plan.ts'
import { type FromWalker, noStatistics, type TimedStatistics, type ToWalker, type WalkerData } from './walk-messages.ts'
import { WalkTurns } from './walk-turns.ts'
import { fromPortable, toPortable } from '../../portable-error.ts'

/** Messages a walk may be ahead of its client: one on its way out while the next is made. */
const MESSAGES_AHEAD = 2
/**
 * Messages that are passed on before the event loop reads connections again. Clients with few messages get their next
 * one then.
 */
const PASSED_AT_ONCE = 8
/** A thread that died is replaced after this long, or at once when there is no other. Milliseconds. */
const RESTART_AFTER_MS = 1000
/** At the end, walks have so long to end the programs that they have started. Milliseconds. */
const END_WITHIN_MS = 1000

/** One walk as the main thread sees it. */
interface Walk {
  plan: Plan
  /** What the plan's asides are told of it. */
  underWay: WalkUnderWay
  /** Messages that have arrived and were not taken yet; at most MESSAGES_AHEAD. */
  arrived: Uint8Array[]
  statistics: TimedStatistics
  /** What an aside has thrown. */
  failure: { readonly thrown: unknown } | undefined
  /** How it ended: undefined while it runs. */
  outcome: 'complete' | DeltamapperError | undefined
  /** Wakes the consumer that waits for the next message. */
  wake: () => void
}

export interface WalkersOptions {
  /** Read images without the page cache, as devices are read. */
  direct?: boolean
  /** How devices, and images without the page cache, are read. */
  reads?: WayToRead
  /** How long one request to a metadata device may take, in milliseconds. */
  readDeadlineMs?: number
  /** What all threads together may read of one metadata device, in bytes a second. */
  readBytesPerSecond?: number | undefined
  /** Walks may start programs, which their thread has to end before it ends itself. */
  startPrograms?: boolean
  /** Called for each walk that has ended, however it did. */
  onEnd?: (plan: Plan, statistics: TimedStatistics, isComplete: boolean) => void
}

interface Thread {
  index: number
  worker: Worker
  walks: Map<number, Walk>
  /** Resolves when it may be ended, or has ended: it says 'ready'. */
  ready: Promise<undefined>
  /** When it ended, by performance.now(). */
  diedAt: number | undefined
}

export class Walkers {
  readonly #threads: Thread[] = []
  #nextId = 0
  #closed = false

  readonly #reading: Reading
  readonly #startPrograms: boolean
  readonly #onEnd: NonNullable<WalkersOptions['onEnd']>
  readonly #turns = new WalkTurns({ atOnce: PASSED_AT_ONCE })
  readonly #ended: Record<WalkKind, TimedStatistics> = { allocated: noStatistics(), delta: noStatistics() }

  /** @param count threads to run; walks take turns in each */
  constructor(count: number, options: WalkersOptions = {}) {
    const { direct = false, reads = 'auto', readDeadlineMs, readBytesPerSecond, onEnd = () => undefined } = options
    this.#reading = {
      ...{ direct, reads, readDeadlineMs },
      // Threads do not know of each other, so each has an equal share.
      readBytesPerSecond: readBytesPerSecond && readBytesPerSecond / count
    }
    this.#startPrograms = options.startPrograms ?? false
    this.#onEnd = onEnd
    for (let i = 0; i < count; i++) this.#threads.push(this.#startThread(i))
  }

  /** Walks that have not ended yet. */
  get active(): number {
    return this.#threads.reduce((sum, { walks }) => sum + walks.size, 0)
  }

  /** The cost of all walks since the start, running ones included. */
  get totals(): Record<WalkKind, TimedStatistics> {
    const totals = { allocated: { ...this.#ended.allocated }, delta: { ...this.#ended.delta } }
    for (const { walks } of this.#threads) {
      for (const { plan, statistics } of walks.values()) add(totals[plan.kind], statistics)
    }
    return totals
  }

  /** Running threads. */
  get alive(): number {
    return this.#threads.filter(({ diedAt }) => diedAt === undefined).length
  }

  /** Replaces threads that have died, as the next walk would. */
  revive(): void {
    if (this.#closed) return
    const now = performance.now()
    for (const { index, diedAt } of this.#threads) {
      if (diedAt !== undefined && now - diedAt > RESTART_AFTER_MS) this.#threads[index] = this.#startThread(index)
    }
  }

  /**
   * The answer of a plan. Its walk begins when its first message is asked for, and ends when it is complete, no longer
   * wanted, or `signal` says so. Walks of the same client share what a thread has for each client.
   */
  stream(plan: Plan, signal: AbortSignal, client = ''): EncodedStream {
    let statistics = noStatistics
    const began = (walk: Walk) => (statistics = () => walk.statistics)
    return {
      capacityBytes: plan.capacityBytes,
      ...(plan.remark !== undefined && { remark: plan.remark }),
      messages: explained(this.#messages(plan, signal, client, began), plan, signal),
      statistics() {
        const { walkMs, ...rest } = statistics()
        return { ...rest, walkMs: Math.round(walkMs * 100) / 100 }
      }
    }
  }

  async *#messages(
    plan: Plan,
    signal: AbortSignal,
    client: string,
    began: (walk: Walk) => void
  ): AsyncGenerator<Uint8Array> {
    signal.throwIfAborted()
    if (this.#closed) throw shuttingDown()
    const id = this.#nextId++
    const thread = this.#leastBusy()
    const cancel = () => {
      say(thread, { kind: 'cancel', id, error: toPortable(asDeltamapperError(signal.reason)) })
      walk.wake()
    }
    const over = new AbortController()
    const walk = newWalk(plan, {
      signal: over.signal,
      withdraw: (why) => {
        say(thread, { kind: 'withdrawn', id, error: toPortable(asDeltamapperError(why)) })
      }
    })
    began(walk)
    thread.walks.set(id, walk)
    signal.addEventListener('abort', cancel)
    try {
      say(thread, { kind: 'start', id, task: plan.task, reading: this.#reading, messages: MESSAGES_AHEAD, client })
      for (;;) {
        signal.throwIfAborted()
        if (walk.arrived.length > 0) {
          const turn = await this.#turns.take(client, signal)
          turn.end()
          signal.throwIfAborted()
          say(thread, { kind: 'credit', id, messages: 1 })
          yield walk.arrived.shift()!
        } else if (walk.failure !== undefined) throw walk.failure.thrown
        else if (walk.outcome === 'complete') return
        else if (walk.outcome) throw walk.outcome
        else await new Promise<void>((resolve) => (walk.wake = resolve))
      }
    } finally {
      signal.removeEventListener('abort', cancel)
      // What was lent to it is given back.
      over.abort(new DeltamapperError('DM_CANCELLED', 'the answer is over', 'no action is needed'))
      if (!walk.outcome) {
        const gone = new DeltamapperError('DM_CANCELLED', 'the answer is no longer wanted', 'no action is needed')
        say(thread, { kind: 'cancel', id, error: toPortable(gone) })
      }
    }
  }

  /** Tells all threads to free the memory that many walks have left. */
  rest(): void {
    for (const thread of this.#threads) say(thread, { kind: 'rest', id: NaN })
  }

  /** Ends all threads; running walks end with DM_SHUTTING_DOWN. */
  async close(): Promise<void> {
    this.#closed = true
    if (this.#startPrograms) await this.#endWalks()
    for (const { worker } of this.#threads) worker.ref()
    await Promise.all(this.#threads.map(({ worker, ready }) => ready.then(() => worker.terminate())))
  }

  /** A thread ends the programs that it has started: it is to hear that it should before it is gone itself. */
  async #endWalks(): Promise<void> {
    for (const thread of this.#threads) {
      for (const id of thread.walks.keys()) say(thread, { kind: 'cancel', id, error: toPortable(shuttingDown()) })
    }
    const deadline = performance.now() + END_WITHIN_MS
    while (this.active > 0 && performance.now() < deadline) await sleep(10)
  }

  #leastBusy(): Thread {
    const now = performance.now()
    // A dead thread is replaced when it is needed, and not again at once. A thread that cannot even start must not be
    // started for ever, nor get walks that others can do.
    const usable = this.#threads.filter(({ diedAt }) => diedAt === undefined || now - diedAt > RESTART_AFTER_MS)
    const choice = usable.length > 0 ? usable : this.#threads
    const least = choice.reduce((one, other) => (other.walks.size < one.walks.size ? other : one))
    if (least.diedAt === undefined) return least
    return (this.#threads[least.index] = this.#startThread(least.index))
  }

  #startThread(index: number): Thread {
    // The sources run as .ts, the published package as .js.
    const file = new URL(`../walker-thread${extname(import.meta.filename)}`, import.meta.url)
    const worker = new Worker(file, {
      name: `walker-${index}`,
      workerData: { reads: this.#reading.reads ?? 'auto' } satisfies WalkerData
    })
    const ready = Promise.withResolvers<undefined>()
    const thread: Thread = { index, worker, walks: new Map(), ready: ready.promise, diedAt: undefined }
    worker.on('message', (message: FromWalker) => {
      if (message.kind === 'ready') return ready.resolve(undefined)
      const walk = thread.walks.get(message.id)
      if (!walk) return
      if (message.kind === 'ask') void answer(thread, walk, message)
      else walk.statistics = message.statistics
      if (message.kind === 'message') walk.arrived.push(message.message)
      else if (message.kind === 'end') this.#end(thread, message.id, 'complete')
      else if (message.kind === 'error') this.#end(thread, message.id, fromPortable(message.error))
      walk.wake()
    })
    let failure: Error | undefined
    worker.on('error', (error: Error) => {
      failure = error
    })
    worker.on('exit', () => {
      ready.resolve(undefined)
      thread.diedAt = performance.now()
      const error = this.#closed ? shuttingDown() : asDeltamapperError(failure ?? new Error('a walker thread ended'))
      for (const id of [...thread.walks.keys()]) this.#end(thread, id, error)
    })
    // An idle walker must not keep the process alive.
    worker.unref()
    return thread
  }

  #end(thread: Thread, id: number, outcome: 'complete' | DeltamapperError): void {
    const walk = thread.walks.get(id)
    if (!walk) return
    thread.walks.delete(id)
    walk.outcome = outcome
    add(this.#ended[walk.plan.kind], walk.statistics)
    this.#onEnd(walk.plan, walk.statistics, outcome === 'complete')
    walk.wake()
  }
}

function newWalk(plan: Plan, underWay: WalkUnderWay): Walk {
  return {
    ...{ plan, underWay, arrived: [], statistics: noStatistics(), failure: undefined, outcome: undefined },
    wake: () => undefined
  }
}

/** The messages; a failure as the plan would have it told. */
async function* explained(
  messages: AsyncGenerator<Uint8Array>,
  { explained: explain }: Plan,
  signal: AbortSignal
): AsyncGenerator<Uint8Array> {
  try {
    yield* messages
  } catch (error) {
    throw explain && !signal.aborted ? await explain(error) : error
  }
}

/** Answers what a walk asks, or ends the walk: an answer without it could be too small. */
async function answer(
  thread: Thread,
  walk: Walk,
  { id, ask, aside, value }: Extract<FromWalker, { kind: 'ask' }>
): Promise<void> {
  try {
    const answering = walk.plan.asides?.[aside]
    if (!answering) throw new Error(`a walk asks for ${aside}, which its plan does not have`)
    say(thread, { kind: 'answer', id, ask, value: await answering(value as never, walk.underWay) })
  } catch (thrown) {
    walk.failure ??= { thrown }
    say(thread, { kind: 'cancel', id, error: toPortable(asDeltamapperError(thrown)) })
    walk.wake()
  }
}

function say({ worker }: Thread, message: ToWalker): void {
  worker.postMessage(message)
}

function add(sum: TimedStatistics, more: TimedStatistics): void {
  for (const key of Object.keys(sum) as (keyof TimedStatistics)[]) sum[key] += more[key]
}
