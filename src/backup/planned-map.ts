/**
 * What a copy will be, remembered: the tool that copies asks for the very map that was just walked, and is told without
 * asking whoever knows it again.
 */
import { HOLE, ZERO } from '../nbd/protocol.ts'
import { type ExtentQuestion, StatusMap } from '../nbd/status-map.ts'

/** Of each kind, neighbours joined. More are not kept: 16 bytes each. */
const MOST_RUNS = 2 ** 20
/** Extents of an answer at once. */
const BATCH = 4096

export class PlannedMap {
  readonly #sizeBytes: number
  readonly #data = new Runs()
  readonly #zeros = new Runs()
  /** @param sizeBytes of the volume */
  constructor(sizeBytes: number) {
    this.#sizeBytes = sizeBytes
  }

  /** Adds bytes `[begin, end)`, in order, with their `base:allocation` flags. */
  add(begin: number, end: number, flags: number): void {
    if (flags === 0) this.#data.add(begin, end)
    else if (flags === (HOLE | ZERO)) this.#zeros.add(begin, end)
  }

  /** Undefined where there are too many runs to remember. */
  map(): StatusMap | undefined {
    const kinds = [this.#data, this.#zeros]
    if (kinds.some(({ isWhole }) => !isWhole)) return undefined
    return new StatusMap({
      sizeBytes: this.#sizeBytes,
      questions: kinds.map((runs) => runs.question),
      // (What is neither is left to the file below. A whole snapshot has none of that.)
      state: ([isData, isZeros]) => (isData ? 0 : isZeros ? HOLE | ZERO : HOLE)
    })
  }
}

class Runs {
  readonly #begins: number[] = []
  readonly #ends: number[] = []
  isWhole = true

  add(begin: number, end: number): void {
    const last = this.#ends.length - 1
    if (last >= 0 && this.#ends[last] === begin) this.#ends[last] = end
    else if (this.#ends.length === MOST_RUNS) this.isWhole = false
    else {
      this.#begins.push(begin)
      this.#ends.push(end)
    }
  }

  question: ExtentQuestion = async (startingOffset) => {
    const [begins, ends] = [this.#begins, this.#ends]
    const first = ends.findIndex((end) => end > startingOffset)
    return {
      capacityBytes: undefined,
      batches: (async function* () {
        for (let at = first; at >= 0 && at < ends.length; at += BATCH) {
          const offsets = Float64Array.from(begins.slice(at, at + BATCH))
          yield { count: offsets.length, offsets, sizes: offsets.map((begin, i) => ends[at + i] - begin) }
        }
      })()
    }
  }
}
