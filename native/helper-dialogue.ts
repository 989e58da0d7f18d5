/**
 * A process of ours that must outlive its parent's death for a moment, seen from its parent: the keeper of a metadata
 * snapshot, the watchdog of a suspension. It answers one question at a time. When the parent is gone or lets it go, the
 * channel between them closes, and it tidies up and ends.
 *
 * (HelperProcess is for calls that may hang, of which many are under way: it is killed when its time is up.)
 */
import type { ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import { startHelper } from './helper-program.ts'

/** Most of a start is Node's own start-up, which is slow on a busy machine. Milliseconds. */
const START_DEADLINE_MS = 30_000
/** How long to wait for the end of a process that was let go, in milliseconds. */
const FAREWELL_MS = 1000

/** What its absence means. */
export interface DialogueErrors {
  /** It has ended, or could not be started: `ended (SIGKILL)`. */
  readonly lost: (what: string, cause?: unknown) => Error
  /** It has not answered in time. */
  readonly late: (deadlineMs: number) => Error
}

export class HelperDialogue<Question extends string | object, Answer> {
  readonly #child: ChildProcess
  readonly #errors: DialogueErrors
  readonly #lost = new AbortController()
  #settle: ((answer: { readonly answer: Answer } | { readonly error: Error }) => void) | undefined

  /**
   * Starts a program.
   *
   * @param program see `startHelper`
   * @param start its argument, as JSON
   */
  constructor(program: string, from: string, start: object, errors: DialogueErrors) {
    this.#errors = errors
    this.#child = startHelper(program, from, [JSON.stringify(start)], {
      // A process group of its own: signals for the agent's group (Ctrl-C) are not for it.
      detached: true,
      stdio: ['ignore', 'ignore', 'ignore', 'ipc'],
      // JSON has no bigint.
      serialization: 'advanced'
    })
    const lost = (what: string, cause?: unknown) => {
      const error = this.#errors.lost(what, cause)
      this.#lost.abort(error)
      this.#settle?.({ error })
    }
    this.#child.on('message', (answer) => this.#settle?.({ answer: answer as Answer }))
    this.#child.on('error', (error) => lost(`could not be started: ${error.message}`, error))
    this.#child.on('exit', (code, signal) => lost(`ended (${signal ?? `exit status ${code}`})`))
  }

  get pid(): number | undefined {
    return this.#child.pid
  }

  /** Aborted when the process has ended, expectedly or not. */
  get lost(): AbortSignal {
    return this.#lost.signal
  }

  /** Its first word, which it says unasked. @throws `DialogueErrors` */
  async started(): Promise<Answer> {
    return this.#next(START_DEADLINE_MS)
  }

  /** @throws `DialogueErrors`: then it is unknown what it has done */
  async ask(question: Question, deadlineMs: number): Promise<Answer> {
    const next = this.#next(deadlineMs)
    this.#child.send(question, () => undefined)
    return next
  }

  /**
   * Lets it go. Resolves when it has ended, or after a second: it may hang in the kernel, and must not hold up this
   * process.
   */
  async end(): Promise<void> {
    const child = this.#child
    if (child.connected) child.disconnect()
    if (child.exitCode !== null || child.signalCode !== null) return
    await Promise.race([once(child, 'exit').catch(() => undefined), sleep(FAREWELL_MS, undefined, { ref: false })])
    child.unref()
  }

  async #next(deadlineMs: number): Promise<Answer> {
    const { promise, resolve } = Promise.withResolvers<{ readonly answer: Answer } | { readonly error: Error }>()
    const timer = setTimeout(() => resolve({ error: this.#errors.late(deadlineMs) }), deadlineMs)
    this.#settle = resolve
    if (this.#lost.signal.aborted) resolve({ error: this.#lost.signal.reason as Error })
    const outcome = await promise
    clearTimeout(timer)
    this.#settle = undefined
    if ('error' in outcome) throw outcome.error
    return outcome.answer
  }
}
