/**
 * Sets of bytes as ascending ranges, for comparing answers: what counts is which bytes they name, not how they cut
 * them up.
 */

/** Bytes `[start, end)`. */
export type Range = readonly [start: number, end: number]

/** Of an answer that is out of order anyway, this many do. */
const MOST_OUT_OF_ORDER = 5000

/** Ranges as they come, joined where they touch; up to a limit, behind which nothing is known. */
export class RangeList {
  readonly #most: number
  readonly #starts: number[] = []
  readonly #ends: number[] = []
  #ascending = true
  #knownUntil = Infinity

  /** @param most ranges that are kept */
  constructor(most: number) {
    this.#most = most
  }

  add(offset: number, size: number): void {
    const last = this.#ends.length - 1
    if (last >= 0 && this.#ends[last] === offset) {
      this.#ends[last] = offset + size
    } else if (this.#ends.length < (this.#ascending ? this.#most : MOST_OUT_OF_ORDER)) {
      if (last >= 0 && offset < this.#ends[last]) this.#ascending = false
      this.#starts.push(offset)
      this.#ends.push(offset + size)
    } else this.#knownUntil = Math.min(this.#knownUntil, this.#ascending ? offset : 0)
  }

  get count(): number {
    return this.#ends.length
  }

  finish(): KnownRanges {
    const flat = this.#starts.flatMap((start, i) => [start, this.#ends[i]])
    const knownUntil = this.#knownUntil === Infinity ? null : this.#knownUntil
    const known = { flat, knownUntil }
    return this.#ascending ? known : { flat: union(rangesOf(known)).flat(), knownUntil }
  }
}

/** What is known of an answer. */
export interface KnownRanges {
  /** Start and end of each range, one after the other: an answer may have many. */
  readonly flat: readonly number[]
  /** From this byte on, nothing is known: there were more ranges than are kept. null: everything is. */
  readonly knownUntil: number | null
}

export function rangesOf({ flat }: Pick<KnownRanges, 'flat'>): Range[] {
  return Array.from({ length: flat.length / 2 }, (_, i) => [flat[2 * i], flat[2 * i + 1]])
}

/** Sorted, joined, and without empty ones. */
export function union(ranges: readonly Range[]): Range[] {
  const joined: [number, number][] = []
  for (const [start, end] of [...ranges].sort((one, other) => one[0] - other[0])) {
    const last = joined.at(-1)
    if (start >= end) continue
    if (last !== undefined && start <= last[1]) last[1] = Math.max(last[1], end)
    else joined.push([start, end])
  }
  return joined
}

/** The part of ascending ranges within `[from, until)`. */
export function within(ranges: readonly Range[], from: number, until = Infinity): Range[] {
  return ranges
    .filter(([start, end]) => end > from && start < until)
    .map(([start, end]) => [Math.max(start, from), Math.min(end, until)])
}

/** What of `ranges` is not in `others`; both ascending and disjoint. */
export function missing(ranges: readonly Range[], others: readonly Range[]): Range[] {
  const left: Range[] = []
  let other = 0
  for (const [start, end] of ranges) {
    let at = start
    while (other < others.length && others[other][1] <= at) other++
    for (let i = other; i < others.length && others[i][0] < end; i++) {
      const [begins, ends] = others[i]
      if (begins > at) left.push([at, begins])
      at = Math.max(at, ends)
    }
    if (at < end) left.push([at, end])
  }
  return left
}

export function totalBytes(ranges: readonly Range[]): number {
  return ranges.reduce((sum, [start, end]) => sum + end - start, 0)
}

/** The first of them, for people. */
export function shown(ranges: readonly Range[]): string {
  const first = ranges.slice(0, 3).map(([start, end]) => `[${start}, ${end})`)
  return first.join(', ') + (ranges.length > 3 ? ` and ${ranges.length - 3} more` : '')
}
