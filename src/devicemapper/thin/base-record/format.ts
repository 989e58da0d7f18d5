/**
 * The file that stands for a base snapshot once it is gone: which data block, and which time, each of its virtual
 * blocks had.
 *
 * A mapping of dm-thin is a pair of data block and time (pack_block_time in drivers/md/dm-thin-metadata.c). A pair
 * older than the snapshot is never written in place again, in no device of the pool, and a data block that is freed is
 * given out again with a later time. So a target that has the recorded pair at a virtual block reads there what the
 * base read, whatever happened in between.
 *
 *      0  16  magic number
 *     16   4  version
 *     20   4  bytes of the header
 *     24   4  checksum of the header
 *     28   …  header: JSON (`BaseRecordHeader`)
 *          …  frames, the last of them empty
 *
 *   a frame
 *      0   4  bytes of the compressed runs; 0 in the last frame. As many as of the runs: they are not compressed
 *      4   4  bytes of the runs
 *      8   4  number of runs; in the last frame 0
 *     12   4  number of this frame, from 0
 *     16   8  first virtual block; in the last frame, how many blocks are mapped in all
 *     24   4  checksum of the 24 bytes above and the compressed runs, which begins with the header's: a frame fits one
 *            file only
 *     28   …  runs, compressed with Zstandard
 *
 *   The runs, in columns: see runs.ts. Where they are short, pairs: see packed-pairs.ts.
 *
 * All numbers little-endian, all checksums CRC-32C.
 */
import { crc32c } from '@node-rs/crc32'
import { constants } from 'node:fs'
import { open } from 'node:fs/promises'
import { DeltamapperError } from '../../../errors.ts'
import type { PoolMoment } from './pool-moment.ts'
import type { RecordedPairs } from './recorded-pairs.ts'

export const MAGIC = Buffer.from('deltamapper base')
/**
 * Version 1 had frames of runs only. Versions 2 and 3 had pairs in planes of bytes (entries.ts), which version 2
 * compressed.
 */
export const VERSION = 4
/** The first version with frames that are not compressed. */
export const STORED_SINCE = 3
export const PREAMBLE_BYTES = 28
export const FRAME_BYTES = 28
/** Runs in a frame. */
export const MAX_FRAME_RUNS = 2 ** 16
/**
 * The most bytes of a frame before it is compressed: four columns, each of up to six bytes a value and one more, are
 * more than two columns and eight bytes for each pair.
 */
export function frameBytes(runs: number): number {
  return 4 * (6 * runs + 1) + 16
}
export const MAX_FRAME_RUNS_BYTES = frameBytes(MAX_FRAME_RUNS)
/** The list of a pool's devices is most of it. */
export const MAX_HEADER_BYTES = 4 * 2 ** 20
/**
 * Virtual and data blocks are below this: a mapping has 40 bits for the data block; a volume of 2^53 bytes has fewer
 * blocks.
 */
export const MAX_BLOCK = 2 ** 40
/** Times are below this. */
export const MAX_TIME = 2 ** 24

/** The facts about a base beside its mappings. */
export interface BaseRecordHeader {
  readonly pool: {
    /** Which pool it is, as the agent identifies pools; undefined if it was read from an image, which does not tell. */
    readonly identity: string | undefined
    readonly dataBlockBytes: number
    /** Size of its data device in data blocks, which never gets smaller. Undefined if it was not known. */
    readonly dataBlocks?: number | undefined
    /** The UUIDs of the logical volumes with its metadata and its data, if it is LVM's. */
    readonly metadataUuid?: string | undefined
    readonly dataUuid?: string | undefined
    /** The pool when the base was read. */
    readonly moment: PoolMoment
  }
  readonly device: {
    /** Thin device id, 0 to 2^24 - 1. */
    readonly id: number
    readonly creationTime: number
    readonly transactionId: bigint
    /** Blocks that the device maps; all of them are recorded. */
    readonly mappedBlocks: number
    /** Size in bytes, beyond which a backup holds nothing. */
    readonly sizeBytes: number
    /** What identifies the snapshot beside its names, and the volume that it was taken of. */
    readonly identity: string | undefined
    readonly volume: string | undefined
    /**
     * Since when an agent has seen to it that nobody writes to it, in milliseconds since 1970; undefined if none has.
     * Another agent's, or a catalog's from before, began at another moment.
     */
    readonly watchedSince?: number | undefined
    /** The device outside of the pool that shows through wherever this one maps nothing. */
    readonly externalOrigin?: ExternalOrigin | undefined
  }
  /** The handles under which it was served. */
  readonly handles: readonly string[]
  /** Milliseconds since 1970. */
  readonly madeAt: number
}

/** A device outside of the pool, below a thin device. */
export interface ExternalOrigin {
  /** Identifies it for ever, such as an LV UUID. */
  readonly identity: string
  /** Nobody can write to it. */
  readonly readOnly: boolean
}

/** What opens every record. */
export function encodePreamble(header: BaseRecordHeader): Buffer {
  const json = Buffer.from(
    JSON.stringify(header, (_, value: unknown) => {
      if (typeof value === 'bigint') return String(value)
      return value instanceof Uint8Array ? Buffer.from(value).toString('base64') : value
    })
  )
  const preamble = Buffer.alloc(PREAMBLE_BYTES)
  MAGIC.copy(preamble)
  preamble.writeUInt32LE(VERSION, 16)
  preamble.writeUInt32LE(json.length, 20)
  preamble.writeUInt32LE(crc32c(json), 24)
  return Buffer.concat([preamble, json])
}

/** The checksum of a frame, whose own field is the last of `head`. @param seed the checksum of the header */
export function frameChecksum(head: Buffer, runs: Buffer, seed: number): number {
  return crc32c(runs, crc32c(head.subarray(0, FRAME_BYTES - 4), seed))
}

/** @returns undefined for any other bytes: another file, or one that is cut off */
export function decodePreamble(
  preamble: Buffer
): { version: number; headerBytes: number; checksum: number } | undefined {
  if (preamble.length < PREAMBLE_BYTES || !preamble.subarray(0, MAGIC.length).equals(MAGIC)) return undefined
  return {
    version: preamble.readUInt32LE(16),
    headerBytes: preamble.readUInt32LE(20),
    checksum: preamble.readUInt32LE(24)
  }
}

/** Whether a file begins like a record. False also if it cannot be read. */
export async function isBaseRecord(path: string): Promise<boolean> {
  const file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK).catch(() => undefined)
  if (!file) return false
  try {
    const { buffer, bytesRead } = await file.read(Buffer.alloc(MAGIC.length), 0, MAGIC.length, 0)
    return bytesRead === MAGIC.length && buffer.equals(MAGIC)
  } catch {
    return false
  } finally {
    await file.close()
  }
}

/** The error for every damaged record. */
export function damagedRecord(path: string, what: string, cause?: unknown): DeltamapperError {
  return new DeltamapperError(
    'DM_BASE_RECORD_DAMAGED',
    `the base record ${path} is damaged: ${what}`,
    'take a full backup; the record is useless now',
    { cause }
  )
}

/**
 * What a frame has, in stretches of virtual blocks: stretch `i` is `[starts[i], starts[i] + lengths[i])`, for `0 <= i <
 * count`. They ascend.
 *
 * Without `pairs`, a stretch is a run: in the data blocks from `data[i]` on, all of time `times[i]`. With them, its
 * first block has pair `data[i]`, the next block the next pair, and `times` is empty.
 */
export interface RecordedFrame {
  readonly count: number
  /** Runs in the file; with pairs, one for each block. */
  readonly runs: number
  readonly starts: Float64Array
  readonly lengths: Float64Array
  readonly data: Float64Array
  readonly times: Uint32Array
  readonly pairs?: RecordedPairs
}
