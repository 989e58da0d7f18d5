/**
 * How many calls a client may make in vain.
 *
 * A call costs its server about a millisecond before anything can be said of it, even if nobody waits for the answer.
 * So each call takes one from its client's budget, and an answer gives it back. A cancelled call is paid for with time.
 * A client that waits for its answers does not notice. A client that starts and cancels thousands of calls is served as
 * many as it is allowed, and takes no time from others.
 */

export interface CallAllowance {
  /** Calls under way and cancelled, at the most. */
  readonly calls: number
  /** Cancelled ones that are paid for in a second. */
  readonly perSecond: number
}

export class CallBudget {
  readonly #allowance: CallAllowance
  #left: number
  #countedAt = performance.now()

  constructor(allowance: CallAllowance) {
    this.#allowance = allowance
    this.#left = allowance.calls
  }

  /** Calls that may be made now. */
  get left(): number {
    const now = performance.now()
    const { calls, perSecond } = this.#allowance
    this.#left = Math.min(calls, this.#left + ((now - this.#countedAt) / 1000) * perSecond)
    this.#countedAt = now
    return this.#left
  }

  get isWhole(): boolean {
    return this.left >= this.#allowance.calls
  }

  /** A call begins. False if the budget is empty. */
  take(): boolean {
    if (this.left < 1) return false
    this.#left--
    return true
  }

  /** It has been answered. */
  giveBack(): void {
    this.#left = Math.min(this.#allowance.calls, this.left + 1)
  }

  /** Milliseconds until so many calls may be made, if nothing else happens; 0 for now. */
  msUntil(calls: number): number {
    return Math.max(0, ((calls - this.left) / this.#allowance.perSecond) * 1000)
  }
}
