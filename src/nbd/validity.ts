/**
 * Whether what is served still is what it was. Nothing leaves the server, no status and no data, before a look that
 * began after it was read has found that. A look costs a few reads, so all that wait share one.
 *
 * Once it is not, nothing leaves any more: a client may keep what it has got, and must hear that this is not a
 * snapshot.
 */
export class Validity {
  readonly #look: () => Promise<void>
  #running: Promise<void> | undefined
  #next: Promise<void> | undefined
  #failure: { readonly error: unknown } | undefined

  /** @param look throws what is wrong */
  constructor(look: () => Promise<void>) {
    this.#look = look
  }

  /** What was found to be wrong, and stays so; undefined so far. */
  get failure(): unknown {
    return this.#failure?.error
  }

  /** Resolves after a look that began after this call. @throws what it has found, or one before */
  async confirm(): Promise<void> {
    if (this.#running === undefined) this.#running = this.#start()
    else {
      // That one began too early for this caller.
      this.#next ??= this.#running.then(
        () => this.#follow(),
        () => this.#follow()
      )
      return this.#next
    }
    return this.#running
  }

  #follow(): Promise<void> {
    this.#next = undefined
    return (this.#running = this.#start())
  }

  async #start(): Promise<void> {
    try {
      if (this.#failure) throw this.#failure.error
      await this.#look()
    } catch (error) {
      this.#failure ??= { error }
      throw error
    } finally {
      // Who follows has put itself here already.
      if (this.#next === undefined) this.#running = undefined
    }
  }
}
