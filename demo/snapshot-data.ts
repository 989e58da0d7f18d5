/**
 * A snapshot's content, read from a recorded pool's images: what the kernel would show as /dev/mapper/NAME, on a machine without
 * device-mapper. Every data block is looked up by itself, so that nothing here rests on what the agent says of the same snapshot.
 *
 * A mapping is 8 bytes: the data block in the upper 40 bits, the time of mapping in the lower 24 (drivers/md/dm-thin-metadata.c). What is
 * not mapped reads as zeros.
 */
import { open, type FileHandle } from 'node:fs/promises'
import { join } from 'node:path'
import { BlockReader } from '../src/devicemapper/block-reader.ts'
import { lookup, U64_SIZE } from '../src/devicemapper/btree.ts'
import { openPoolMetadata } from '../src/devicemapper/thin/pool-metadata.ts'

export class SnapshotData {
  readonly #reader: BlockReader
  readonly #root: number
  readonly #blockBytes: number
  readonly #data: FileHandle

  private constructor(reader: BlockReader, root: number, blockBytes: number, data: FileHandle) {
    this.#reader = reader
    this.#root = root
    this.#blockBytes = blockBytes
    this.#data = data
  }

  /** @param folder of the recorded pool, with data.img */
  static async open(folder: string, thinId: number): Promise<SnapshotData> {
    const path = join(folder, 'metadata.img')
    const metadata = await openPoolMetadata(path)
    try {
      const { root } = await metadata.device(thinId)
      const reader = await BlockReader.open(path)
      return new SnapshotData(reader, root, metadata.superblock.dataBlockBytes, await open(join(folder, 'data.img')))
    } finally {
      await metadata.close()
    }
  }

  /** Fills `into` with what the snapshot holds from byte `offset` on. */
  async read(offset: number, into: Buffer): Promise<void> {
    for (let done = 0; done < into.length;) {
      const position = offset + done
      const block = Math.floor(position / this.#blockBytes)
      const within = position % this.#blockBytes
      const length = Math.min(this.#blockBytes - within, into.length - done)
      const piece = into.subarray(done, done + length)
      const dataBlock = await lookup(this.#reader, this.#root, block, U64_SIZE, dataBlockOf)
      if (dataBlock === undefined) piece.fill(0)
      else {
        const { bytesRead } = await this.#data.read(piece, 0, length, dataBlock * this.#blockBytes + within)
        if (bytesRead !== length) throw new Error(`data block ${dataBlock} lies beyond the end of data.img`)
      }
      done += length
    }
  }

  async close(): Promise<void> {
    await this.#reader.close()
    await this.#data.close()
  }
}

function dataBlockOf(bytes: Buffer, offset: number): number {
  return bytes.readUInt32LE(offset + 4) * 256 + bytes[offset + 3]
}
