/**
 * Memory that data passes through: page-aligned, because O_DIRECT wants that; used again; and never more than so much
 * of it, however many clients there are and however slowly they take what they asked for. Who finds none free waits.
 */
import { pageAligned } from '../devicemapper/page-aligned.ts'

/** What is read and sent at once, in bytes. */
export const PIECE_BYTES = 256 * 1024
/** Room for what a read has to take with it at both ends, to begin and to end at a page. */
const EDGE_BYTES = 8192
const SLAB_BYTES = 8 * 2 ** 20

export class ReadBuffers {
  readonly #most: number
  readonly #free: Buffer[] = []
  readonly #waiting: ((buffer: Buffer) => void)[] = []
  #made = 0

  /** @param most buffers in all */
  constructor(most: number) {
    this.#most = most
  }

  async take(): Promise<Buffer> {
    if (this.#free.length === 0 && this.#made < this.#most) this.#makeSlab()
    const buffer = this.#free.pop()
    return buffer ?? new Promise((resolve) => this.#waiting.push(resolve))
  }

  giveBack(buffer: Buffer): void {
    const next = this.#waiting.shift()
    if (next) next(buffer)
    else this.#free.push(buffer)
  }

  #makeSlab(): void {
    const slab = pageAligned(SLAB_BYTES)
    const each = PIECE_BYTES + EDGE_BYTES
    for (let at = 0; at + each <= SLAB_BYTES && this.#made < this.#most; at += each, this.#made++) {
      this.#free.push(slab.subarray(at, at + each))
    }
  }
}
