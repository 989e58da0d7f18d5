/** The interface of a kind of storage whose snapshots the agent answers for. The registry is targets.ts. */
import type { Logger } from 'pino'
import { DeltamapperError } from '../../errors.ts'
import type { BaseRecords } from './base-records.ts'
import type { ClassicServices } from './classic-services.ts'
import type { DeviceKnowledge } from './served-target.ts'
import type { FoundSnapshot } from '../walks/snapshot.ts'
import type { Plan } from '../walks/plan.ts'
import type { ToolEngine } from '../walks/tool-engine.ts'

/** Base and target have been found, and are of one kind. */
export interface Question<S extends FoundSnapshot = FoundSnapshot> {
  /** Undefined: everything the target has allocated. */
  readonly base: S | undefined
  readonly target: S
  /** Bytes, as the client gave them. */
  readonly startingOffset: bigint
  /** The most extents in a message; 0 chooses a good number. */
  readonly maxResults: number
  /** Whether base and target may be of different volumes: the handles are ours, and meant as they are. */
  readonly anyVolume: boolean
  readonly lookUp: LookUp
}

/** A question about a base that is not found. */
export interface QuestionWithoutBase<S extends FoundSnapshot = FoundSnapshot> extends Omit<Question<S>, 'base'> {
  readonly baseHandle: string
}

/**
 * Finds the snapshots with these handles, all at one look, which begins when it is called. @throws
 * DM_SNAPSHOT_NOT_FOUND …
 */
export type LookUp = (handles: readonly string[]) => Promise<FoundSnapshot[]>

/** Which questions about a kind of snapshots are allowed, and how they are answered. */
export interface TargetAnswers<S extends FoundSnapshot = FoundSnapshot> {
  /** Ends a sentence that begins with a handle: `is in a thin pool`. */
  readonly where: string
  /** What a snapshot is to this node (device-named.ts); undefined where it has no device here. */
  named(snapshot: S): string | undefined
  /** Refuses what cannot be compared, before any metadata is read. @throws the refusal */
  plan(question: Question<S>): Plan | Promise<Plan>
  /**
   * The same for a base that does not exist; undefined if nothing is known of it.
   *
   * @throws the refusal
   */
  planWithoutBase?(question: QuestionWithoutBase<S>): Promise<Plan | undefined>
}

/** What the agent provides for answering. */
export interface AnswerServices {
  /** What is known of the devices of live pools. */
  readonly knowledge?: DeviceKnowledge | undefined
  /** The records of bases that are gone. */
  readonly bases?: BaseRecords | undefined
  /** The tools, if they have a part in answers. */
  readonly tools?: ToolEngine | undefined
  /** Told of what is answered all the same. */
  readonly logger?: Pick<Logger, 'warn'> | undefined
  /** What classic snapshots take. */
  readonly classic?: ClassicServices | undefined
}

/** A target as the registry has it. */
export type Target<S extends FoundSnapshot> = (services: AnswerServices) => TargetAnswers<S>

/** The target for snapshots of a kind; undefined if there is none. */
export type AnswersOf = (kind: string) => TargetAnswers | undefined

/** @throws DM_OFFSET_OUT_OF_RANGE */
export function checkOffset(startingOffset: bigint, handle: string, sizeBytes: number): void {
  if (startingOffset >= 0n && startingOffset <= sizeBytes) return
  throw new DeltamapperError(
    'DM_OFFSET_OUT_OF_RANGE',
    `starting offset ${startingOffset} is outside ${handle}, which has ${sizeBytes} bytes`,
    'resume at the end of the last extent received, or at 0'
  )
}
