/**
 * What was in devices at some time, kept for as long as a test: whole, but each block that occurs again only once, so that many snapshots of
 * one volume find room.
 */
import { createHash } from 'node:crypto'
import { closeSync, constants, openSync, readSync, writeSync } from 'node:fs'
import { alignedBuffer } from './dmsetup.ts'

/** The size in which content is kept, in bytes. */
const PIECE_BYTES = 65536

/** Content that is in the store. */
export interface Content {
  readonly sizeBytes: number
  /** Which of the store's pieces it is made of. */
  readonly pieces: readonly number[]
}

export class ContentStore {
  readonly #file: number
  readonly #known = new Map<string, number>()
  readonly #buffer = alignedBuffer(16 * PIECE_BYTES)

  /** @param path a device or file with room for it, that nobody else uses */
  constructor(path: string) {
    this.#file = openSync(path, constants.O_RDWR)
  }

  /** Reads a device, of whole pieces, past the page cache. */
  add(device: string): Content {
    const file = openSync(device, constants.O_RDONLY | constants.O_DIRECT)
    try {
      const pieces: number[] = []
      let sizeBytes = 0
      for (let read; (read = readSync(file, this.#buffer, 0, this.#buffer.length, sizeBytes)) > 0; sizeBytes += read) {
        for (let at = 0; at < read; at += PIECE_BYTES)
          pieces.push(this.#keep(this.#buffer.subarray(at, at + PIECE_BYTES)))
      }
      return { sizeBytes, pieces }
    } finally {
      closeSync(file)
    }
  }

  /** Puts content into the beginning of a buffer. */
  read({ pieces }: Content, into: Uint8Array): void {
    for (const [index, piece] of pieces.entries()) {
      readSync(this.#file, into, index * PIECE_BYTES, PIECE_BYTES, piece * PIECE_BYTES)
    }
  }

  close(): void {
    closeSync(this.#file)
  }

  #keep(bytes: Uint8Array): number {
    const name = createHash('sha256').update(bytes).digest('base64')
    const known = this.#known.get(name)
    if (known !== undefined) return known
    const piece = this.#known.size
    if (writeSync(this.#file, bytes, 0, bytes.length, piece * PIECE_BYTES) !== bytes.length) {
      throw new Error('the store of contents is full')
    }
    this.#known.set(name, piece)
    return piece
  }
}
