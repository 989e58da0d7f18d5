/**
 * Bases of `deltamapper nbd` that are gone: a record says what each has mapped, the pool's metadata what the target
 * maps.
 */
import { isDeepStrictEqual } from 'node:util'
import { BaseRecordReader } from '../../devicemapper/thin/base-record/reader.ts'
import type { ExtentAnswer, ExtentBatch } from '../../devicemapper/extents.ts'
import type { PoolMetadata } from '../../devicemapper/thin/pool-metadata.ts'
import { DeltamapperError } from '../../errors.ts'
import type { NbdBase } from '../../nbd/source.ts'
import { openViews } from '../inspection/pool-views.ts'
import { UsageError } from '../command-line/failure.ts'
import type { Remark } from './question.ts'
import { checkRecord, remarkUnseen } from './record-answer.ts'

/** What is asked of each record. */
export interface RecordQuestion {
  readonly metadata: PoolMetadata
  readonly metadataPath: string
  readonly liveRoot: boolean
  /** Of the target. */
  readonly deviceId: number
  readonly sizeBytes: number
}

/**
 * The bases that records are of, each called by its thin device id.
 *
 * @param others names of bases that are there
 * @throws UsageError where two have one name; what reading a record throws, and what `checkRecord` throws where the
 *   pool has not gone on from it
 */
export async function recordBases(
  paths: readonly string[],
  others: readonly string[],
  question: RecordQuestion,
  remark: Remark
): Promise<NbdBase[]> {
  const bases: NbdBase[] = []
  for (const path of paths) {
    const base = await recordBase(path, question, remark)
    if ([...others, ...bases.map(({ name }) => name)].includes(base.name)) {
      throw new UsageError(`${path} is the record of ${base.name}, which is given already`, 'give each base once')
    }
    bases.push(base)
  }
  return bases
}

async function recordBase(path: string, question: RecordQuestion, remark: Remark): Promise<NbdBase> {
  const { metadata, metadataPath, liveRoot, deviceId, sizeBytes } = question
  const record = await BaseRecordReader.open(path)
  try {
    const views = await openViews(metadataPath, liveRoot)
    try {
      await checkRecord(record, views, new AbortController().signal)
    } finally {
      await views.close()
    }
  } finally {
    await record.close()
  }
  const { header, bytes } = record
  if (header.device.externalOrigin) throw overAnother(path)
  remarkUnseen(record, remark)
  return {
    name: String(header.device.id),
    sizeBytes: header.device.sizeBytes,
    async delta(startingOffset, signal) {
      // A record is read by one walk at a time.
      const again = await BaseRecordReader.open(path)
      try {
        if (again.bytes !== bytes || !isDeepStrictEqual(again.header, header)) throw replaced(path)
        const answer = await metadata.deltaFromRecord({ record: again, deviceId, sizeBytes, startingOffset, signal })
        return closedAfter(answer, again)
      } catch (error) {
        await again.close()
        throw error
      }
    }
  }
}

/** The record is closed with the answer, also where nobody ever reads of it. */
function closedAfter({ capacityBytes, batches }: ExtentAnswer, record: BaseRecordReader): ExtentAnswer {
  return {
    capacityBytes,
    batches: {
      [Symbol.asyncIterator](): AsyncIterator<ExtentBatch, void> {
        const walk = batches[Symbol.asyncIterator]()
        return {
          async next() {
            const next = await walk.next()
            if (next.done) await record.close()
            return next.done ? { done: true, value: undefined } : next
          },
          async return() {
            await walk.return?.()
            await record.close()
            return { done: true, value: undefined }
          }
        }
      }
    }
  }
}

function replaced(path: string): DeltamapperError {
  return new DeltamapperError(
    'DM_SNAPSHOT_CHANGED',
    `${path} is another record than when it was opened`,
    'begin again, and leave the record as it is'
  )
}

/** What shows through is in no image of the pool: it would read as zeros. */
function overAnother(path: string): DeltamapperError {
  return new DeltamapperError(
    'DM_NOT_TRACKED',
    `${path} is of a snapshot over an external origin, of which the pool's images have nothing`,
    'serve the snapshot itself (--endpoint)'
  )
}
