/**
 * A walker thread: walks as many trees at once as it is asked to, and hands out their messages as far as they are wanted.
 *
 * A thread of its own keeps the event loop that serves gRPC and health free of checksums and encoding. Walks are asynchronous, so
 * one thread serves many; a walk whose client is slow holds nothing but its place in the tree. Whose walk goes on is for clients to
 * take turns in (walk-turns.ts).
 */
import { parentPort } from 'node:worker_threads'
import { asDeltamapperError, DeltamapperError, type ErrorCode } from '../../errors.ts'
import { forgetSpareWindows } from '../../devicemapper/block-reader.ts'
import { giveMemoryBack } from '../../memory-after-bursts.ts'
import type { CheckOutcome } from '../../devicemapper/tools/cross-check.ts'
import type { HistoryPage, HistoryPlace } from '../catalog/era-snapshots.ts'
import { historyMessages, type HistoryWalkRequest } from './history-walk.ts'
import type { EngineReport, ToolSupport } from '../../devicemapper/tools/engine-answer.ts'
import { type SeenDevices, walkMessages, type WalkRequest, type WalkStatistics } from './thin-walk.ts'
import { WalkTurns } from './walk-turns.ts'

/** What the main thread says. Each walk goes by an id of the main thread's choice. */
export type ToWalker =
  | { kind: 'start'; id: number; request: WalkRequest | HistoryWalkRequest; client?: string }
  /** The answer to `seen`: the walk may go on. */
  | { kind: 'known'; id: number }
  /** The answer to `wanted`. */
  | { kind: 'page'; id: number; page: HistoryPage }
  /** A metadata snapshot is held for the tools, or it is not (any more). */
  | { kind: 'held'; id: number; heldRoot: number }
  | { kind: 'not-held'; id: number; error: PortableError }
  /** So many more messages may be sent. */
  | { kind: 'credit'; id: number; messages: number }
  | { kind: 'cancel'; id: number; error: PortableError }
  /** Many walks have ended: what they have left behind is to be given back. Of no walk. */
  | { kind: 'rest'; id: number }

/** What the walker says, `seen` first. `end` and `error` are the last word on a walk. */
export type FromWalker =
  | { kind: 'seen'; id: number; devices: SeenDevices }
  | { kind: 'checked'; id: number; report: PortableReport }
  /** Of an era volume's history, what comes after a place. */
  | { kind: 'wanted'; id: number; after: HistoryPlace }
  | { kind: 'message'; id: number; message: Uint8Array<ArrayBuffer>; statistics: TimedStatistics }
  | { kind: 'end'; id: number; statistics: TimedStatistics }
  | { kind: 'error'; id: number; error: PortableError; statistics: TimedStatistics }

/** What a walk has cost, its time included. */
export interface TimedStatistics extends WalkStatistics {
  /** How long it took, in milliseconds, without waiting for its client or for its turn. */
  walkMs: number
}

export function noStatistics(): TimedStatistics {
  return { nodesRead: 0, bytesRead: 0, readCalls: 0, extents: 0, walkMs: 0 }
}

/** A DeltamapperError between threads; structured cloning would lose its class. */
export interface PortableError {
  code: ErrorCode
  message: string
  remedy: string
  stack: string | undefined
}

export function toPortable(error: DeltamapperError): PortableError {
  const { code, message, remedy, cause } = error
  return { code, message, remedy, stack: cause instanceof Error ? cause.stack : error.stack }
}

export function fromPortable({ code, message, remedy, stack }: PortableError): DeltamapperError {
  const error = new DeltamapperError(code, message, remedy)
  if (stack !== undefined) error.stack = stack
  return error
}

/** An EngineReport between threads. */
export interface PortableReport {
  beyondBase: number
  outcome: Exclude<CheckOutcome, { check: 'unchecked' }> | { check: 'unchecked'; why: PortableError }
}

function toPortableReport({ outcome, beyondBase }: EngineReport): PortableReport {
  return { beyondBase, outcome: outcome.check === 'unchecked' ? { ...outcome, why: toPortable(outcome.why) } : outcome }
}

export function fromPortableReport({ outcome, beyondBase }: PortableReport): EngineReport {
  return {
    beyondBase,
    outcome: outcome.check === 'unchecked' ? { ...outcome, why: fromPortable(outcome.why) } : outcome
  }
}

interface Walk {
  isKnown: boolean
  page: HistoryPage | undefined
  credit: number
  cancel: AbortController
  /** The block of the metadata snapshot that the tools may read, and what ends them. */
  heldRoot: PromiseWithResolvers<number>
  tools: AbortController
  /** Wakes the walk when it waits for word from the main thread. */
  wake: () => void
}

if (parentPort) serve(parentPort)

function serve(port: NonNullable<typeof parentPort>): void {
  const walks = new Map<number, Walk>()
  const turns = new WalkTurns()
  const say = (message: FromWalker, transfer: ArrayBuffer[] = []) => {
    port.postMessage(message, transfer)
  }

  port.on('message', (message: ToWalker) => {
    if (message.kind === 'start') void run(message.id, message.request, message.client)
    if (message.kind === 'rest') {
      forgetSpareWindows()
      giveMemoryBack()
    }
    const walk = walks.get(message.id)
    // A walk that has just ended may still be spoken to.
    if (!walk) return
    if (message.kind === 'known') walk.isKnown = true
    if (message.kind === 'page') walk.page = message.page
    if (message.kind === 'credit') walk.credit += message.messages
    if (message.kind === 'held') walk.heldRoot.resolve(message.heldRoot)
    if (message.kind === 'not-held') endTools(walk, fromPortable(message.error))
    if (message.kind === 'cancel') {
      const error = fromPortable(message.error)
      walk.cancel.abort(error)
      endTools(walk, error)
    }
    walk.wake()
  })

  async function run(id: number, request: WalkRequest | HistoryWalkRequest, client = ''): Promise<void> {
    const walk: Walk = {
      isKnown: false,
      page: undefined,
      credit: 0,
      cancel: new AbortController(),
      heldRoot: Promise.withResolvers(),
      tools: new AbortController(),
      wake: () => undefined
    }
    walks.set(id, walk)
    // Nobody may be waiting for it.
    walk.heldRoot.promise.catch(() => undefined)
    const { signal } = walk.cancel
    const support: ToolSupport = {
      heldRoot: () => walk.heldRoot.promise,
      signal: walk.tools.signal,
      report: (report) => {
        // Nobody wants to know whether an answer that nobody wants could be checked.
        if (!signal.aborted) say({ kind: 'checked', id, report: toPortableReport(report) })
      }
    }
    const statistics = noStatistics()
    try {
      const woken = () => new Promise<void>((resolve) => (walk.wake = resolve))
      const onSeen = async (devices: SeenDevices): Promise<void> => {
        say({ kind: 'seen', id, devices })
        while (!walk.isKnown && !signal.aborted) await woken()
        signal.throwIfAborted()
      }
      const nextPage = async (after: HistoryPlace): Promise<HistoryPage> => {
        say({ kind: 'wanted', id, after })
        for (;;) {
          signal.throwIfAborted()
          const { page } = walk
          walk.page = undefined
          if (page) return page
          await woken()
        }
      }
      const messages =
        'question' in request
          ? historyMessages(request, statistics, nextPage)
          : walkMessages(request, statistics, signal, onSeen, support)
      for await (const message of inTurn(messages, turns, client, statistics, signal)) {
        while (walk.credit === 0 && !signal.aborted) await woken()
        signal.throwIfAborted()
        walk.credit--
        say({ kind: 'message', id, message, statistics }, [message.buffer])
        // No message is made that would have to wait here, in memory.
        while (walk.credit === 0 && !signal.aborted) await woken()
      }
      say({ kind: 'end', id, statistics })
    } catch (thrown) {
      say({ kind: 'error', id, error: toPortable(asDeltamapperError(thrown)), statistics })
    } finally {
      walks.delete(id)
    }
  }
}

/** The messages, each made when it is the client's turn. */
async function* inTurn(
  messages: AsyncGenerator<Uint8Array<ArrayBuffer>>,
  turns: WalkTurns,
  client: string,
  statistics: TimedStatistics,
  signal: AbortSignal
): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  try {
    for (;;) {
      const turn = await turns.take(client, signal)
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

function endTools({ heldRoot, tools }: Walk, why: DeltamapperError): void {
  heldRoot.reject(why)
  tools.abort(why)
}
