/**
 * What the main thread and a walker thread say to each other. Each walk goes by an id of the main thread's choice.
 */
import type { WayToRead } from '../../devicemapper/metadata-medium.ts'
import type { WalkStatistics } from './encoded-messages.ts'
import type { Reading, WalkTask } from './plan.ts'
import type { PortableError } from '../../portable-error.ts'

/** What a walker thread knows from its start. */
export interface WalkerData {
  /** How devices will be read. */
  readonly reads: WayToRead
  /** After so long, a turn no longer counts, in milliseconds. */
  readonly overdueMs?: number | undefined
}

/** What the main thread says. */
export type ToWalker =
  /** The walk may send so many messages. */
  | { kind: 'start'; id: number; task: WalkTask; reading: Reading; messages: number; client?: string }
  /** The answer to `ask`, whose number it has. */
  | { kind: 'answer'; id: number; ask: number; value: unknown }
  /** What an answer had lent is no longer there. */
  | { kind: 'withdrawn'; id: number; error: PortableError }
  /** The walk may send so many more messages. */
  | { kind: 'credit'; id: number; messages: number }
  | { kind: 'cancel'; id: number; error: PortableError }
  /** Many walks have ended: free the memory that they left. Not about one walk. */
  | { kind: 'rest'; id: number }

/** What the walker says. `end` and `error` are the last word on a walk. */
export type FromWalker =
  /** Its thread may be ended from now on. Not about one walk. */
  | { kind: 'ready'; id: number }
  /** Wants an aside of its plan. */
  | { kind: 'ask'; id: number; ask: number; aside: string; value: unknown }
  | { kind: 'message'; id: number; message: Uint8Array<ArrayBuffer>; statistics: TimedStatistics }
  | { kind: 'end'; id: number; statistics: TimedStatistics }
  | { kind: 'error'; id: number; error: PortableError; statistics: TimedStatistics }

/** The cost of a walk, with its time. */
export interface TimedStatistics extends WalkStatistics {
  /** How long it took, in milliseconds, without waiting for its client or for its turn. */
  walkMs: number
}

export function noStatistics(): TimedStatistics {
  return { nodesRead: 0, bytesRead: 0, readCalls: 0, extents: 0, extentBytes: 0, volumeBytes: 0, walkMs: 0 }
}
