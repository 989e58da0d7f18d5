/**
 * When a base record may be compared with, as far as pool and metadata tell: the same pool, continued from the moment
 * of the record.
 */
import { DeltamapperError } from '../../../errors.ts'
import { howWentBack, type PoolMoment } from './pool-moment.ts'
import { type BaseRecordHeader, type ExternalOrigin, MAX_TIME } from './format.ts'

/** What a superblock says of the state of a pool (superblock.ts). */
interface PoolFlags {
  readonly needsCheck: boolean
  readonly time: number
  readonly dataBlocks: number | undefined
}

/** LVM's UUIDs of the volumes with a pool's metadata and data; undefined where they are not known, or not LVM's. */
export type PoolVolumes = Pick<BaseRecordHeader['pool'], 'metadataUuid' | 'dataUuid'>

/**
 * A pool keeps its volumes, also when they grow or move to other disks.
 *
 * @throws DM_BASE_RECORD_REBUILT
 */
export function checkPoolVolumes({ pool }: BaseRecordHeader, now: PoolVolumes): void {
  for (const [which, was, is] of [
    ['metadata', pool.metadataUuid, now.metadataUuid],
    ['data', pool.dataUuid, now.dataUuid]
  ]) {
    if (was === undefined || was === is) continue
    const what = is === undefined ? 'on no logical volume' : `on the logical volume with UUID ${is}`
    throw voidRecord('REBUILT', `the pool's ${which} was on the logical volume with UUID ${was}, and is ${what}`)
  }
}

/** @throws DM_BASE_RECORD_REBUILT for a pool of another block size: block numbers cannot be compared */
export function checkRecordBlocks(
  { path, header }: { readonly path: string; readonly header: BaseRecordHeader },
  dataBlockBytes: number
): void {
  if (header.pool.dataBlockBytes === dataBlockBytes) return
  throw new DeltamapperError(
    'DM_BASE_RECORD_REBUILT',
    `the base record ${path} is of a pool with data blocks of ${header.pool.dataBlockBytes} bytes, this pool has ${dataBlockBytes}`,
    'take a full backup: the pool was made anew, or is another'
  )
}

/**
 * A snapshot whose pool is in such a state that no later look could tell whether it went on from there gets no record.
 *
 * @throws DM_BASE_RECORD_IMPOSSIBLE
 */
export function checkRecordable({ needsCheck, time }: PoolFlags, { devices }: Pick<PoolMoment, 'devices'>): void {
  const why = needsCheck
    ? 'the pool needs a check'
    : devices.length === 0
      ? 'the pool has more devices than a record lists'
      : isExhausted(time)
        ? `the pool has had ${time} snapshots, more than its mappings tell apart`
        : undefined
  if (why === undefined) return
  throw new DeltamapperError(
    'DM_BASE_RECORD_IMPOSSIBLE',
    `no base record can be made: ${why}`,
    'keep the snapshot as base'
  )
}

/**
 * A pool that was restored to an earlier state hands out the same times and blocks a second time, so equal pairs prove
 * nothing.
 *
 * @param now the pool as it is
 * @param superblock the same, with what its live superblock says
 * @throws DM_BASE_RECORD_ROLLED_BACK, DM_BASE_RECORD_REBUILT, DM_BASE_RECORD_NEEDS_CHECK, DM_BASE_RECORD_TIME_EXHAUSTED
 */
export function checkWentOn(
  { pool: { moment, dataBlocks } }: BaseRecordHeader,
  now: PoolMoment,
  superblock?: PoolFlags
): void {
  // Every list has the base itself.
  if (moment.devices.length === 0)
    throw voidRecord('ROLLED_BACK', 'the record does not list the devices that were there')
  const how = howWentBack(moment, now)
  if (how !== undefined)
    throw voidRecord('ROLLED_BACK', `the pool was restored to an earlier state than the record's: ${how}`)
  if (isExhausted(now.time)) {
    throw voidRecord('TIME_EXHAUSTED', `the pool has had ${now.time} snapshots, more than its mappings tell apart`)
  }
  if (!superblock) return
  if (superblock.needsCheck)
    throw voidRecord('NEEDS_CHECK', 'the pool needs a check: what its last transaction did is lost')
  if (dataBlocks !== undefined && superblock.dataBlocks !== undefined && superblock.dataBlocks < dataBlocks) {
    throw voidRecord(
      'REBUILT',
      `the pool's data device has ${superblock.dataBlocks} blocks, and had ${dataBlocks}: a tool made it smaller, and gave blocks other numbers`
    )
  }
}

/**
 * Where base and target map nothing, an external origin shows through. It must be one and the same, and nobody may have
 * written to it.
 *
 * @param now the target's external origin
 * @throws DM_BASE_RECORD_ORIGIN
 */
export function checkExternalOrigin({ device }: BaseRecordHeader, now: ExternalOrigin | undefined): void {
  const { externalOrigin: before } = device
  if (before?.identity !== now?.identity) {
    const [was, is] = [before, now].map((each) => (each ? `external origin ${each.identity}` : 'no external origin'))
    throw voidRecord('ORIGIN', `the base had ${was}, and the target has ${is}`)
  }
  if (before?.readOnly === false || now?.readOnly === false) {
    throw voidRecord(
      'ORIGIN',
      `external origin ${now?.identity} can be written to, and shows wherever nothing is mapped`
    )
  }
}

/** The kernel mixes up time and data block beyond that (pack_block_time in drivers/md/dm-thin-metadata.c). */
function isExhausted(time: number): boolean {
  return time >= MAX_TIME - 1
}

/** What ends a record. */
export type RecordEnd = 'ROLLED_BACK' | 'REBUILT' | 'NEEDS_CHECK' | 'WRITABLE' | 'ORIGIN' | 'TIME_EXHAUSTED'

/** The error for a record that proves nothing any more. */
export function voidRecord(end: RecordEnd, why: string): DeltamapperError {
  return new DeltamapperError(
    `DM_BASE_RECORD_${end}`,
    `what changed since a base that is gone cannot be told: ${why}`,
    'take a full backup; what was backed up before is no longer a base'
  )
}
