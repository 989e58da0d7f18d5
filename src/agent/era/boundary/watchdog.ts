/**
 * The watchdog of one suspension (watchdog-process.ts), seen from the agent.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { HelperDialogue } from '../../../../native/helper-dialogue.ts'
import { defect, DeltamapperError, type ErrorCode } from '../../../errors.ts'
import { systemRemedy } from '../../../system-errors.ts'
import { groupRuns } from '../device/processes.ts'

/**
 * How much longer than the suspension's own deadline an answer may take, in milliseconds: resuming waits for calls that
 * hang.
 */
const ANSWER_MARGIN_MS = 30_000
/** How long to wait for the end of a watchdog that was killed, and how often to look, in milliseconds. */
const KILL_MS = 5000
const LOOK_MS = 50

/** The arguments of a watchdog, as JSON. */
export interface WatchdogStart {
  readonly device: { readonly uuid: string }
  /** To be resumed first, and closed to discards, if it is suspended as well. */
  readonly guard: { readonly uuid: string }
  readonly deadlineMs: number
}

export type WatchdogQuestion = 'suspend' | 'resume'

export type WatchdogAnswer =
  | 'ready'
  /** `ms`: how long it took. */
  | { readonly answer: 'suspended'; readonly ms: number }
  /**
   * `ms`: from the beginning of the suspension to its end. `held`: it was suspended all the time, as far as is known.
   */
  | { readonly answer: 'resumed'; readonly ms: number; readonly held: boolean }
  | { readonly answer: 'failed'; readonly code: ErrorCode; readonly message: string; readonly remedy: string }

export class Watchdog {
  readonly #dialogue: HelperDialogue<WatchdogQuestion, WatchdogAnswer>
  readonly #deadlineMs: number

  private constructor(start: WatchdogStart) {
    this.#deadlineMs = start.deadlineMs + ANSWER_MARGIN_MS
    this.#dialogue = new HelperDialogue('./watchdog-process', import.meta.url, start, {
      lost: (what, cause) =>
        new DeltamapperError(
          'DM_CALL_STUCK',
          `the process that watches over the suspension ${what}`,
          systemRemedy(cause) ??
            'find out why (the kernel log names processes that it killed when memory ran out), then ask again',
          { cause }
        ),
      late: () =>
        new DeltamapperError(
          'DM_CALL_STUCK',
          'the process that watches over the suspension has not answered',
          'see what the device waits for; ask again later'
        )
    })
  }

  /** Starts a watchdog. Nothing is suspended yet. @throws DM_CALL_STUCK */
  static async start(start: WatchdogStart): Promise<Watchdog> {
    const watchdog = new Watchdog(start)
    await watchdog.#dialogue.started()
    return watchdog
  }

  get pid(): number | undefined {
    return this.#dialogue.pid
  }

  /** Aborted when the watchdog has ended, expectedly or not. If it left a device suspended, nothing else resumes it. */
  get lost(): AbortSignal {
    return this.#dialogue.lost
  }

  /**
   * Suspends the device and freezes its file system. The watchdog resumes it on `resume`, when the deadline passes, or
   * when this process is gone.
   *
   * @returns how long it took, in milliseconds
   * @throws what suspending throws: then it is not suspended
   */
  async suspend(): Promise<number> {
    return expect(await this.#ask('suspend'), 'suspended').ms
  }

  /**
   * Resumes the device, unless that is done already.
   *
   * @returns how long it was suspended, in milliseconds, and whether that lasted until now
   */
  async resume(): Promise<{ ms: number; held: boolean }> {
    return expect(await this.#ask('resume'), 'resumed')
  }

  /** Lets it go. It first resumes a device that is still suspended. Resolves when it has ended, or after a second. */
  async end(): Promise<void> {
    await this.#dialogue.end()
  }

  /**
   * Kills it and its helper, whatever they are doing.
   *
   * @returns whether nothing of them is left that could suspend anything: a process that hangs in the kernel outlives
   *   the kill
   */
  async kill(): Promise<boolean> {
    const { pid } = this
    if (pid === undefined) return true
    try {
      process.kill(-pid, 'SIGKILL')
    } catch {
      return true
    }
    for (const begun = performance.now(); performance.now() - begun < KILL_MS; await sleep(LOOK_MS)) {
      if (!groupRuns(pid)) return true
    }
    return false
  }

  #ask(question: WatchdogQuestion): Promise<WatchdogAnswer> {
    return this.#dialogue.ask(question, this.#deadlineMs)
  }
}

type Named = Exclude<WatchdogAnswer, 'ready'>

function expect<A extends Named['answer']>(answer: WatchdogAnswer, expected: A): Extract<Named, { answer: A }> {
  if (answer !== 'ready' && answer.answer === expected) return answer as Extract<Named, { answer: A }>
  if (answer !== 'ready' && answer.answer === 'failed') {
    throw new DeltamapperError(answer.code, answer.message, answer.remedy)
  }
  throw defect(`a suspension's watchdog answered ${JSON.stringify(answer)}`)
}
