/**
 * Volumes that are suspended for a driver, which takes the lower snapshot by itself: from BeginSnapshot until
 * EndSnapshot, the deadline, the death of the watchdog, or the end of the agent.
 *
 *     begin ─▶ token, and the volume waits ─▶ end(token, reference) ─▶ on record
 *                                           └▶ deadline, lost, abandon ─▶ resumed, given up
 */
import type { Logger } from 'pino'
import { asDeltamapperError, DeltamapperError, invalid } from '../../../errors.ts'
import type { EraSnapshot } from '../../catalog/era-snapshots.ts'
import type { Boundary } from './boundary.ts'
import type { LowerSnapshotRecord } from './lower-snapshot.ts'

/** The longest description that a driver may give of its snapshot, in characters. */
const LONGEST_REFERENCE = 1000

/** What a driver's call began with. */
export interface BegunSuspension {
  readonly boundary: Boundary
  /** What `unmountedSince` returned at its beginning. */
  readonly unmounted: string | undefined
}

interface Session extends BegunSuspension {
  readonly over: () => void
  readonly timer: NodeJS.Timeout
}

/** The snapshot of a suspension that ended well. */
export interface DriverSnapshot {
  readonly volume: string
  readonly snapshot: EraSnapshot
  readonly unmounted: string | undefined
}

export class DriverSuspensions {
  readonly #logger: Logger
  readonly #sessions = new Map<string, Session>()
  #isClosed = false

  constructor(logger: Logger) {
    this.#logger = logger
  }

  /**
   * Keeps a suspension for its driver.
   *
   * @param deadlineMs when it is given up, in milliseconds from now
   * @param began is called once the driver can end it
   * @returns when it has ended, in whichever way: until then the volume's lock must be held
   */
  async keep(begun: BegunSuspension, deadlineMs: number, began: () => void): Promise<void> {
    const over = Promise.withResolvers<undefined>()
    const { token, lost } = begun.boundary
    const timer = setTimeout(() => void this.#expire(token), deadlineMs)
    this.#sessions.set(token, { ...begun, timer, over: () => over.resolve(undefined) })
    lost.addEventListener('abort', () => void this.#expire(token))
    began()
    if (this.#isClosed || lost.aborted) await this.#expire(token)
    await over.promise
  }

  /**
   * Ends a suspension with the driver's snapshot, or gives it up.
   *
   * @param reference what the driver calls its snapshot, at most LONGEST_REFERENCE characters
   * @returns undefined if it was to be given up
   * @throws DM_ARGUMENT_INVALID for an unusable reference (the suspension goes on), DM_SNAPSHOT_TOO_SLOW, and what
   *   Boundary.complete throws
   */
  async end(token: string, reference: string, abandon: boolean): Promise<DriverSnapshot | undefined> {
    // Checked before anything is ended, so that the driver can correct it within its deadline.
    if (!abandon) checkReference(reference)
    const session = this.#take(token)
    if (!session) {
      throw new DeltamapperError(
        'DM_SNAPSHOT_TOO_SLOW',
        'there is no such suspension any more: its deadline has passed, its watchdog died (the log says so), or the agent was restarted',
        'remove what was taken, and begin again; give BeginSnapshot a later deadline if it has to be that long'
      )
    }
    const { boundary, unmounted } = session
    try {
      if (abandon) {
        await boundary.abandon()
        return undefined
      }
      const lower: LowerSnapshotRecord = { kind: 'driver', reference }
      return { volume: boundary.volume.name, snapshot: await boundary.complete(lower), unmounted }
    } finally {
      await boundary.abandon()
      session.over()
    }
  }

  /** Gives up all that are kept, and all that begin from now on. */
  async close(): Promise<void> {
    this.#isClosed = true
    for (const token of [...this.#sessions.keys()]) await this.#expire(token)
  }

  #take(token: string): Session | undefined {
    const session = this.#sessions.get(token)
    this.#sessions.delete(token)
    clearTimeout(session?.timer)
    return session
  }

  async #expire(token: string): Promise<void> {
    const session = this.#take(token)
    if (!session) return
    await session.boundary.abandon().catch((error: unknown) => {
      this.#logger.error({ what: asDeltamapperError(error).line }, 'a suspension was not ended in order')
    })
    session.over()
  }
}

/** @throws DM_ARGUMENT_INVALID for text that the catalog could not store unchanged */
function checkReference(reference: string): void {
  const { length } = reference
  if (length <= LONGEST_REFERENCE && reference.isWellFormed() && !/\p{Cc}/u.test(reference)) return
  throw invalid(
    length > LONGEST_REFERENCE
      ? `a reference of ${length} characters is too long`
      : `the reference ${JSON.stringify(reference.slice(0, 50))} has control characters in it`,
    `end the suspension with one of at most ${LONGEST_REFERENCE} characters, or with abandon`
  )
}
