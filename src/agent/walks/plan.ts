/**
 * The seam between those who know a kind of storage and the walker threads, which know none. Whoever answers for a target makes a plan:
 *
 *   answers/ ── plan ──▶ walkers.ts ── task ──▶ walk-worker.ts ──▶ the target's walk
 *                          asides, by name  ◀── ask ──┘   └── messages ──▶ client
 *
 * A task goes to another thread, so it is plain data. What the walk needs of the main thread meanwhile (the catalog, a lease) it asks for.
 */
import type { WalkStatistics } from './encoded-messages.ts'

/** The question: everything that is allocated, or what changed. */
export type WalkKind = 'allocated' | 'delta'

/** How an answer is made. */
export interface Plan {
  readonly kind: WalkKind
  /** Size of the target in bytes. */
  readonly capacityBytes: number
  readonly task: WalkTask
  /** What the main thread answers meanwhile, by the name that the walk asks for it by. */
  readonly asides?: Readonly<Record<string, Aside>>
  /** What a failure is to be told as. By default, as what it is. */
  readonly explained?: (error: unknown) => Promise<unknown>
}

/** What a thread is to do: structured cloning has to leave it as it is. */
export interface WalkTask {
  /** A name in the registry of targets (targets.ts). */
  readonly target: string
  /** What that target's walk takes. */
  readonly request: unknown
}

/**
 * Answers a walk, in the main thread. An error of it ends the walk and becomes the answer's: without what was asked for, an answer could
 * be too small. A refusal that a walk can go on after is a value.
 *
 * @param value as the walk has sent it
 */
export type Aside = (value: never, walk: WalkUnderWay) => unknown

/** A walk as an aside sees it. */
export interface WalkUnderWay {
  /** Aborted when the walk is over, however it ended. */
  readonly signal: AbortSignal
  /** Tells the walk that what it was lent is no longer there. */
  readonly withdraw: (why: unknown) => void
}

/** How all metadata is read. */
export interface Reading {
  /** Read images without the page cache, as devices are read. */
  readonly direct: boolean
  /** How long one request to a metadata device may take, in milliseconds. */
  readonly readDeadlineMs?: number | undefined
  /** The most bytes a second that one walker thread may read of a metadata device; undefined for no limit. */
  readonly readBytesPerSecond?: number | undefined
}

/** What a walk has around it, in its thread. */
export interface WalkContext {
  readonly reading: Reading
  /** Kept up to date while the walk goes on. */
  readonly statistics: WalkStatistics
  /** Aborted when the answer is no longer wanted, with the reason. */
  readonly signal: AbortSignal
  /** Aborted when the main thread has withdrawn what it had lent, or the answer is no longer wanted; with the reason. */
  readonly withdrawn: AbortSignal
  /** Asks for an aside of the plan. @throws when the answer is no longer wanted */
  readonly ask: (aside: string, value?: unknown) => Promise<unknown>
}

/** A target's walk: the encoded messages of an answer. @throws what is to be the end of the answer */
export type Walk<Request> = (request: Request, context: WalkContext) => AsyncGenerator<Uint8Array<ArrayBuffer>>
