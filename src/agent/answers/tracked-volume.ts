/**
 * Snapshots of tracked volumes: `VOLUME/SNAPSHOT`, answered from the catalog alone. The kernel is not asked, and volume
 * and snapshot need not exist any more: the writes between two snapshots were recorded when the second one was taken.
 */
import { DeltamapperError } from '../../errors.ts'
import type { Catalog } from '../catalog/catalog.ts'
import type { EraSnapshot } from '../catalog/era-snapshots.ts'
import { checkBase, checkResumed, type ServedTarget } from '../catalog/fingerprint.ts'
import type { HistoryQuestion } from '../walks/history-extents.ts'
import type { HistoryWalkRequest, NextPage } from '../walks/history-walk.ts'
import type { SnapshotSource } from '../walks/snapshot.ts'
import { namedTracked } from '../../devicemapper/device-named.ts'
import { checkOffset, type TargetAnswers } from './target.ts'
import { SECTOR_BYTES } from '../../units.ts'

export type HistoryCatalog = Pick<Catalog, 'eraVolumes' | 'eraSnapshots' | 'served'>

/** A recorded snapshot of a tracked volume. */
export interface TrackedSnapshot {
  readonly kind: 'tracked'
  /** `VOLUME/SNAPSHOT`, for messages. */
  readonly handle: string
  readonly volumeName: string
  /** The size of a tracked block, in bytes. */
  readonly blockBytes: number
  readonly record: EraSnapshot
  /** Where the history is. */
  readonly catalog: HistoryCatalog
}

/** No metadata is read for these, and the tools have no part in it. */
export function trackedAnswers(): TargetAnswers<TrackedSnapshot> {
  return {
    where: 'is a snapshot of a tracked volume',
    named: ({ record }) => namedTracked(record.id),
    async plan({ base, target, startingOffset, maxResults }) {
      checkOffset(startingOffset, target.handle, target.record.sizeBytes)
      const from = Number(startingOffset)
      const { question, nextPage } = base
        ? await trackedDelta(base, target, from)
        : await trackedAllocated(target, from)
      const request: HistoryWalkRequest = { question, isOnRecord: nextPage !== undefined, maxResults }
      return {
        kind: base ? 'delta' : 'allocated',
        capacityBytes: question.sizeBytes,
        task: { target: 'tracked', request },
        ...(nextPage && { asides: { page: nextPage } })
      }
    }
  }
}

/** The input of a walk. */
interface TrackedAnswer {
  readonly question: HistoryQuestion
  /** Undefined if the catalog has nothing for the answer. */
  readonly nextPage: NextPage | undefined
}

/** The source of this name; undefined when there is no such tracked volume. @throws what the catalog throws */
export async function eraSource(
  name: string,
  catalog: HistoryCatalog
): Promise<SnapshotSource<TrackedSnapshot> | undefined> {
  const volume = await catalog.eraVolumes.find(name)
  if (volume === undefined) return undefined
  const blockBytes = volume.blockSectors * SECTOR_BYTES
  return {
    async snapshot(snapshot) {
      const record = await catalog.eraSnapshots.find(name, snapshot)
      // Meanwhile the volume was detached, and another one attached under this name.
      if (record?.volume !== volume.id) return undefined
      return { kind: 'tracked', handle: `${name}/${snapshot}`, volumeName: name, blockBytes, record, catalog }
    }
  }
}

/**
 * The allocated blocks of a snapshot: all of them, because dm-era does not know which blocks were ever written.
 *
 * @throws DM_RESUME_REFUSED; what the catalog throws
 */
async function trackedAllocated(target: TrackedSnapshot, startingOffset: number): Promise<TrackedAnswer> {
  await rememberTarget(target, startingOffset)
  const { sizeBytes } = target.record
  return { question: { blockBytes: target.blockBytes, sizeBytes, leastBytes: 0, startingOffset }, nextPage: undefined }
}

/**
 * The writes between two snapshots.
 *
 * @throws DM_VOLUMES_DIFFER, DM_ORDER_REVERSED, DM_HISTORY_BROKEN, DM_BASE_CHANGED, DM_RESUME_REFUSED; DM_BASE_LOST
 *   when either was forgotten meanwhile; what the catalog throws
 */
async function trackedDelta(
  base: TrackedSnapshot,
  target: TrackedSnapshot,
  startingOffset: number
): Promise<TrackedAnswer> {
  checkComparable(base, target)
  const { catalog, blockBytes } = target
  const served = servedTracked(base)
  checkBase(await catalog.served.find(served), served)
  await refuseUsedName(base)
  await rememberTarget(target, startingOffset)
  const [from, to] = [base.record.id, target.record.id]
  const leastBytes = await catalog.eraSnapshots.leastSize(from, to)
  if (leastBytes === undefined) throw forgotten(base, target)
  const question = { blockBytes, sizeBytes: target.record.sizeBytes, leastBytes, startingOffset }
  if (from === to) return { question, nextPage: undefined }
  return {
    question,
    async nextPage(after) {
      const page = await catalog.eraSnapshots.writes(from, to, after)
      if (page === undefined) throw forgotten(base, target)
      return page
    }
  }
}

/**
 * Refuses a name that was used twice: the client's backup may be of the earlier snapshot, even if it never asked about
 * that one.
 *
 * @throws DM_BASE_CHANGED
 */
async function refuseUsedName({ handle, volumeName, record, catalog }: TrackedSnapshot): Promise<void> {
  const takenAt = await catalog.eraSnapshots.nameUsedBefore(volumeName, record.name)
  if (takenAt === undefined) return
  throw new DeltamapperError(
    'DM_BASE_CHANGED',
    `${handle} is another snapshot than the one of this name that was taken ${new Date(takenAt).toISOString()}`,
    'take a full backup, and give every snapshot a name of its own from now on'
  )
}

/**
 * Records a target. An answer resumed at an offset continues an earlier one only if both are about the same snapshot:
 * the name may belong to another by now.
 *
 * @throws DM_RESUME_REFUSED
 */
async function rememberTarget(target: TrackedSnapshot, startingOffset: number): Promise<void> {
  const served = servedTracked(target)
  if (startingOffset > 0) checkResumed(await target.catalog.served.find(served), served)
  await target.catalog.served.remember(served)
}

/** @throws DM_VOLUMES_DIFFER, DM_ORDER_REVERSED, DM_HISTORY_BROKEN */
function checkComparable(base: TrackedSnapshot, target: TrackedSnapshot): void {
  if (base.record.volume !== target.record.volume) {
    throw new DeltamapperError(
      'DM_VOLUMES_DIFFER',
      `${base.handle} is a snapshot of tracked volume ${base.volumeName}, ${target.handle} of ${target.volumeName}`,
      'compare snapshots of one volume'
    )
  }
  if (base.record.seq > target.record.seq) {
    throw new DeltamapperError(
      'DM_ORDER_REVERSED',
      `base ${base.handle} was taken after target ${target.handle}`,
      'ask the other way round'
    )
  }
  if (base.record.line !== target.record.line) {
    throw new DeltamapperError(
      'DM_HISTORY_BROKEN',
      `what was written between ${base.handle} and ${target.handle} is not known: ${target.record.lineBecause}`,
      'take a full backup of the newer one; later snapshots compare with it'
    )
  }
}

function forgotten(base: TrackedSnapshot, target: TrackedSnapshot): DeltamapperError {
  return new DeltamapperError(
    'DM_BASE_LOST',
    `${base.handle} or ${target.handle} was forgotten while their history was read`,
    'ask again; if the base is no longer known, take a full backup'
  )
}

/**
 * The catalog record of a served tracked snapshot. Only the id identifies it, because nothing else tells it from
 * another snapshot of the same name. The fields of thin metadata are the same constants for all.
 */
function servedTracked({ handle, record }: TrackedSnapshot): ServedTarget {
  const { id, volume, seq, sizeBytes } = record
  const ofThinMetadata = { thinId: 0, transactionId: 0n, root: 0, rootChecksum: 0, mappedBlocks: 0 }
  return { ...ofThinMetadata, handle, identity: id, pool: volume, volume, creationTime: seq, sizeBytes }
}
