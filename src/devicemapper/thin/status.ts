/**
 * The status of a thin pool and its devices: pool_status and thin_status in drivers/md/dm-thin.c.
 *
 *   thin-pool  TRANSACTION USED/TOTAL USED/TOTAL HELD-ROOT|- rw|ro|out_of_data_space
 *              discard_passdown|no_discard_passdown|ignore_discard queue_if_no_space|error_if_no_space
 *              [needs_check|- [METADATA-LOW-WATER]]
 *   thin       MAPPED-SECTORS HIGHEST-SECTOR|-
 *
 * The first pair counts metadata blocks (4 KiB), the second data blocks. Linux 3.19 ends before `needs_check`, and
 * later ones added the rest. Words that a future kernel adds at the end do not change the earlier ones. Either target
 * prints `Fail` when the pool has failed, and `Error` when it could not find its own numbers.
 */
import { TargetWords } from '../target-words.ts'

/**
 * `read-only` is also the state of a pool without metadata space, or whose metadata needs a check. In this state and in
 * `out-of-data-space`, some messages are refused.
 */
export type PoolMode = 'read-write' | 'out-of-data-space' | 'read-only'

export interface PoolNumbers {
  readonly state: 'working'
  /** User space's own counter, up to 2^64. */
  readonly transactionId: bigint
  /** Metadata blocks of 4 KiB. Used includes a reserve of the kernel's that is never handed out. */
  readonly usedMetadataBlocks: number
  readonly totalMetadataBlocks: number
  /** Data blocks, of the size in the pool's table. */
  readonly usedDataBlocks: number
  readonly totalDataBlocks: number
  /** Metadata block of the held metadata snapshot; undefined when none is held. */
  readonly heldRoot: number | undefined
  readonly mode: PoolMode
  /** What happens to a discard: passed on to the data device, kept to the mapping, or ignored. */
  readonly discards: 'passed-down' | 'mapping-only' | 'ignored'
  /** What happens to a write that finds no free data block. */
  readonly whenFull: 'queue' | 'error'
  /** Undefined from kernels too old to say. */
  readonly needsCheck: boolean | undefined
  /** Free metadata blocks at which the kernel raises an event; undefined from kernels too old to say. */
  readonly metadataLowWaterBlocks: number | undefined
}

/** The pool (or the pool of a device) is in failure mode: it serves nothing until it is repaired. */
export interface FailedState {
  readonly state: 'failed'
}

/** The kernel could not find out; the next time it may. */
export interface UnknownState {
  readonly state: 'unknown'
}

export type PoolStatus = PoolNumbers | FailedState | UnknownState

export interface ThinNumbers {
  readonly state: 'working'
  /** Sectors in mapped blocks; whole data blocks count. */
  readonly mappedSectors: number
  /** The last sector of the last mapped block (inclusive); undefined when nothing is mapped. */
  readonly highestMappedSector: number | undefined
}

export type ThinStatus = ThinNumbers | FailedState | UnknownState

/** Reads the status of a `thin-pool` target. Throws DM_STATUS_UNKNOWN. */
export function parsePoolStatus(line: string): PoolStatus {
  const unusual = parseUnusual(line)
  if (unusual !== undefined) return unusual
  const words = new TargetWords(line, 'the status of a thin pool')
  const transactionId = words.bigint()
  const metadata = words.fraction()
  const data = words.fraction()
  const heldRoot = words.optionalNumber()
  const mode = words.choice<PoolMode>({ rw: 'read-write', ro: 'read-only', out_of_data_space: 'out-of-data-space' })
  const discards = words.choice<PoolNumbers['discards']>({
    discard_passdown: 'passed-down',
    no_discard_passdown: 'mapping-only',
    ignore_discard: 'ignored'
  })
  const whenFull = words.choice<PoolNumbers['whenFull']>({ queue_if_no_space: 'queue', error_if_no_space: 'error' })
  const needsCheck = words.done ? undefined : words.choice({ needs_check: true, '-': false })
  const metadataLowWaterBlocks = words.done ? undefined : words.number()
  return {
    state: 'working',
    transactionId,
    usedMetadataBlocks: metadata.used,
    totalMetadataBlocks: metadata.total,
    usedDataBlocks: data.used,
    totalDataBlocks: data.total,
    heldRoot,
    mode,
    discards,
    whenFull,
    needsCheck,
    metadataLowWaterBlocks
  }
}

/** Reads the status of a `thin` target. Throws DM_STATUS_UNKNOWN. */
export function parseThinStatus(line: string): ThinStatus {
  // A lone dash is a target whose thin device is not open: it has no numbers.
  if (line.trim() === '-') return { state: 'unknown' }
  const unusual = parseUnusual(line)
  if (unusual !== undefined) return unusual
  const words = new TargetWords(line, 'the status of a thin device')
  return { state: 'working', mappedSectors: words.number(), highestMappedSector: words.optionalNumber() }
}

function parseUnusual(line: string): FailedState | UnknownState | undefined {
  // An error can strike after some of the line has been printed.
  if (/(^|[ ])Error$/.test(line.trim())) return { state: 'unknown' }
  return line.trim() === 'Fail' ? { state: 'failed' } : undefined
}
