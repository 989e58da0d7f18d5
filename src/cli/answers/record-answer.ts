/**
 * `delta --base-record FILE TARGET --metadata FILE`: what changed since a base that is gone, from its record and the
 * pool's metadata.
 *
 * Metadata tells neither its pool nor the fate of a snapshot that is gone. What can be checked is checked; the rest is
 * printed as a remark.
 */
import type { ExtentStream } from '../../devicemapper/extents.ts'
import { BaseRecordReader } from '../../devicemapper/thin/base-record/reader.ts'
import { newcomers, type PoolMoment } from '../../devicemapper/thin/base-record/pool-moment.ts'
import { checkExternalOrigin, checkWentOn, voidRecord } from '../../devicemapper/thin/base-record/trust.ts'
import type { DeviceDetails } from '../../devicemapper/thin/device-details.ts'
import type { PoolMetadata } from '../../devicemapper/thin/pool-metadata.ts'
import { DeltamapperError } from '../../errors.ts'
import { deviceId } from '../command-line/option-values.ts'
import { UsageError } from '../command-line/failure.ts'
import { describeView, openViews, type PoolViews } from '../inspection/pool-views.ts'
import { firstBeyond, remarkLeftOut } from './left-out.ts'
import type { AnswerOptions, Question, Remark } from './question.ts'
import { refuseStray } from './stray-options.ts'
import { targetSize } from './target-size.ts'

/**
 * Hands the answer to `use`. @throws UsageError where the options do not go together; what reading record and metadata
 * throws
 */
export async function answerFromRecord(
  recordPath: string,
  path: string,
  question: Question,
  options: AnswerOptions,
  signal: AbortSignal,
  remark: Remark,
  use: (answer: ExtentStream) => Promise<void>
): Promise<void> {
  const { size, liveRoot = false, startingOffset = 0 } = options
  const targetId = onlyTarget(question, options)
  const record = await BaseRecordReader.open(recordPath)
  try {
    const views = await openViews(path, liveRoot)
    try {
      const { metadata } = views
      remark(`reading ${describeView(views)}`)
      await checkRecord(record, views, signal)
      remarkUnseen(record, remark)
      await targetSize(metadata, targetId, size, signal, remark)
      if (size !== undefined) await remarkBeyond(record, metadata, { targetId, size, signal }, remark)
      await use(await metadata.deltaFromRecord({ record, deviceId: targetId, sizeBytes: size, startingOffset, signal }))
    } finally {
      await views.close()
    }
  } finally {
    await record.close()
  }
}

/** Prints what metadata does not show. @throws DM_BASE_RECORD_ORIGIN */
export function remarkUnseen({ header }: Pick<BaseRecordReader, 'header'>, remark: Remark): void {
  const { externalOrigin } = header.device
  // Which one the target has, metadata does not say.
  checkExternalOrigin(header, externalOrigin)
  if (externalOrigin) remark(`external origin ${externalOrigin.identity} must still be the target's, and read-only`)
  remark(
    'that the metadata is of the pool of the record, that nobody wrote to the base before it went, ' +
      'and that the pool has not stopped without its last commit since, cannot be seen here'
  )
}

/** @throws UsageError */
function onlyTarget({ base, target }: Question, { baseSize, engine }: AnswerOptions): number {
  refuseStray({ '--base-size': baseSize, '--engine': engine }, '--base-record')
  if (base === undefined || target !== undefined) {
    throw new UsageError('--base-record takes the place of BASE', 'name TARGET, a thin device id, and nothing else')
  }
  return deviceId(base, '--metadata')
}

/**
 * Checks that the pool continued from the record, and that the base, if it still exists, is unchanged.
 *
 * @throws what `checkWentOn` throws, DM_BASE_RECORD_WRITABLE
 */
export async function checkRecord(
  record: BaseRecordReader,
  { metadata, live }: PoolViews,
  signal: AbortSignal
): Promise<void> {
  const { id, creationTime, transactionId, mappedBlocks } = record.header.device
  const now = await metadata.moment(signal)
  checkWentOn(record.header, now, live)
  await checkNewcomers(record.header.pool.moment, now, metadata, signal)
  const details = await detailsOf(metadata, id, signal)
  // A device of its id that was made at another time is another one.
  if (details?.creationTime !== creationTime || details.transactionId !== transactionId) return
  if (details.mappedBlocks !== mappedBlocks || (await differs(record, metadata, id, signal))) {
    throw voidRecord('WRITABLE', `base ${id} is still in the pool, and maps something else than the record`)
  }
}

/**
 * A snapshot of the record's very moment that is not in its list was taken after the pool had gone back.
 *
 * @throws DM_BASE_RECORD_ROLLED_BACK
 */
async function checkNewcomers(
  before: PoolMoment,
  now: PoolMoment,
  metadata: PoolMetadata,
  signal: AbortSignal
): Promise<void> {
  for (const { id, creationTime } of newcomers(before, now)) {
    if (creationTime !== before.time || !(await metadata.isSnapshot(await metadata.device(id, signal), signal)))
      continue
    throw voidRecord(
      'ROLLED_BACK',
      `thin device ${id} is a snapshot of time ${creationTime}, as the record is, and was not there when that was made`
    )
  }
}

/** Undefined if there is no such device. */
async function detailsOf(metadata: PoolMetadata, id: number, signal: AbortSignal): Promise<DeviceDetails | undefined> {
  try {
    return (await metadata.device(id, signal)).details
  } catch (error) {
    if (error instanceof DeltamapperError && error.code === 'DM_DEVICE_NOT_FOUND') return undefined
    throw error
  }
}

/** Prints what `--size` leaves out, if anything. */
async function remarkBeyond(
  record: BaseRecordReader,
  metadata: PoolMetadata,
  { targetId, size, signal }: { targetId: number; size: number; signal: AbortSignal },
  remark: Remark
): Promise<void> {
  const beyond = async () => {
    const mapped = await metadata.mappedEnd(await metadata.device(targetId, signal), signal)
    const sizeBytes = Math.max(mapped, record.header.device.sizeBytes)
    const startingOffset = firstBeyond(size, metadata.superblock.dataBlockBytes)
    if (sizeBytes <= startingOffset) return undefined
    return metadata.deltaFromRecord({ record, deviceId: targetId, sizeBytes, startingOffset, signal })
  }
  await remarkLeftOut(beyond, remark)
}

async function differs(
  record: BaseRecordReader,
  metadata: PoolMetadata,
  id: number,
  signal: AbortSignal
): Promise<boolean> {
  // Beyond its size a base has nothing, so that all the rest would count as changed.
  const { sizeBytes } = record.header.device
  const { batches } = await metadata.deltaFromRecord({ record, deviceId: id, sizeBytes, signal })
  for await (const { count } of batches) if (count > 0) return true
  return false
}
