/**
 * Which clusters of a layer have to be in it, and which may: what a qcow2 file is held against after it was written.
 *
 * That `qemu-img convert -B` leaves alone what is a hole and not zeros is written nowhere. So each increment is looked
 * at: a cluster too few would bring old data back, one too many says that the tool did something else.
 */
import { HOLE, ZERO } from '../nbd/protocol.ts'

/** qcow2's usual size of a cluster, in bytes. */
export const CLUSTER_BYTES = 65536

export class ClusterMap {
  readonly #must: Uint8Array
  readonly #may: Uint8Array
  readonly #has: Uint8Array
  readonly #backingBytes: number
  readonly #sizeBytes: number

  /** @param sizeBytes of the volume @param backingBytes of what the layer is onto */
  constructor(sizeBytes: number, backingBytes: number) {
    const bytes = Math.ceil(Math.ceil(sizeBytes / CLUSTER_BYTES) / 8)
    this.#must = new Uint8Array(bytes)
    this.#may = new Uint8Array(bytes)
    this.#has = new Uint8Array(bytes)
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

  /** How many clusters have to be in the layer. */
  get mustCount(): number {
    return ones(this.#must)
  }

  /** How many may be. */
  get mayCount(): number {
    return ones(this.#may)
  }

  /** How many tables of a layer (qcow2's L2, an entry of 8 bytes a cluster) lead to those that may be in it. */
  get tableCount(): number {
    const bytesEach = CLUSTER_BYTES / 8 / 8
    let count = 0
    for (let at = 0; at < this.#may.length; at += bytesEach) {
      if (this.#may.subarray(at, at + bytesEach).some((bits) => bits !== 0)) count++
    }
    return count
  }

  /** Adds what the layer has, bytes `[begin, end)`. */
  found(begin: number, end: number): void {
    mark(this.#has, begin, end)
  }

  /** What is wrong with the layer, as a clause; undefined where nothing is. */
  complaint(): string | undefined {
    for (const [i, bits] of this.#has.entries()) {
      if ((this.#must[i] & ~bits) !== 0) return `lacks ${placed(i, this.#must[i] & ~bits)}, which changed`
      if ((bits & ~this.#may[i]) !== 0) return `has ${placed(i, bits & ~this.#may[i])}, which did not change`
    }
    return undefined
  }
}

function mark(bits: Uint8Array, begin: number, end: number): void {
  if (end <= begin) return
  const last = Math.floor((end - 1) / CLUSTER_BYTES)
  for (let at = Math.floor(begin / CLUSTER_BYTES); at <= last;) {
    if (at % 8 === 0 && at + 8 <= last) {
      bits[at / 8] = 0xff
      at += 8
    } else {
      bits[at >>> 3] |= 1 << (at & 7)
      at++
    }
  }
}

function ones(bits: Uint8Array): number {
  let count = 0
  for (const each of bits) for (let rest = each; rest !== 0; rest &= rest - 1) count++
  return count
}

function placed(byte: number, bits: number): string {
  return `the cluster at ${(byte * 8 + (31 - Math.clz32(bits & -bits))) * CLUSTER_BYTES}`
}
