/**
 * When a base record may be compared with, as far as pool and metadata tell: the same pool, continued from the moment
 * of the record.
 */
import { DeltamapperError } from '../../../errors.ts'
import { howWentBack, type PoolMoment } from './pool-moment.ts'
import { type BaseRecordHeader, MAX_TIME } from './format.ts'

/** @throws DM_BASE_RECORD_FOREIGN for a pool of another block size: block numbers cannot be compared */
export function checkRecordBlocks(
  { path, header }: { readonly path: string; readonly header: BaseRecordHeader },
  dataBlockBytes: number
): void {
  if (header.pool.dataBlockBytes === dataBlockBytes) return
  throw new DeltamapperError(
    'DM_BASE_RECORD_FOREIGN',
    `the base record ${path} is of a pool with data blocks of ${header.pool.dataBlockBytes} bytes, this pool has ${dataBlockBytes}`,
    'take a full backup: the pool was made anew, or is another'
  )
}

/**
 * A pool that was restored to an earlier state hands out the same times and blocks a second time, so equal pairs prove
 * nothing.
 *
 * @param now the pool as it is
 * @throws DM_BASE_RECORD_VOID
 */
export function checkWentOn({ pool: { moment } }: BaseRecordHeader, now: PoolMoment): void {
  const how = howWentBack(moment, now)
  if (how !== undefined) throw voidRecord(`the pool was restored to an earlier state than the record's: ${how}`)
  // The kernel mixes up time and data block beyond that (pack_block_time in drivers/md/dm-thin-metadata.c).
  if (now.time >= MAX_TIME - 1)
    throw voidRecord(`the pool has had ${now.time} snapshots, more than its mappings tell apart`)
}

/** The error for a record that proves nothing any more. */
export function voidRecord(why: string): DeltamapperError {
  return new DeltamapperError(
    'DM_BASE_RECORD_VOID',
    `what changed since a base that is gone cannot be told: ${why}`,
    'take a full backup; what was backed up before is no longer a base'
  )
}
