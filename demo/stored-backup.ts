/**
 * The least that backup software can be: a backup is a list of extents and what they held, in a file; a restore lays one after the
 * other onto an empty image; a comparison reads every byte of both.
 *
 * Everything is read and written around the page cache: what counts is what is on the disk.
 */
import { constants } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { alignedBuffer } from '../test/kernel/dmsetup.ts'

const PIECE_BYTES = 4 * 2 ** 20

/** Bytes. */
export interface Extent {
  offset: number
  size: number
}

/** A full backup is one of everything allocated, onto an image of zeros. */
export interface StoredBackup {
  /** Size of the snapshot, bytes. */
  capacityBytes: number
  extents: readonly Extent[]
  /** File with the content of the extents, one behind the other. */
  path: string
}

/** Copies extents of a device into a file, and makes it durable. */
export async function takeBackup(
  { capacityBytes, extents }: { capacityBytes: number; extents: readonly Extent[] },
  device: string,
  path: string
): Promise<StoredBackup> {
  await using source = await open(device, constants.O_RDONLY | constants.O_DIRECT)
  await using store = await open(path, constants.O_WRONLY | constants.O_CREAT | constants.O_TRUNC | constants.O_DIRECT)
  const buffer = alignedBuffer(PIECE_BYTES)
  let stored = 0
  for (const { offset, size } of extents) {
    await copy(source, offset, store, stored, size, buffer)
    stored += size
  }
  await store.datasync()
  return { capacityBytes, extents, path }
}

/** Brings an image up to the snapshot that was backed up. A full backup empties it first. */
export async function restore(
  { capacityBytes, extents, path }: StoredBackup,
  full: boolean,
  image: string
): Promise<void> {
  await using store = await open(path, constants.O_RDONLY | constants.O_DIRECT)
  await using target = await open(image, constants.O_WRONLY | constants.O_CREAT | constants.O_DIRECT)
  if (full) await target.truncate(0)
  await target.truncate(capacityBytes)
  const buffer = alignedBuffer(PIECE_BYTES)
  let stored = 0
  for (const { offset, size } of extents) {
    await copy(store, stored, target, offset, size, buffer)
    stored += size
  }
  await target.datasync()
}

async function copy(
  from: FileHandle,
  fromOffset: number,
  to: FileHandle,
  toOffset: number,
  size: number,
  buffer: Uint8Array
): Promise<void> {
  for (let done = 0; done < size;) {
    const { bytesRead } = await from.read(buffer, 0, Math.min(buffer.length, size - done), fromOffset + done)
    if (bytesRead === 0) throw new Error(`ended at byte ${fromOffset + done}, before the extent did`)
    await to.write(buffer, 0, bytesRead, toOffset + done)
    done += bytesRead
  }
}

export interface Comparison {
  /** How long reading the first one took, from beginning to end. */
  readMs: number
  /** The first byte that differs, or that only one of them has; undefined when they are the same. */
  differsAt: number | undefined
}

/** Compares two devices or files byte by byte. */
export async function compare(one: string, other: string): Promise<Comparison> {
  await using a = await open(one, constants.O_RDONLY | constants.O_DIRECT)
  await using b = await open(other, constants.O_RDONLY | constants.O_DIRECT)
  const [bufferA, bufferB] = [alignedBuffer(PIECE_BYTES), alignedBuffer(PIECE_BYTES)]
  let readMs = 0
  for (let offset = 0; ;) {
    const begin = performance.now()
    const { bytesRead: readA } = await a.read(bufferA, 0, PIECE_BYTES, offset)
    readMs += performance.now() - begin
    const { bytesRead: readB } = await b.read(bufferB, 0, PIECE_BYTES, offset)
    const common = Math.min(readA, readB)
    if (Buffer.compare(bufferA.subarray(0, common), bufferB.subarray(0, common)) !== 0) {
      let at = 0
      while (bufferA[at] === bufferB[at]) at++
      return { readMs, differsAt: offset + at }
    }
    if (readA !== readB) return { readMs, differsAt: offset + common }
    if (readA === 0) return { readMs, differsAt: undefined }
    offset += common
  }
}
