/**
 * One helper process, seen from its parent: it gets one request at a time, and is given up when its time is up.
 *
 * A process that waits uninterruptibly in the kernel does not die of SIGKILL until the kernel lets it go. Giving it up
 * means: kill it, expect nothing of it any more, and learn later (`onGone`) that it has really ended.
 */
import type { ChildProcess } from 'node:child_process'
import type { HelperConfiguration, Reply, Request } from './call.ts'
import { startHelper } from './helper-program.ts'

/** A start is Node's own start-up, and cannot hang; on a busy machine it may take long. */
const startDeadlineMs = 30_000
const keptOutputBytes = 2000

export type Ending =
  | { readonly how: 'answered'; readonly reply: Reply }
  /** The deadline passed; the process was given up and stays until the kernel lets it go. */
  | { readonly how: 'stuck'; readonly afterMs: number }
  /** The process ended by itself or was killed by someone else. */
  | { readonly how: 'died'; readonly why: string }
  /** The system had nothing left for a process: nothing was asked. */
  | { readonly how: 'not started'; readonly cause: Error }

export interface HelperEvents {
  /** The running call has taken longer than `patienceMs`. */
  onSlow: () => void
  /** The process has ended, for any reason. */
  onGone: () => void
}

export class HelperProcess {
  readonly #child: ChildProcess
  readonly #events: HelperEvents
  readonly #patienceMs: number
  #ready = false
  #gone = false
  #givenUp = false
  #slow = false
  #output = ''
  #current: { request: Request; deadlineMs: number; settle: (ending: Ending) => void } | undefined
  #timers: NodeJS.Timeout[] = []

  constructor(configuration: HelperConfiguration, patienceMs: number, events: HelperEvents) {
    this.#events = events
    this.#patienceMs = patienceMs
    const args = [JSON.stringify(configuration), String(process.pid)]
    this.#child = startHelper('./device-mapper-worker', import.meta.url, args, {
      stdio: ['ignore', 'ignore', 'pipe', 'ipc']
    })
    this.#child.stderr?.setEncoding('utf8').on('data', (chunk: string) => {
      this.#output = (this.#output + chunk).slice(-keptOutputBytes)
    })
    this.#child.on('message', (message: 'ready' | Reply) => {
      if (message === 'ready') {
        this.#ready = true
        if (this.#current !== undefined) this.#startClock()
      } else if (message.id === this.#current?.request.id) this.#settle({ how: 'answered', reply: message })
    })
    this.#child.on('error', (error) => {
      if (this.#child.pid === undefined) this.#settle({ how: 'not started', cause: error })
      this.#end(error.message)
    })
    this.#child.on('exit', (code, signal) => this.#end(signal ?? `exit status ${code}`))
    this.#keepParentAlive(false)
  }

  get pid(): number | undefined {
    return this.#child.pid
  }

  get idle(): boolean {
    return this.#current === undefined && !this.#gone && !this.#givenUp
  }

  /** Its call has taken longer than others should wait. */
  get slow(): boolean {
    return this.#slow
  }

  /** Sends one request. Never rejects. The deadline, in milliseconds, counts from when the process can begin. */
  run(request: Request, deadlineMs: number): Promise<Ending> {
    return new Promise((settle) => {
      this.#current = { request, deadlineMs, settle }
      this.#keepParentAlive(true)
      // What is wrong with it comes as an event. (Where descriptors have run out, there is nothing to send through.)
      if (this.#child.pid === undefined) return
      this.#child.send(request, (error) => {
        if (error !== null) this.#end(error.message)
      })
      if (this.#ready) this.#startClock()
      else this.#timers.push(setTimeout(() => this.#giveUp(startDeadlineMs), startDeadlineMs))
    })
  }

  /** Lets an idle process end. */
  dismiss(): void {
    if (this.#child.connected) this.#child.disconnect()
  }

  #startClock(): void {
    this.#stopClock()
    const { deadlineMs } = this.#current!
    this.#timers.push(
      setTimeout(() => this.#giveUp(deadlineMs), deadlineMs),
      setTimeout(() => {
        this.#slow = true
        this.#events.onSlow()
      }, this.#patienceMs)
    )
  }

  #stopClock(): void {
    for (const timer of this.#timers) clearTimeout(timer)
    this.#timers = []
  }

  #giveUp(afterMs: number): void {
    this.#givenUp = true
    this.#child.kill('SIGKILL')
    this.#settle({ how: 'stuck', afterMs })
  }

  #end(why: string): void {
    if (this.#gone) return
    this.#gone = true
    const last = this.#output
      .trim()
      .split('\n')
      .find((line) => /error/i.test(line))
    this.#settle({ how: 'died', why: last === undefined ? why : `${why}: ${last.trim()}` })
    this.#events.onGone()
  }

  #settle(ending: Ending): void {
    this.#stopClock()
    this.#slow = false
    const settle = this.#current?.settle
    this.#current = undefined
    this.#keepParentAlive(false)
    settle?.(ending)
  }

  /** Only a running call is a reason for the parent to stay. */
  #keepParentAlive(alive: boolean): void {
    const stderr = this.#child.stderr as (NodeJS.ReadableStream & { ref(): void; unref(): void }) | null
    for (const handle of [this.#child, this.#child.channel, stderr]) {
      if (alive) handle?.ref()
      else handle?.unref()
    }
  }
}
