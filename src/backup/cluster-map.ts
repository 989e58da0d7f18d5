/**
 * Which clusters of a layer have to be in it, and which may: what a qcow2 file is held against after it was written.
 *
 * That `qemu-img convert -B` leaves alone what is a hole and not zeros is written nowhere. So each increment is looked
 * at: a cluster too few would bring old data back, one too many says that the tool did something else.
 */
import { HOLE, ZERO } from '../nbd/protocol.ts'

/** qcow2's usual size of a cluster, in bytes. */
export const CLUSTER_BYTES = 65536

/** How many clusters a layer has to have, and may have, and how many of qcow2's L2 tables lead to those. */
export interface ClusterCounts {
  readonly must: number
  readonly may: number
  readonly tables: number
}

/** Entries of 8 bytes, one a cluster, in a table of one cluster: as words of 32 clusters each. */
const WORDS_A_TABLE = CLUSTER_BYTES / 8 / 32

export class ClusterMap {
  /** A bit a cluster, in words of 32. */
  readonly #must: Uint32Array
  readonly #may: Uint32Array
  readonly #has: Uint32Array
  readonly #backingBytes: number
  readonly #sizeBytes: number

  /** @param sizeBytes of the volume @param backingBytes of what the layer is onto */
  constructor(sizeBytes: number, backingBytes: number) {
    const words = Math.ceil(Math.ceil(sizeBytes / CLUSTER_BYTES) / 32)
    this.#must = new Uint32Array(words)
    this.#may = new Uint32Array(words)
    this.#has = new Uint32Array(words)
    this.#backingBytes = backingBytes
    this.#sizeBytes = sizeBytes
  }

  /** Adds a run of the increment's view, bytes `[begin, end)`, with its `base:allocation` flags. */
  add(begin: number, end: number, flags: number): void {
    if (flags === HOLE) return
    mark(this.#may, begin, end)
    // Zeros beyond the end of what it is onto are there without being stored.
    mark(this.#must, begin, flags === (HOLE | ZERO) ? Math.min(end, this.#backingBytes) : end)
  }

  /**
   * The last cluster may be in it, where the volume ends inside it: with `-c`, qemu-img reads and stores that one in
   * any case (seen with 10.0).
   */
  allowLast(): void {
    if (this.#sizeBytes % CLUSTER_BYTES !== 0) mark(this.#may, this.#sizeBytes - 1, this.#sizeBytes)
  }

  /** A large volume has millions of clusters, and mostly few that changed: they are counted by words. */
  counts(): ClusterCounts {
    const [must, may] = [this.#must, this.#may]
    const counts = { must: 0, may: 0, tables: 0 }
    let lastTable = -1
    for (let i = 0; i < may.length; i++) {
      if (may[i] === 0) continue
      counts.must += ones(must[i])
      counts.may += ones(may[i])
      const table = Math.floor(i / WORDS_A_TABLE)
      if (table !== lastTable) counts.tables++
      lastTable = table
    }
    return counts
  }

  /** Adds what the layer has, bytes `[begin, end)`. */
  found(begin: number, end: number): void {
    mark(this.#has, begin, end)
  }

  /** What is wrong with the layer, as a clause; undefined where nothing is. */
  complaint(): string | undefined {
    const [must, may, has] = [this.#must, this.#may, this.#has]
    for (let i = 0; i < may.length; i++) {
      const [lacking, added] = [must[i] & ~has[i], has[i] & ~may[i]]
      if (lacking !== 0) return `lacks ${placed(i, lacking)}, which changed`
      if (added !== 0) return `has ${placed(i, added)}, which did not change`
    }
    return undefined
  }
}

function mark(bits: Uint32Array, begin: number, end: number): void {
  if (end <= begin) return
  const last = Math.floor((end - 1) / CLUSTER_BYTES)
  for (let at = Math.floor(begin / CLUSTER_BYTES); at <= last;) {
    if (at % 32 === 0 && at + 32 <= last) {
      bits[at / 32] = 0xffffffff
      at += 32
    } else {
      bits[at >>> 5] |= 1 << (at & 31)
      at++
    }
  }
}

/** How many bits of a word are set (Hacker's Delight, 5-1). */
function ones(word: number): number {
  const pairs = word - ((word >>> 1) & 0x55555555)
  const nibbles = (pairs & 0x33333333) + ((pairs >>> 2) & 0x33333333)
  return Math.imul((nibbles + (nibbles >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24
}

function placed(word: number, bits: number): string {
  return `the cluster at ${(word * 32 + (31 - Math.clz32(bits & -bits))) * CLUSTER_BYTES}`
}
