/**
 * Writes stores of classic snapshots as the kernel leaves them (drivers/md/dm-snap-persistent.c), into sparse files, and reads them as a person
 * would: everything at once, chunk by chunk, with a set for whatever must not come twice.
 */
import { closeSync, ftruncateSync, openSync, writeSync } from 'node:fs'

export interface CowImage {
  readonly chunkBytes: number
  /** The origin's chunks, in order of time. */
  readonly chunks: readonly number[]
  /** What each of them held, by its number in the list. */
  readonly contents?: (index: number) => Buffer | undefined
  /** Size of the store in chunks; by default as many as there are, and the next area. */
  readonly storeChunks?: number
}

export function writeCowStore(path: string, { chunkBytes, chunks, contents, storeChunks }: CowImage): void {
  const perArea = chunkBytes / 16
  const file = openSync(path, 'w')
  try {
    const used = 2 + chunks.length + Math.floor(chunks.length / perArea)
    ftruncateSync(file, (storeChunks ?? used + 1) * chunkBytes)
    const header = Buffer.alloc(16)
    for (const [i, value] of [0x70416e53, 1, 1, chunkBytes / 512].entries()) header.writeUInt32LE(value, 4 * i)
    writeSync(file, header, 0, 16, 0)
    for (let first = 0; first < chunks.length; first += perArea) {
      const some = chunks.slice(first, first + perArea)
      const areaChunk = 1 + (first / perArea) * (perArea + 1)
      const area = Buffer.alloc(16 * some.length)
      for (const [i, chunk] of some.entries()) {
        area.writeBigUInt64LE(BigInt(chunk), 16 * i)
        area.writeBigUInt64LE(BigInt(areaChunk + 1 + i), 16 * i + 8)
        const content = contents?.(first + i)
        if (content) writeSync(file, content, 0, content.length, (areaChunk + 1 + i) * chunkBytes)
      }
      writeSync(file, area, 0, area.length, areaChunk * chunkBytes)
    }
  } finally {
    closeSync(file)
  }
}

export interface NaiveEntry {
  readonly oldChunk: bigint
  readonly newChunk: bigint
}

/**
 * The list of a store, from all of its bytes.
 *
 * @param sizeBytes of the snapshot
 * @throws Error that says what is wrong with it
 */
export function naiveStore(bytes: Buffer, sizeBytes: number): { chunkBytes: number; entries: NaiveEntry[] } {
  const [magic, valid, version, sectors] = [0, 4, 8, 12].map((at) => bytes.readUInt32LE(at))
  if (magic !== 0x70416e53 || valid !== 1 || version !== 1) throw new Error('no header')
  if (![8, 16, 32, 64, 128, 256, 512, 1024].includes(sectors)) throw new Error('no chunk size of LVM')
  const chunkBytes = sectors * 512
  const perArea = BigInt(chunkBytes / 16)
  const [oldChunks, newChunks] = [new Set<bigint>(), new Set<bigint>()]
  const entries: NaiveEntry[] = []
  for (let area = 0n; ; area++) {
    const at = Number((1n + area * (perArea + 1n)) * BigInt(chunkBytes))
    if (at + chunkBytes > bytes.length) throw new Error('ends where an area should be')
    let ended = false
    for (let i = at; i < at + chunkBytes; i += 16) {
      const [oldChunk, newChunk] = [bytes.readBigUInt64LE(i), bytes.readBigUInt64LE(i + 8)]
      if (newChunk === 0n && oldChunk === 0n) ended = true
      else if (ended || newChunk === 0n) throw new Error('an entry behind the end')
      else {
        if (oldChunk * BigInt(chunkBytes) >= BigInt(sizeBytes)) throw new Error('beyond the end of the snapshot')
        if ((newChunk + 1n) * BigInt(chunkBytes) > BigInt(bytes.length)) throw new Error('beyond the end of the store')
        if (newChunk < 2n || (newChunk - 1n) % (perArea + 1n) === 0n) throw new Error('in an area')
        if (oldChunks.has(oldChunk) || newChunks.has(newChunk)) throw new Error('twice')
        if (entries.length > 0 && newChunk <= entries[entries.length - 1].newChunk) throw new Error('out of place')
        oldChunks.add(oldChunk)
        newChunks.add(newChunk)
        entries.push({ oldChunk, newChunk })
      }
    }
    if (ended) return { chunkBytes, entries }
  }
}
