/**
 * Gives memory back when many streams have ended. V8 collects garbage when it allocates, and malloc keeps freed memory
 * for later: after a burst, an idle server would keep its memory for ever.
 */
import { createRequire } from 'node:module'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import type koffi from 'koffi'

/** Fewer streams at a time are no burst. */
const BURST = 32
/** A burst is over when less than this part of it has been left for so long, in milliseconds. */
const [LEFT, QUIET_MS] = [0.25, 2000]

export class Bursts {
  readonly #onOver: () => void
  #streams = 0
  #peak = 0
  #timer: NodeJS.Timeout | undefined

  constructor(onOver: () => void) {
    this.#onOver = onOver
  }

  begun(): void {
    this.#peak = Math.max(this.#peak, ++this.#streams)
  }

  ended(): void {
    this.#streams--
    if (this.#timer || !this.#isOver()) return
    this.#timer = setTimeout(() => this.#look(), QUIET_MS).unref()
  }

  #isOver(): boolean {
    return this.#peak >= BURST && this.#streams <= this.#peak * LEFT
  }

  #look(): void {
    this.#timer = undefined
    if (!this.#isOver()) return
    this.#peak = this.#streams
    this.#onOver()
  }
}

let collect: (() => void) | undefined
let trim: ((keep: number) => number) | undefined

/** Collects this thread's garbage. Takes some ten milliseconds. */
export function collectGarbage(): void {
  setFlagsFromString('--expose-gc')
  collect ??= runInNewContext('gc') as () => void
  collect()
}

/**
 * Collects this thread's garbage, and gives malloc's unused memory of the whole process back to the system. For the
 * main thread: koffi aborts the process if a thread is ended while it loads it, as by a stop of the agent.
 */
export function giveMemoryBack(): void {
  collectGarbage()
  // Other C libraries than glibc have no such call, and keep less.
  try {
    trim ??= (createRequire(import.meta.url)('koffi') as typeof koffi)
      .load(null)
      .func('int malloc_trim(size_t keep)') as (keep: number) => number
  } catch {
    trim = () => 0
  }
  trim(0)
}
