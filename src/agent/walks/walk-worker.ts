/**
 * What a walker thread does: walks as many trees at once as it is asked to, and hands out their messages as far as they
 * are wanted.
 *
 * A thread of its own keeps checksums and encoding away from the event loop that serves gRPC and health. Walks are
 * asynchronous, so one thread serves many. A walk with a slow client holds nothing but its place in the tree. Clients
 * take turns (walk-turns.ts).
 */
import type { MessagePort } from 'node:worker_threads'
import { forgetSpareWindows } from '../../devicemapper/block-reader.ts'
import { forgetFrameRoom } from '../../devicemapper/thin/base-record/frame-room.ts'
import { ReadQueue } from '../../devicemapper/read-queue.ts'
import { openPoolMetadata } from '../../devicemapper/thin/pool-metadata.ts'
import { asDeltamapperError, type DeltamapperError } from '../../errors.ts'
import { collectGarbage } from '../../memory-after-bursts.ts'
import type { Walk, WalkContext } from './plan.ts'
import { type FromWalker, noStatistics, type TimedStatistics, type ToWalker, type WalkerData } from './walk-messages.ts'
import { WalkTurns } from './walk-turns.ts'
import { fromPortable, toPortable } from '../../portable-error.ts'

type Start = Extract<ToWalker, { kind: 'start' }>

/**
 * Makes ready what the first walk would have to wait for, and says so: koffi aborts the process if a thread is ended
 * while it loads it.
 */
export async function warmUp(port: MessagePort, data: WalkerData | undefined): Promise<void> {
  // Where there is no queue, the walks say so.
  if (data && data.reads !== 'preadv') await ReadQueue.ofThread().catch(() => undefined)
  // A block of a file that is there for certain, and holds no metadata: what a first read takes is ready then.
  if (data) await readAsWalksDo(process.execPath, data)
  port.postMessage({ kind: 'ready', id: NaN } satisfies FromWalker)
}

async function readAsWalksDo(path: string, { reads }: WalkerData): Promise<void> {
  const opened = await openPoolMetadata(path, { direct: true, reads }).catch(() => undefined)
  await opened?.close()
}

/** @param walkOf the walk of the target that has this name */
export function serveWalks(
  port: MessagePort,
  walkOf: (target: string) => Walk<unknown>,
  { overdueMs }: Pick<WalkerData, 'overdueMs'> = {}
): void {
  const walks = new Map<number, WalkInThread>()
  const turns: Turns = { first: new WalkTurns({ overdueMs }), later: new WalkTurns({ overdueMs }) }
  const say = (message: FromWalker, transfer: ArrayBuffer[] = []) => {
    port.postMessage(message, transfer)
  }
  port.on('message', (message: ToWalker) => {
    if (message.kind === 'start') {
      const walk = new WalkInThread(message, say)
      walks.set(message.id, walk)
      void walk.run(walkOf, message, turns).finally(() => walks.delete(message.id))
    } else if (message.kind === 'rest') {
      forgetSpareWindows()
      forgetFrameRoom()
      collectGarbage()
    } else {
      // Messages may still arrive for a walk that has just ended.
      walks.get(message.id)?.hear(message)
    }
  })
}

/** One walk, and what it hears of the main thread. */
class WalkInThread {
  readonly #id: number
  readonly #say: (message: FromWalker, transfer?: ArrayBuffer[]) => void
  readonly #cancel = new AbortController()
  readonly #withdrawn = new AbortController()
  readonly #asked = new Map<number, PromiseWithResolvers<unknown>>()
  #nextAsk = 0
  #credit: number
  /** Wakes the walk when it waits for credit. */
  #wake = (): void => undefined

  constructor({ id, messages }: Start, say: (message: FromWalker, transfer?: ArrayBuffer[]) => void) {
    this.#id = id
    this.#credit = messages
    this.#say = say
  }

  hear(message: Exclude<ToWalker, { kind: 'start' | 'rest' }>): void {
    if (message.kind === 'credit') this.#credit += message.messages
    else if (message.kind === 'withdrawn') this.#withdrawn.abort(fromPortable(message.error))
    else if (message.kind === 'answer') {
      this.#asked.get(message.ask)?.resolve(message.value)
      this.#asked.delete(message.ask)
    } else this.#end(fromPortable(message.error))
    this.#wake()
  }

  async run(
    walkOf: (target: string) => Walk<unknown>,
    { task, reading, client = '' }: Start,
    turns: Turns
  ): Promise<void> {
    const { signal } = this.#cancel
    const statistics = noStatistics()
    const context: WalkContext = {
      ...{ reading, statistics, signal, withdrawn: this.#withdrawn.signal },
      ask: (aside, value) => this.#ask(aside, value)
    }
    try {
      const messages = walkOf(task.target)(task.request, context)
      for await (const message of inTurn(messages, turns, client, statistics, signal)) {
        await this.#credited()
        this.#credit--
        this.#say({ kind: 'message', id: this.#id, message, statistics }, [message.buffer])
        // A message is made only when it can leave at once, so none waits in memory.
        await this.#credited({ orCancelled: true })
      }
      this.#say({ kind: 'end', id: this.#id, statistics })
    } catch (thrown) {
      this.#say({ kind: 'error', id: this.#id, error: toPortable(asDeltamapperError(thrown)), statistics })
    }
  }

  /** Waits until a message may be sent. @throws the reason of a cancel, unless that is all the same */
  async #credited({ orCancelled = false } = {}): Promise<void> {
    const { signal } = this.#cancel
    while (this.#credit === 0 && !signal.aborted) await new Promise<void>((resolve) => (this.#wake = resolve))
    if (!orCancelled) signal.throwIfAborted()
  }

  async #ask(aside: string, value: unknown): Promise<unknown> {
    this.#cancel.signal.throwIfAborted()
    const ask = this.#nextAsk++
    const answer = Promise.withResolvers<unknown>()
    // Nobody may be waiting for it.
    answer.promise.catch(() => undefined)
    this.#asked.set(ask, answer)
    this.#say({ kind: 'ask', id: this.#id, ask, aside, value })
    return answer.promise
  }

  #end(why: DeltamapperError): void {
    this.#cancel.abort(why)
    this.#withdrawn.abort(why)
    for (const { reject } of this.#asked.values()) reject(why)
    this.#asked.clear()
  }
}

/**
 * First messages have turns of their own: so an answer that is short does not wait until it is its turn among the long
 * ones of its client. Many that begin leave the others their shares all the same.
 */
interface Turns {
  readonly first: WalkTurns
  readonly later: WalkTurns
}

/** A walk that has read no more nodes than these with its first message is over, or nearly. */
const SHORT_WALK_NODES = 64

/** The messages, each made when it is the client's turn. */
async function* inTurn(
  messages: AsyncGenerator<Uint8Array<ArrayBuffer>>,
  turns: Turns,
  client: string,
  statistics: TimedStatistics,
  signal: AbortSignal
): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  try {
    for (let made = 0; ; made++) {
      const isFirst = made === 0 || (made === 1 && statistics.nodesRead <= SHORT_WALK_NODES)
      const turn = await (isFirst ? turns.first : turns.later).take(client, signal)
      const began = performance.now()
      let next: IteratorResult<Uint8Array<ArrayBuffer>>
      try {
        signal.throwIfAborted()
        next = await messages.next()
      } finally {
        statistics.walkMs += performance.now() - began
        turn.end()
      }
      if (next.done) return
      yield next.value
    }
  } finally {
    await messages.return(undefined)
  }
}
