/**
 * What a volume holds, byte for byte, as a backup would keep it: in pieces that later versions share, so that many versions of a
 * volume fit into memory.
 */
import { closeSync, constants, openSync, readSync } from 'node:fs'
import { alignedBuffer, sectorBytes } from './dmsetup.ts'

/** Bytes `[offset, offset + size)`. */
export type Extent = readonly [offset: number, size: number]

const PIECE_BYTES = 65536
const zeros = Buffer.alloc(PIECE_BYTES)

/** Reads a device around the page cache: the cache does not notice what happens to a thin device behind it. */
export class DeviceReader {
  readonly #file: number
  readonly #buffer = alignedBuffer(PIECE_BYTES)

  constructor(device: string) {
    this.#file = openSync(device, constants.O_RDONLY | constants.O_DIRECT)
  }

  /** At most 64 KiB, whole sectors; valid until the next call. */
  read(offset: number, size: number): Uint8Array {
    if (offset % sectorBytes !== 0 || size % sectorBytes !== 0)
      throw new Error(`${size} bytes at ${offset} cut a sector`)
    if (readSync(this.#file, this.#buffer, 0, size, offset) !== size) {
      throw new Error(`the device ends before ${size} bytes at ${offset}`)
    }
    return this.#buffer.subarray(0, size)
  }

  close(): void {
    closeSync(this.#file)
  }
}

export class VolumeContent {
  readonly sizeBytes: number
  /** Pieces of 64 KiB, the last one filled up with zeros; undefined where all is zero. */
  readonly #pieces: readonly (Buffer | undefined)[]

  private constructor(sizeBytes: number, pieces: readonly (Buffer | undefined)[]) {
    this.sizeBytes = sizeBytes
    this.#pieces = pieces
  }

  static zeros(sizeBytes: number): VolumeContent {
    return new VolumeContent(sizeBytes, new Array<undefined>(Math.ceil(sizeBytes / PIECE_BYTES)))
  }

  /** Cut off, or with zeros at its end. */
  resized(sizeBytes: number): VolumeContent {
    const pieces = Array.from({ length: Math.ceil(sizeBytes / PIECE_BYTES) }, (_, index) => this.#pieces[index])
    const rest = sizeBytes % PIECE_BYTES
    const last = pieces.at(-1)
    if (rest > 0 && last !== undefined) pieces[pieces.length - 1] = compact(Buffer.from(last).fill(0, rest))
    return new VolumeContent(sizeBytes, pieces)
  }

  /** With the extents' bytes as the device has them: what a restore writes over its base. */
  patched(extents: readonly Extent[], device: DeviceReader): VolumeContent {
    const pieces = [...this.#pieces]
    for (const [offset, size] of extents) {
      for (let at = offset; at < offset + size;) {
        const index = Math.floor(at / PIECE_BYTES)
        const end = Math.min(offset + size, (index + 1) * PIECE_BYTES)
        const piece = Buffer.from(pieces[index] ?? zeros)
        piece.set(device.read(at, end - at), at - index * PIECE_BYTES)
        pieces[index] = compact(piece)
        at = end
      }
    }
    return new VolumeContent(this.sizeBytes, pieces)
  }

  /** The first byte at which a device of this size holds something else; undefined when it is identical. */
  firstDifference(device: DeviceReader): number | undefined {
    for (let at = 0; at < this.sizeBytes; at += PIECE_BYTES) {
      const size = Math.min(PIECE_BYTES, this.sizeBytes - at)
      const found = device.read(at, size)
      const kept = (this.#pieces[at / PIECE_BYTES] ?? zeros).subarray(0, size)
      if (kept.compare(found) !== 0) return at + kept.findIndex((byte, index) => byte !== found[index])
    }
    return undefined
  }
}

function compact(piece: Buffer): Buffer | undefined {
  return piece.equals(zeros) ? undefined : piece
}
