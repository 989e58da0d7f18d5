/**
 * The words of a status or table line. Kernels differ in how many words they end with, so a line is read from the left,
 * word by word. A word that does not fit its place is an error, never a guess.
 */
import { DeltamapperError } from '../errors.ts'

/** A device as the kernel prints it (`format_dev_t` in drivers/md/dm-table.c): major and minor number. */
export interface DeviceNumber {
  readonly major: number
  readonly minor: number
}

export class TargetWords {
  readonly #line: string
  readonly #what: string
  readonly #words: string[]
  #next = 0

  /** `what` names the line in errors, such as `status of a thin pool`. */
  constructor(line: string, what: string) {
    this.#line = line
    this.#what = what
    this.#words = line.split(' ').filter((word) => word !== '')
  }

  /** Whether all words are read. */
  get done(): boolean {
    return this.#next >= this.#words.length
  }

  /** Throws DM_STATUS_UNKNOWN when there is no further word. */
  word(): string {
    const word = this.#words[this.#next++]
    return word ?? this.#refuse('the end')
  }

  /** One of the given words, as its value. Throws DM_STATUS_UNKNOWN for any other. */
  choice<T>(choices: Readonly<Record<string, T>>): T {
    const word = this.word()
    return Object.hasOwn(choices, word) ? choices[word] : this.#refuse(word)
  }

  /** A whole number below 2^53. */
  number(): number {
    const word = this.word()
    const value = /^[0-9]{1,16}$/.test(word) ? Number(word) : NaN
    return Number.isSafeInteger(value) ? value : this.#refuse(word)
  }

  /** A whole number below 2^64. */
  bigint(): bigint {
    const word = this.word()
    const value = /^[0-9]{1,20}$/.test(word) ? BigInt(word) : 1n << 64n
    return value < 1n << 64n ? value : this.#refuse(word)
  }

  /** A number, or `-` for none. */
  optionalNumber(): number | undefined {
    if (this.#words[this.#next] !== '-') return this.number()
    this.#next++
    return undefined
  }

  /** `used/total`, used not above total. */
  fraction(): { used: number; total: number } {
    const word = this.word()
    const [used, total, ...more] = word.split('/').map((part) => (/^[0-9]{1,16}$/.test(part) ? Number(part) : NaN))
    const whole = Number.isSafeInteger(used) && Number.isSafeInteger(total) && more.length === 0
    return whole && used <= total ? { used: used, total: total } : this.#refuse(word)
  }

  /** `major:minor`. */
  device(): DeviceNumber {
    const word = this.word()
    const [, major, minor] = /^([0-9]{1,4}):([0-9]{1,7})$/.exec(word) ?? this.#refuse(word)
    const device = { major: Number(major), minor: Number(minor) }
    return device.major < 2 ** 12 && device.minor < 2 ** 20 ? device : this.#refuse(word)
  }

  /** Throws DM_STATUS_UNKNOWN when a word is left: for lines in which more words would change the meaning. */
  end(): void {
    if (!this.done) this.#refuse(this.word())
  }

  /** For an impossible value: throws DM_STATUS_UNKNOWN naming the last word. */
  refuseLast(): never {
    return this.#refuse(this.#words[this.#next - 1] ?? 'the end')
  }

  #refuse(word: string): never {
    throw new DeltamapperError(
      'DM_STATUS_UNKNOWN',
      `${this.#what} is not understood at ${JSON.stringify(word.slice(0, 50))}: ${JSON.stringify(this.#line.slice(0, 200))}`,
      'update deltamapper, and report this line with the version of the kernel'
    )
  }
}
