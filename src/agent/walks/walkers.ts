/**
 * The walker threads, seen from the main thread: starts walks on the least busy one, passes their messages on no faster than they
 * are taken, and replaces a thread that dies.
 */
import { extname } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Worker } from 'node:worker_threads'
import { asDeltamapperError, DeltamapperError } from '../../errors.ts'
import type { EncodedStream } from '../../grpc/snapshot-metadata.ts'
import type { SeenDevices, WalkRequest } from './thin-walk.ts'
import { WalkTurns } from './walk-turns.ts'
import type { HistoryPlace } from '../catalog/era-snapshots.ts'
import type { TrackedAnswer } from '../answers/tracked-volume.ts'
import type { HistoryWalkRequest, NextPage } from './history-walk.ts'
import type { EngineReport } from '../../devicemapper/tools/engine-answer.ts'
import type { ToolEngine } from './tool-engine.ts'
import {
  fromPortable,
  fromPortableReport,
  type FromWalker,
  noStatistics,
  toPortable,
  type ToWalker,
  type TimedStatistics
} from './walk-worker.ts'

/** Messages a walk may be ahead of its client: one on its way out while the next is made. */
const MESSAGES_AHEAD = 2
/** Messages that are passed on before connections are looked after again, which is when whoever has little to say gets its next one. */
const PASSED_AT_ONCE = 8
/** A thread that died is replaced after this long, or at once when there is no other. Milliseconds. */
const RESTART_AFTER_MS = 1000
/** At the end, walks with tools have so long to end them. Milliseconds. */
const END_WITHIN_MS = 1000

/** What is asked: everything that is allocated, or what changed. */
export type WalkKind = 'allocated' | 'delta'

/** One walk as the main thread sees it. */
interface Walk {
  kind: WalkKind
  /** Messages that have arrived and were not taken yet; at most MESSAGES_AHEAD. */
  arrived: Uint8Array[]
  statistics: TimedStatistics
  /** What it is about, as soon as it has been found. */
  seen: SeenDevices | undefined
  /** Told what became of its check with the tools. */
  report: (report: EngineReport) => void
  /** What is on record of an era volume, piece by piece. */
  nextPage: NextPage | undefined
  /** How it ended: undefined while it goes on. */
  outcome: 'complete' | DeltamapperError | undefined
  /** Wakes the one who waits for the next message. */
  wake: () => void
}

/** What is known of live pools beside their metadata, and what is to be remembered of them. */
export interface DeviceKnowledge {
  /** Told which devices a walk is about; no message arrives before this has resolved, and none if it rejects. */
  check(seen: SeenDevices): Promise<void>
}

/** Images in files cannot be written to meanwhile: nothing has to be known of them. */
const nothingToKnow: DeviceKnowledge = {
  check: async () => undefined
}

/** What holds for every walk. */
type Reading = 'direct' | 'readDeadlineMs' | 'readBytesPerSecond' | 'tools'

export interface WalkersOptions {
  /** Read images around the page cache, as devices are. */
  direct?: boolean
  /** How long one request to a metadata device may take, in milliseconds. */
  readDeadlineMs?: number
  /** What all threads together may read of one metadata device. */
  readBytesPerSecond?: number | undefined
  /** Where the tools have a part in answers. */
  tools?: ToolEngine | undefined
  /** Told of each walk that has ended, however it did. */
  onEnd?: (kind: WalkKind, statistics: TimedStatistics) => void
}

interface Thread {
  index: number
  worker: Worker
  walks: Map<number, Walk>
  /** When it ended, by performance.now(). */
  diedAt: number | undefined
}

export class Walkers {
  readonly #threads: Thread[] = []
  #nextId = 0
  #closed = false

  readonly #reading: Pick<WalkRequest, Reading>
  readonly #tools: ToolEngine | undefined
  readonly #onEnd: NonNullable<WalkersOptions['onEnd']>
  readonly #turns = new WalkTurns({ atOnce: PASSED_AT_ONCE })
  readonly #ended: Record<WalkKind, TimedStatistics> = { allocated: noStatistics(), delta: noStatistics() }

  /** @param count threads to run; walks take turns in each */
  constructor(count: number, options: WalkersOptions = {}) {
    const { direct = false, readDeadlineMs, readBytesPerSecond, tools, onEnd = () => undefined } = options
    this.#reading = {
      ...{ direct, readDeadlineMs, tools: tools?.requested },
      // Threads do not know of each other: each has its share.
      readBytesPerSecond: readBytesPerSecond && readBytesPerSecond / count
    }
    this.#tools = tools
    this.#onEnd = onEnd
    for (let i = 0; i < count; i++) this.#threads.push(this.#startThread(i))
  }

  /** Walks that have not ended yet. */
  get active(): number {
    return this.#threads.reduce((sum, { walks }) => sum + walks.size, 0)
  }

  /** What all walks have cost since the start, those under way included. */
  get totals(): Record<WalkKind, TimedStatistics> {
    const totals = { allocated: { ...this.#ended.allocated }, delta: { ...this.#ended.delta } }
    for (const { walks } of this.#threads) {
      for (const { kind, statistics } of walks.values()) add(totals[kind], statistics)
    }
    return totals
  }

  /** Threads that run. */
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
   * A walk that begins when its first message is asked for, and ends when it is complete, no longer wanted, or `signal` says so. Walks of the
   * same client share what a thread has for each client.
   */
  walk(
    request: Omit<WalkRequest, Reading>,
    signal: AbortSignal,
    knowledge: DeviceKnowledge = nothingToKnow,
    client = ''
  ): EncodedStream {
    const walk = newWalk(request.base ? 'delta' : 'allocated')
    walk.report = (report) => this.#tools?.report(request, report)
    const messages = this.#messages({ ...request, ...this.#reading }, walk, signal, knowledge, client)
    return encodedStream(request.target.sizeBytes, messages, walk)
  }

  /** The same for what is on record of an era volume: no metadata is read, and the tools have no part in it. */
  walkHistory(
    kind: WalkKind,
    { question, nextPage }: TrackedAnswer,
    maxResults: number,
    signal: AbortSignal,
    client = ''
  ): EncodedStream {
    const walk = newWalk(kind)
    walk.nextPage = nextPage
    const request = { question, isOnRecord: nextPage !== undefined, maxResults }
    return encodedStream(question.sizeBytes, this.#messages(request, walk, signal, nothingToKnow, client), walk)
  }

  async *#messages(
    request: WalkRequest | HistoryWalkRequest,
    walk: Walk,
    signal: AbortSignal,
    knowledge: DeviceKnowledge,
    client: string
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
    thread.walks.set(id, walk)
    signal.addEventListener('abort', cancel)
    try {
      say(thread, { kind: 'start', id, request, client })
      say(thread, { kind: 'credit', id, messages: MESSAGES_AHEAD })
      for (;;) {
        signal.throwIfAborted()
        if (walk.seen) {
          const { seen } = walk
          await knowledge.check(seen)
          walk.seen = undefined
          say(thread, { kind: 'known', id })
          // Only the tools wait for it.
          if (this.#tools) void this.#hold(this.#tools, thread, id, seen, over.signal)
        }
        if (walk.arrived.length > 0) {
          const turn = await this.#turns.take(client, signal)
          turn.end()
          signal.throwIfAborted()
          say(thread, { kind: 'credit', id, messages: 1 })
          yield walk.arrived.shift()!
        } else if (walk.outcome === 'complete') return
        else if (walk.outcome) throw walk.outcome
        else await new Promise<void>((resolve) => (walk.wake = resolve))
      }
    } finally {
      signal.removeEventListener('abort', cancel)
      // A metadata snapshot that is held for it is given back.
      over.abort(new DeltamapperError('DM_CANCELLED', 'the answer is over', 'nothing is to be done'))
      if (!walk.outcome) {
        const gone = new DeltamapperError('DM_CANCELLED', 'the answer is no longer wanted', 'nothing is to be done')
        say(thread, { kind: 'cancel', id, error: toPortable(gone) })
      }
    }
  }

  /** Holds a metadata snapshot for the tools until the signal says that the walk is over. Never rejects: the walk learns why there is none. */
  async #hold(tools: ToolEngine, thread: Thread, id: number, seen: SeenDevices, over: AbortSignal): Promise<void> {
    const notHeld = (reason: unknown) => {
      say(thread, { kind: 'not-held', id, error: toPortable(asDeltamapperError(reason)) })
    }
    try {
      const { heldRoot, signal } = await tools.hold(seen, over)
      signal.addEventListener('abort', () => {
        notHeld(signal.reason)
      })
      say(thread, { kind: 'held', id, heldRoot })
    } catch (error) {
      notHeld(error)
    }
  }

  /** Has all threads give back what many walks have left behind. */
  rest(): void {
    for (const thread of this.#threads) say(thread, { kind: 'rest', id: NaN })
  }

  /** Ends all threads; walks that go on end with DM_SHUTTING_DOWN. */
  async close(): Promise<void> {
    this.#closed = true
    if (this.#tools) await this.#endWalks()
    await Promise.all(this.#threads.map(({ worker }) => worker.terminate()))
  }

  /** A thread ends the tools that it has started: it is to hear that it should before it is gone itself. */
  async #endWalks(): Promise<void> {
    for (const thread of this.#threads) {
      for (const id of thread.walks.keys()) say(thread, { kind: 'cancel', id, error: toPortable(shuttingDown()) })
    }
    const deadline = performance.now() + END_WITHIN_MS
    while (this.active > 0 && performance.now() < deadline) await sleep(10)
  }

  #leastBusy(): Thread {
    const now = performance.now()
    // A dead thread is replaced when it is needed, and not again at once: one that cannot even start must not be started for ever, nor
    // be given the walks that others can do.
    const usable = this.#threads.filter(({ diedAt }) => diedAt === undefined || now - diedAt > RESTART_AFTER_MS)
    const choice = usable.length > 0 ? usable : this.#threads
    const least = choice.reduce((one, other) => (other.walks.size < one.walks.size ? other : one))
    if (least.diedAt === undefined) return least
    return (this.#threads[least.index] = this.#startThread(least.index))
  }

  #startThread(index: number): Thread {
    // The sources run as .ts, the published package as .js.
    const file = new URL(`./walk-worker${extname(import.meta.filename)}`, import.meta.url)
    const worker = new Worker(file, { name: `walker-${index}` })
    const thread: Thread = { index, worker, walks: new Map(), diedAt: undefined }
    worker.on('message', (message: FromWalker) => {
      const walk = thread.walks.get(message.id)
      if (!walk) return
      if (message.kind === 'seen') walk.seen = message.devices
      else if (message.kind === 'checked') walk.report(fromPortableReport(message.report))
      else if (message.kind === 'wanted') void turnPage(thread, message.id, walk.nextPage, message.after)
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
    add(this.#ended[walk.kind], walk.statistics)
    this.#onEnd(walk.kind, walk.statistics)
    walk.wake()
  }
}

function newWalk(kind: WalkKind): Walk {
  return {
    kind,
    arrived: [],
    statistics: noStatistics(),
    seen: undefined,
    report: () => undefined,
    nextPage: undefined,
    outcome: undefined,
    wake: () => undefined
  }
}

function encodedStream(capacityBytes: number, messages: AsyncGenerator<Uint8Array>, walk: Walk): EncodedStream {
  return {
    capacityBytes,
    messages,
    statistics: () => ({ ...walk.statistics, walkMs: Math.round(walk.statistics.walkMs * 100) / 100 })
  }
}

/** Fetches what a walk wants next, or ends the walk: an answer without it would be too small. */
async function turnPage(
  thread: Thread,
  id: number,
  nextPage: NextPage | undefined,
  after: HistoryPlace
): Promise<void> {
  try {
    if (nextPage === undefined) throw new Error('a walk wants what it was not given')
    say(thread, { kind: 'page', id, page: await nextPage(after) })
  } catch (thrown) {
    say(thread, { kind: 'cancel', id, error: toPortable(asDeltamapperError(thrown)) })
  }
}

function shuttingDown(): DeltamapperError {
  return new DeltamapperError('DM_SHUTTING_DOWN', 'the agent is stopping', 'ask again once it has been restarted')
}

function say({ worker }: Thread, message: ToWalker): void {
  worker.postMessage(message)
}

function add(sum: TimedStatistics, more: TimedStatistics): void {
  for (const key of Object.keys(sum) as (keyof TimedStatistics)[]) sum[key] += more[key]
}
