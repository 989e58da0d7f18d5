/**
 * Memory that data passes through: page-aligned, because O_DIRECT wants that, and used again. Each client has a share,
 * so that one that does not take what it asked for holds up nobody else. Who finds its share used up waits.
 */
import { pageAligned } from '../devicemapper/page-aligned.ts'

/** What is read and sent in one piece, in bytes: nbdcopy asks for as much. */
export const PIECE_BYTES = 256 * 1024
/** Room for what a read has to take with it at both ends, to begin and to end at a page. */
const EDGE_BYTES = 8192
const SLAB_BYTES = 8 * 2 ** 20

/** Buffers that nobody uses. */
export class ReadBuffers {
  readonly #free: Buffer[] = []

  take(): Buffer {
    if (this.#free.length === 0) this.#makeSlab()
    const buffer = this.#free.pop()
    if (!buffer) throw new RangeError('a slab holds no buffer')
    return buffer
  }

  giveBack(buffer: Buffer): void {
    this.#free.push(buffer)
  }

  #makeSlab(): void {
    const slab = pageAligned(SLAB_BYTES)
    const each = PIECE_BYTES + EDGE_BYTES
    // The one at the front is taken first: neighbours in memory are neighbours on the disk, mostly.
    for (let at = SLAB_BYTES - (SLAB_BYTES % each) - each; at >= 0; at -= each) {
      this.#free.push(slab.subarray(at, at + each))
    }
  }
}

/** What one client may use of them at once. */
export class BufferShare {
  readonly #buffers: ReadBuffers
  readonly #waiting: ((buffer: Buffer) => void)[] = []
  #left: number

  /** @param most buffers in all */
  constructor(buffers: ReadBuffers, most: number) {
    this.#buffers = buffers
    this.#left = most
  }

  /** Resolves in the order of the calls. */
  async take(): Promise<Buffer> {
    if (this.#left === 0) return new Promise((resolve) => this.#waiting.push(resolve))
    this.#left--
    return this.#buffers.take()
  }

  giveBack(buffer: Buffer): void {
    const next = this.#waiting.shift()
    if (next) return next(buffer)
    this.#left++
    this.#buffers.giveBack(buffer)
  }

  /** The kernel may still write into it: it is not used again. */
  lose(): void {
    const next = this.#waiting.shift()
    if (next) next(this.#buffers.take())
    else this.#left++
  }
}
