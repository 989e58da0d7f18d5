/**
 * What a thin device holds, and has held: the truth that answers are held against. A version for each block; 0 is zeros.
 */
export class DeviceContent {
  /** As it was created. */
  readonly #initial: Int32Array
  /** By block: what it became, and at which turn, in order. */
  readonly #changes = new Map<number, { turn: number; version: number }[]>()
  /** Something was written to it or trimmed after it was created. */
  everWritten = false

  /** It was created as a volume, not as a snapshot. */
  readonly isVolume: boolean

  constructor(initial: Int32Array, isVolume = true) {
    this.#initial = initial
    this.isVolume = isVolume
  }

  get blocks(): number {
    return this.#initial.length
  }

  now(block: number): number {
    return this.#changes.get(block)?.at(-1)?.version ?? this.#initial[block]
  }

  set(block: number, version: number, turn: number): void {
    if (this.now(block) === version) return
    const changes = this.#changes.get(block)
    if (changes) changes.push({ turn, version })
    else this.#changes.set(block, [{ turn, version }])
  }

  at(block: number, turn: number): number {
    return this.#changes.get(block)?.findLast((each) => each.turn <= turn)?.version ?? this.#initial[block]
  }

  /** Whether a block held a version at some moment from a turn on. */
  heldSince(block: number, version: number, turn: number): boolean {
    if (this.at(block, turn) === version) return true
    return this.#changes.get(block)?.some((each) => each.turn > turn && each.version === version) ?? false
  }

  copy(): Int32Array {
    return Int32Array.from(this.#initial, (_, block) => this.now(block))
  }
}
