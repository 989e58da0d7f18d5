/**
 * Mappings that several devices share. thin_dump 1.x prints each such list once, with a name, before the devices, which
 * then refer to it. Any device may refer to it, so it is kept until the end, packed: each number as its difference from
 * the likely one, seven bits to a byte. That takes about six bytes for a run, within a fixed limit.
 */
import { refuse } from '../xml-stream.ts'

/** Memory for packed mappings: some ten million runs. */
export const SHARED_BYTES = 64 * 2 ** 20
/** What a list takes beside its runs: its name and place in a map. */
const LIST_BYTES = 200
/** Four numbers of up to 2^41, seven bits to a byte. */
const MOST_RUN_BYTES = 4 * 6

/** A run of mappings: virtual blocks `[begin, begin + length)` to data blocks from `data` on. */
export interface MappingRun {
  begin: number
  data: number
  length: number
  time: number
}

/**
 * A list of runs: where its bytes are, the virtual blocks `[begin, end)` that it lies in, and how many of them it maps.
 */
interface SharedList {
  readonly from: number
  readonly to: number
  readonly begin: number
  readonly end: number
  readonly blocks: number
}

export class SharedMappings {
  readonly #lists = new Map<string, SharedList>()
  readonly #most: number
  #bytes = Buffer.alloc(4096)
  #used = 0
  #open: { name: string; from: number; begin: number; blocks: number } | undefined
  readonly #last = { end: 0, dataEnd: 0, time: 0 }

  /** @param most bytes of memory to take */
  constructor(most: number) {
    this.#most = most
  }

  begin(name: string): void {
    if (this.#lists.has(name)) refuse(`${JSON.stringify(name.slice(0, 40))} is defined a second time`)
    this.#open = { name, from: this.#used, begin: 0, blocks: 0 }
    this.#restart()
  }

  /** Adds a run to the list that was begun; runs ascend. */
  add(begin: number, data: number, length: number, time: number): void {
    if (this.#used + MOST_RUN_BYTES > this.#bytes.length) this.#grow()
    if (this.#open) {
      if (this.#open.blocks === 0) this.#open.begin = begin
      this.#open.blocks += length
    }
    this.#put(begin - this.#last.end)
    this.#put(zigzag(data - this.#last.dataEnd))
    this.#put(length)
    this.#put(zigzag(time - this.#last.time))
    this.#last.end = begin + length
    this.#last.dataEnd = data + length
    this.#last.time = time
  }

  end(): void {
    if (this.#open === undefined) return
    const { name, from, begin, blocks } = this.#open
    this.#lists.set(name, { from, to: this.#used, begin, end: blocks === 0 ? 0 : this.#last.end, blocks })
    this.#open = undefined
    this.#checkRoom(0)
  }

  /** The totals of a list, without unpacking it. */
  list(name: string): Readonly<SharedList> {
    return this.#lists.get(name) ?? refuse(`${JSON.stringify(name.slice(0, 40))} is not defined`)
  }

  /** The runs of a list, in order; the same object each time. */
  *runs(name: string): Generator<MappingRun, void> {
    const { from, to } = this.list(name)
    const run = { begin: 0, data: 0, length: 0, time: 0 }
    let [end, dataEnd] = [0, 0]
    let at = from
    const bytes = this.#bytes
    const next = () => {
      let value = 0
      for (let scale = 1; ; scale *= 128) {
        const byte = bytes[at++]
        value += (byte & 127) * scale
        if (byte < 128) return value
      }
    }
    while (at < to) {
      run.begin = end + next()
      run.data = dataEnd + unzigzag(next())
      run.length = next()
      run.time += unzigzag(next())
      end = run.begin + run.length
      dataEnd = run.data + run.length
      yield run
    }
  }

  #restart(): void {
    this.#last.end = 0
    this.#last.dataEnd = 0
    this.#last.time = 0
  }

  #put(value: number): void {
    let rest = value
    while (rest >= 128) {
      this.#bytes[this.#used++] = (rest % 128) | 128
      rest = Math.floor(rest / 128)
    }
    this.#bytes[this.#used++] = rest
  }

  #grow(): void {
    this.#checkRoom(MOST_RUN_BYTES)
    const bytes = Buffer.alloc(Math.min(2 * this.#bytes.length, this.#most))
    this.#bytes.copy(bytes, 0, 0, this.#used)
    this.#bytes = bytes
  }

  #checkRoom(more: number): void {
    if (this.#used + more + this.#lists.size * LIST_BYTES <= this.#most) return
    refuse(
      `the mappings that devices share take more than ${this.#most / 2 ** 20} MiB of memory`,
      'print one device alone (thin_dump --dev-id), which then shares nothing'
    )
  }
}

/** Integers of both signs as non-negative ones, small ones small. */
function zigzag(value: number): number {
  return value < 0 ? -2 * value - 1 : 2 * value
}

function unzigzag(value: number): number {
  return value % 2 === 1 ? -(value + 1) / 2 : value / 2
}
