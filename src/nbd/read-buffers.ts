/**
 * Memory that data passes through: page-aligned, because O_DIRECT wants that, and used again. Each client has a share,
 * so that one that does not take what it asked for holds up nobody else. Who finds its share used up waits.
 */
import { HUGE_PAGE_BYTES, inHugePages } from '../../native/huge-pages.ts'
import { pageAligned } from '../devicemapper/page-aligned.ts'

/** What is read and sent in one piece, in bytes: nbdcopy asks for as much. */
export const PIECE_BYTES = 256 * 1024
/** Room for what a read has to take with it at both ends, to begin and to end at a page. */
const EDGE_BYTES = 8192
const SLAB_BYTES = 4 * HUGE_PAGE_BYTES

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
    const slab = inHugePages(pageAligned(SLAB_BYTES + HUGE_PAGE_BYTES), SLAB_BYTES)
    const each = PIECE_BYTES + EDGE_BYTES
    // The one at the front is taken first: neighbours in memory are neighbours on the disk, mostly.
    for (let at = SLAB_BYTES - (SLAB_BYTES % each) - each; at >= 0; at -= each) {
      this.#free.push(slab.subarray(at, at + each))
    }
  }
}

/** Of this process: such memory goes back to the system late, so that whoever comes next had better use it. */
export const readBuffers = new ReadBuffers()

/** What one client may use of them at once. */
export class BufferShare {
  readonly #buffers: ReadBuffers
  readonly #waiting: PromiseWithResolvers<Buffer>[] = []
  #left: number

  /** @param most buffers in all */
  constructor(buffers: ReadBuffers, most: number) {
    this.#buffers = buffers
    this.#left = most
  }

  /** Resolves in the order of the calls. @throws RangeError where there is no memory */
  async take(): Promise<Buffer> {
    if (this.#left === 0) {
      const waiting = Promise.withResolvers<Buffer>()
      this.#waiting.push(waiting)
      return waiting.promise
    }
    const buffer = this.#buffers.take()
    this.#left--
    return buffer
  }

  giveBack(buffer: Buffer): void {
    const next = this.#waiting.shift()
    if (next) return next.resolve(buffer)
    this.#left++
    this.#buffers.giveBack(buffer)
  }

  /** The kernel may still write into it: it is not used again. */
  lose(): void {
    this.#left++
    const next = this.#waiting.shift()
    if (next) this.take().then(next.resolve, next.reject)
  }
}
