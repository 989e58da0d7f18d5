/**
 * The seam between the targets, which know a kind of storage, and the walker threads, which know none. A target makes a
 * plan:
 *
 *   answers/ ── plan ──▶ walkers.ts ── task ──▶ walk-worker.ts ──▶ the target's walk
 *                          asides, by name  ◀── ask ──┘   └── messages ──▶ client
 *
 * A task goes to another thread, so it is plain data. During the walk, it asks the main thread for what it needs (the
 * catalog, a lease).
 */
import type { WayToRead } from '../../devicemapper/metadata-medium.ts'
import type { WalkStatistics } from './encoded-messages.ts'

/** The question: everything that is allocated, or what changed. */
export type WalkKind = 'allocated' | 'delta'

/** How an answer is made. */
export interface Plan {
  readonly kind: WalkKind
  /** Size of the target in bytes. */
  readonly capacityBytes: number
  readonly task: WalkTask
  /** What whoever asks should know of the target, though there is an answer. */
  readonly remark?: string
  /** The volume that a delta of all of it is about, for metrics. */
  readonly volume?: string
  /** The main thread's answers during the walk, by the name that the walk asks by. */
  readonly asides?: Readonly<Record<string, Aside>>
  /** Maps a failure to the error for the client. By default, the failure itself. */
  readonly explained?: (error: unknown) => Promise<unknown>
}

/** A thread's task: structured cloning must leave it unchanged. */
export interface WalkTask {
  /** A name in the registry of targets (targets.ts). */
  readonly target: string
  /** The input of that target's walk. */
  readonly request: unknown
}

/**
 * Answers a walk, in the main thread. Its error ends the walk and becomes the answer's: without the result, an answer
 * could be too small. A refusal after which a walk can continue is a value.
 *
 * @param value as the walk has sent it
 */
export type Aside = (value: never, walk: WalkUnderWay) => unknown

/** A walk as an aside sees it. */
export interface WalkUnderWay {
  /** Aborted when the walk is over, however it ended. */
  readonly signal: AbortSignal
  /** Tells the walk that what it was given is no longer available. */
  readonly withdraw: (why: unknown) => void
}

/** Options for reading any metadata. */
export interface Reading {
  /** Read images without the page cache, as devices are read. */
  readonly direct: boolean
  /** How devices, and images without the page cache, are read. */
  readonly reads?: WayToRead | undefined
  /** How long one request to a metadata device may take, in milliseconds. */
  readonly readDeadlineMs?: number | undefined
  /** The most bytes a second that one walker thread may read of a metadata device; undefined for no limit. */
  readonly readBytesPerSecond?: number | undefined
}

/** The surroundings of a walk in its thread. */
export interface WalkContext {
  readonly reading: Reading
  /** Updated during the walk. */
  readonly statistics: WalkStatistics
  /** Aborted when the answer is no longer wanted, with the reason. */
  readonly signal: AbortSignal
  /** Aborted when the main thread has withdrawn what it gave, or the answer is no longer wanted; with the reason. */
  readonly withdrawn: AbortSignal
  /** Asks for an aside of the plan. @throws when the answer is no longer wanted */
  readonly ask: (aside: string, value?: unknown) => Promise<unknown>
}

/** A target's walk: the encoded messages of an answer. @throws the error that ends the answer */
export type Walk<Request> = (request: Request, context: WalkContext) => AsyncGenerator<Uint8Array<ArrayBuffer>>
