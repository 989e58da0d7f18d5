/**
 * What backup software does with the answers: it copies the extents it is told, nothing else, onto its copy of the snapshot before.
 */
import { createHash } from 'node:crypto'
import type { FileHandle } from 'node:fs/promises'
import type { ExtentAnswer } from '../src/devicemapper/extents.ts'
import type { VolumeMap } from '../src/cli/output/map.ts'
import type { SnapshotData } from './snapshot-data.ts'

const PIECE_BYTES = 1024 * 1024

/** Brings a copy up to the snapshot that `source` reads: its size, and every extent of the answer. Draws them on the map. */
export async function applyExtents(
  answer: ExtentAnswer,
  source: SnapshotData,
  copy: FileHandle,
  map: VolumeMap
): Promise<void> {
  // Without a capacity nothing has changed, its size neither.
  if (answer.capacityBytes !== undefined) await copy.truncate(answer.capacityBytes)
  const buffer = Buffer.alloc(PIECE_BYTES)
  for await (const { count, offsets, sizes } of answer.batches) {
    for (let i = 0; i < count; i++) {
      map.add(offsets[i], sizes[i])
      await copyRange(source, offsets[i], offsets[i] + sizes[i], copy, buffer)
    }
  }
}

/** Copies a snapshot from beginning to end, which is what it takes without changed block tracking. */
export async function copyAll(source: SnapshotData, sizeBytes: number, copy: FileHandle): Promise<void> {
  await copy.truncate(sizeBytes)
  await copyRange(source, 0, sizeBytes, copy, Buffer.alloc(PIECE_BYTES))
}

/** Copies the bytes `[begin, end)`, a buffer at a time. */
async function copyRange(
  source: SnapshotData,
  begin: number,
  end: number,
  copy: FileHandle,
  buffer: Buffer
): Promise<void> {
  for (let offset = begin; offset < end; offset += buffer.length) {
    const piece = buffer.subarray(0, Math.min(buffer.length, end - offset))
    await source.read(offset, piece)
    await copy.write(piece, 0, piece.length, offset)
  }
}

/** SHA-256 of a whole file, as hexadecimal digits. */
export async function fileHash(file: FileHandle): Promise<string> {
  const hash = createHash('sha256')
  const buffer = Buffer.alloc(PIECE_BYTES)
  for (let offset = 0; ;) {
    const { bytesRead } = await file.read(buffer, 0, PIECE_BYTES, offset)
    if (bytesRead === 0) return hash.digest('hex')
    hash.update(buffer.subarray(0, bytesRead))
    offset += bytesRead
  }
}
