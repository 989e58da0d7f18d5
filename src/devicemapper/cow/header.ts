/**
 * The header of a classic snapshot's store, chunk 0: struct disk_header, drivers/md/dm-snap-persistent.c. Little
 * endian.
 *
 *     0      magic 0x70416e53
 *     4      1 while the store is valid; 0 for good once it has overflowed, failed, or been given up
 *     8      version 1
 *     12     size of a chunk, in sectors of 512 bytes
 *     16     zeros up to the end of the chunk (write_header)
 *
 * It says neither whose store it is nor how many entries it has. Where it and the device-mapper table disagree about
 * the chunk, it counts.
 */
import { DeltamapperError } from '../../errors.ts'
import { COW_MAGIC, metadataKind } from '../metadata-kind.ts'
import { damagedStore } from './damaged-store.ts'

const VERSION = 1
const SECTOR_SIZE = 512
/** What LVM makes: 4 KiB to 512 KiB (lvcreate --chunksize). In sectors. */
const MIN_CHUNK = 8
const MAX_CHUNK = 1024
const HEADER_BYTES = 16

export interface CowHeader {
  /**
   * The size in which the origin is copied, in sectors of 512 bytes, and in bytes: a power of two from 4 KiB to 512
   * KiB.
   */
  readonly chunkSectors: number
  readonly chunkBytes: number
}

/**
 * Decodes a header.
 *
 * @param block the first 4096 bytes of the store
 * @throws DM_METADATA_FOREIGN when this is no store; DM_COW_INVALID when it was given up; DM_METADATA_DAMAGED;
 *   DM_METADATA_UNSUPPORTED
 */
export function parseCowHeader(block: Buffer, path: string): CowHeader {
  if (block.readUInt32LE(0) !== COW_MAGIC) throw foreign(path, block)
  const version = block.readUInt32LE(8)
  const chunkSectors = block.readUInt32LE(12)
  if (version !== VERSION)
    throw unsupported(path, `of version ${version}, and this version of deltamapper knows ${VERSION}`)
  const valid = block.readUInt32LE(4)
  if (valid > 1) throw damagedStore(path, `its header has ${valid} where only 0 and 1 can be`)
  if (block.subarray(HEADER_BYTES).some((byte) => byte !== 0)) {
    throw damagedStore(path, 'behind its header is something, and the kernel writes zeros there')
  }
  const isPowerOfTwo = chunkSectors !== 0 && (chunkSectors & (chunkSectors - 1)) === 0
  if (!isPowerOfTwo) throw damagedStore(path, `chunks of ${chunkSectors} sectors are impossible`)
  if (chunkSectors < MIN_CHUNK || chunkSectors > MAX_CHUNK) {
    throw unsupported(path, `with chunks of ${chunkSectors} sectors; LVM makes ${MIN_CHUNK} to ${MAX_CHUNK}`)
  }
  if (valid === 0) throw invalid(path)
  return { chunkSectors, chunkBytes: chunkSectors * SECTOR_SIZE }
}

function invalid(path: string): DeltamapperError {
  return new DeltamapperError(
    'DM_COW_INVALID',
    `the kernel has given up the snapshot whose store is ${path}: it overflowed, or could not be written`,
    'take a full backup of a new snapshot, with a larger store (lvcreate -s -L) or with snapshot_autoextend in lvm.conf'
  )
}

function unsupported(path: string, what: string): DeltamapperError {
  return new DeltamapperError('DM_METADATA_UNSUPPORTED', `${path} is a store ${what}`, 'take a full backup')
}

function foreign(path: string, block: Buffer): DeltamapperError {
  const kind = metadataKind(block)
  return new DeltamapperError(
    'DM_METADATA_FOREIGN',
    `${path} ${kind === undefined ? 'is no store of a classic snapshot: it does not begin with a header' : `holds ${kind} metadata, not a classic snapshot's store`}`,
    "name a snapshot's store (LVM: /dev/mapper/VG-SNAPSHOT-cow), or a copy of it"
  )
}
