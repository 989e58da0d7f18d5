/**
 * Seeded pseudo-random numbers, so that everything random can be made again from its seed.
 *
 * The generator is a 32-bit counter (Weyl sequence) through a mixing function: small, fast, and good enough to shape
 * data.
 */
export class Random {
  readonly seed: number
  #state: number

  constructor(seed: number) {
    this.seed = seed
    this.#state = seed >>> 0
    this.uint32() // neighbouring seeds start apart
  }

  uint32(): number {
    this.#state = (this.#state + 0x9e3779b9) >>> 0
    let mixed = this.#state
    mixed = Math.imul(mixed ^ (mixed >>> 16), 0x21f0aaad)
    mixed = Math.imul(mixed ^ (mixed >>> 15), 0x735a2d97)
    return (mixed ^ (mixed >>> 15)) >>> 0
  }

  /** In [0, 1), with 53 random bits. */
  fraction(): number {
    return ((this.uint32() >>> 5) * 0x4000000 + (this.uint32() >>> 6)) / 0x20000000000000
  }

  /** An integer in [low, high], both inclusive. */
  integer(low: number, high: number): number {
    return low + Math.floor(this.fraction() * (high - low + 1))
  }

  chance(probability: number): boolean {
    return this.fraction() < probability
  }

  pick<T>(items: readonly T[]): T {
    const picked = items[this.integer(0, items.length - 1)]
    if (picked === undefined) throw new RangeError('nothing to pick from')
    return picked
  }

  /** A shuffled copy. */
  shuffle<T>(items: Iterable<T>): T[] {
    const shuffled = [...items]
    for (let last = shuffled.length - 1; last > 0; last--) {
      const other = this.integer(0, last)
      const kept = shuffled[last]
      shuffled[last] = shuffled[other]
      shuffled[other] = kept
    }
    return shuffled
  }

  /** Another generator that does not disturb this one's sequence when more is drawn from it. */
  fork(): Random {
    return new Random(this.uint32())
  }
}
