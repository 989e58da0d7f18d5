/**
 * Answers one question: opens the metadata, finds the devices, checks the question against them, and encodes the walk's
 * extents as messages. Runs in a walker thread, and does not know of threads.
 */
import { allOf } from '../../all-of.ts'
import { DeltamapperError } from '../../errors.ts'
import { BaseRecordReader } from '../../devicemapper/thin/base-record/reader.ts'
import { checkExternalOrigin, checkRecordBlocks, checkWentOn } from '../../devicemapper/thin/base-record/trust.ts'
import type { MappingSink } from '../../devicemapper/thin/mapping-sink.ts'
import type { ExtentBatch } from '../../devicemapper/extents.ts'
import {
  type MappingStream,
  openPoolMetadata,
  type PinnedNow,
  type PoolMetadata
} from '../../devicemapper/thin/pool-metadata.ts'
import type { OpenMedium } from '../../devicemapper/metadata-medium.ts'
import type { CheckOutcome } from '../../devicemapper/tools/cross-check.ts'
import { resumeRefused } from '../catalog/fingerprint.ts'
import type {
  EngineQuestion,
  EngineReport,
  ToolsRequested,
  ToolSupport
} from '../../devicemapper/tools/engine-answer.ts'
import { encodedMessages, type WalkStatistics } from './encoded-messages.ts'
import type { Reading, Walk } from './plan.ts'
import { type RecordedAnswer, RecordKeeping, type RecordOutcome, type RecordWanted } from './record-keeping.ts'
import type { SeenDevice, SeenDevices } from './seen-devices.ts'
import type { Snapshot } from './snapshot.ts'
import { fromPortable, type PortableError, toPortable } from '../../portable-error.ts'

/** A question about thin snapshots. */
export interface ThinQuestion {
  /** Undefined, without a record too: everything the target has allocated. */
  base?: Snapshot | undefined
  /** The record of a base that is gone, in place of one that is there. */
  recorded?: RecordedBase | undefined
  target: Snapshot
  /** Bytes; 0 to the target's size. */
  startingOffset: number
  /** The most extents in a message; 0 chooses a good number. */
  maxResults: number
  /** Left out for our own reading alone. */
  tools?: ToolsRequested | undefined
}

/** A base that is gone, and the file that stands for it. */
export interface RecordedBase {
  readonly handle: string
  readonly path: string
  /** What must be in the record: the base as it was on record when it was served. */
  readonly pool: string
  readonly thinId: number
  readonly creationTime: number
  readonly transactionId: bigint
  readonly mappedBlocks: number
  readonly sizeBytes: number
}

export interface WalkRequest extends ThinQuestion, Reading {}

/** What the main thread does for this walk, by name. */
export interface ThinAsides {
  /**
   * Told of a live pool's devices; no message is made before it has agreed. It may want a record of the target to be
   * kept.
   */
  seen(devices: SeenDevices): Promise<RecordWanted | undefined>
  /** Told what became of that, before the answer ends. */
  kept(outcome: RecordOutcome): Promise<void>
  /** Holds a metadata snapshot for the tools in which the devices are as they were seen, until the walk is over. */
  hold(devices: SeenDevices): Promise<HeldForTools>
  /** Told what became of a check with the tools. */
  report(report: PortableReport): void
}

/** The block of the metadata snapshot, or why there is none. */
export type HeldForTools = { heldRoot: number } | { refused: PortableError }

/** An EngineReport between threads. */
export interface PortableReport {
  beyondBase: number
  outcome: Exclude<CheckOutcome, { check: 'unchecked' }> | { check: 'unchecked'; why: PortableError }
}

export function fromPortableReport({ outcome, beyondBase }: PortableReport): EngineReport {
  return {
    beyondBase,
    outcome: outcome.check === 'unchecked' ? { ...outcome, why: fromPortable(outcome.why) } : outcome
  }
}

function toPortableReport({ outcome, beyondBase }: EngineReport): PortableReport {
  return { beyondBase, outcome: outcome.check === 'unchecked' ? { ...outcome, why: toPortable(outcome.why) } : outcome }
}

/** The walk of thin snapshots. @throws what `walkMessages` throws */
export const thinWalk: Walk<ThinQuestion> = (question, { reading, statistics, signal, withdrawn, ask }) => {
  let held: Promise<HeldForTools> | undefined
  const onSeen = async (devices: SeenDevices): Promise<RecordWanted | undefined> => {
    const wanted = (await ask('seen', devices)) as RecordWanted | undefined
    if (question.tools !== undefined) {
      held = ask('hold', devices) as Promise<HeldForTools>
      // The tools may never come to it.
      held.catch(() => undefined)
    }
    return wanted
  }
  const onKept = async (outcome: RecordOutcome): Promise<void> => {
    await ask('kept', outcome)
  }
  const support: ToolSupport = {
    heldRoot: async () => {
      const answer = await held
      if (answer === undefined) throw new Error('the tools are asked about a pool in use that was not seen')
      if ('refused' in answer) throw fromPortable(answer.refused)
      return answer.heldRoot
    },
    signal: withdrawn,
    report: (report) => {
      // If the answer is no longer wanted, neither is the result of its check.
      if (!signal.aborted) void ask('report', toPortableReport(report))
    }
  }
  return walkMessages({ ...question, ...reading }, statistics, signal, { onSeen, onKept, support })
}

/** What a walk tells others, and is given by them. */
export interface WalkSurroundings {
  /** Gets a live pool's devices before the first message, which waits for it. */
  readonly onSeen?: ((seen: SeenDevices) => Promise<RecordWanted | undefined>) | undefined
  /** Gets what became of a record that was wanted, before the answer ends. */
  readonly onKept?: ((outcome: RecordOutcome) => Promise<void>) | undefined
  /** Required if the tools have a part in it. */
  readonly support?: ToolSupport | undefined
  /** What opens the metadata; by default, files and devices of this machine. */
  readonly open?: OpenMedium | undefined
}

/**
 * The encoded messages of an answer: at least one, because an empty list still tells the capacity.
 *
 * @param statistics updated during the walk
 * @throws what reading metadata throws; DM_SNAPSHOT_NOT_FOUND, DM_BASE_LOST, DM_BASE_CHANGED, DM_ORDER_REVERSED,
 *   DM_VOLUME_IN_USE, DM_RESUME_REFUSED, DM_BASE_RECORD_…; what the tools and `onSeen` throw
 */
export async function* walkMessages(
  request: WalkRequest,
  statistics: WalkStatistics,
  signal: AbortSignal,
  { onSeen, onKept, support, open }: WalkSurroundings = {}
): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  const { target, direct, reads, readDeadlineMs, readBytesPerSecond } = request
  await using used = new AsyncDisposableStack()
  const metadata = await openPoolMetadata(target.metadataPath, {
    ...{ liveRoot: isLiveRoot(target), direct, reads, device: target.metadataDevice, open },
    ...{ deadlineMs: readDeadlineMs, bytesPerSecond: readBytesPerSecond }
  })
  used.defer(async () => {
    Object.assign(statistics, metadata.statistics)
    await metadata.close()
  })
  checkBlockSize(metadata, target)
  const record = request.recorded && (await openRecord(request.recorded, metadata, target, signal))
  if (record) used.defer(() => record.close())
  const devices = await find(metadata, request, record, signal)
  // An image in a file does not change, so there is nothing to check.
  const seen = target.live ? see(devices, request.startingOffset > 0) : undefined
  const wanted = seen && (await agreed(metadata, request, devices, seen, onSeen, signal))
  const keeping = wanted && (await RecordKeeping.begin(wanted, recordedAnswer(metadata, request, seen), signal))
  if (keeping) used.defer(() => keeping.abandon())
  yield* encodedMessages(
    await batchesOf(metadata, request, { devices, seen, record, sink: keeping?.sink }, support, signal),
    { capacityBytes: target.sizeBytes, maxResults: request.maxResults },
    statistics,
    () => {
      Object.assign(statistics, metadata.statistics)
    }
  )
  // The client may delete the target once the answer has ended OK.
  if (keeping) await onKept?.(await keeping.finish(signal))
}

function isLiveRoot({ live, liveRoot }: Snapshot): boolean {
  return (live || liveRoot) ?? false
}

/** Waits until the main thread has agreed to an answer about these devices, and checks what only the trees tell. */
async function agreed(
  metadata: PoolMetadata,
  { startingOffset, tools }: WalkRequest,
  devices: FoundDevices,
  seen: SeenDevices,
  onSeen: WalkSurroundings['onSeen'],
  signal: AbortSignal
): Promise<RecordWanted | undefined> {
  await refuseVolumeInUse(metadata, devices.target, signal)
  const [wanted, isMet] = await allOf([
    onSeen?.(seen) ?? Promise.resolve(undefined),
    tools?.engine === 'tools' ? Promise.resolve(false) : isMetByWalk(metadata, devices, startingOffset, signal)
  ])
  if (seen.resumed) await checkResumable(metadata, seen.target, signal)
  if (seen.base && !isMet) await checkUnwritten(metadata, seen.base, signal)
  return wanted
}

/** How much of what a record takes the answer meets. (The tools walk in programs of their own.) */
function recordedAnswer(
  metadata: PoolMetadata,
  { recorded, startingOffset, tools }: WalkRequest,
  { base, target }: SeenDevices
): RecordedAnswer {
  const fromBeginning = startingOffset === 0 && tools === undefined
  return {
    ...{ metadata, base, target },
    isWhole: fromBeginning && base === undefined,
    isDelta: fromBeginning && recorded === undefined && base !== undefined
  }
}

/** What the answer is made from. */
interface AnswerParts {
  readonly devices: FoundDevices
  /** The devices when they were checked; the answer must be about these. */
  readonly seen: SeenDevices | undefined
  readonly record: BaseRecordReader | undefined
  /** Who keeps what the walk finds. */
  readonly sink: MappingSink | undefined
}

async function batchesOf(
  metadata: PoolMetadata,
  request: WalkRequest,
  parts: AnswerParts,
  support: ToolSupport | undefined,
  signal: AbortSignal
): Promise<AsyncGenerator<ExtentBatch, unknown>> {
  const { startingOffset, tools, target } = request
  const native = () => answer(metadata, request, parts, signal)
  if (!tools || !support) return (await native()).batches
  const question = asked(parts.devices, parts.seen, startingOffset)
  // Few agents ask the tools, and what reads their XML is large.
  const { engineAnswer } = await import('../../devicemapper/tools/engine-answer.ts')
  return engineAnswer(tools, metadata, isLiveRoot(target), question, support, native)
}

/** A snapshot and its device, as one look has found it. */
interface FoundDevice extends PinnedNow {
  readonly snapshot: Snapshot
}

interface FoundDevices {
  base: FoundDevice | undefined
  target: FoundDevice
}

/** @throws DM_RECORDED_POOL_INVALID when the description and the image are of different pools */
function checkBlockSize(
  { path, superblock: { dataBlockBytes } }: PoolMetadata,
  { handle, blockBytes }: Snapshot
): void {
  if (blockBytes === undefined || blockBytes === dataBlockBytes) return
  throw new DeltamapperError(
    'DM_RECORDED_POOL_INVALID',
    `${path} has data blocks of ${dataBlockBytes} bytes, where the description of ${handle} says ${blockBytes}`,
    'put the description and the image of one pool together'
  )
}

/** @throws DM_SNAPSHOT_NOT_FOUND, DM_BASE_LOST, DM_ORDER_REVERSED */
async function find(
  metadata: PoolMetadata,
  { base, target, recorded }: WalkRequest,
  record: BaseRecordReader | undefined,
  signal: AbortSignal
): Promise<FoundDevices> {
  const [foundTarget, foundBase] = await allOf([
    findDevice(metadata, target, 'DM_SNAPSHOT_NOT_FOUND', signal),
    base ? findDevice(metadata, base, 'DM_BASE_LOST', signal) : Promise.resolve(undefined)
  ])
  const [targetDevice, baseDevice] = [foundTarget.device, foundBase?.device]
  if (recorded && record && recorded.creationTime > targetDevice.details.creationTime) {
    throw new DeltamapperError(
      'DM_ORDER_REVERSED',
      `base ${recorded.handle}, which is gone, was taken after target ${target.handle}`,
      'ask the other way round'
    )
  }
  // The pool's clock ticks with every snapshot, so of two snapshots the older one has the lower creation time.
  if (base && baseDevice && baseDevice.details.creationTime > targetDevice.details.creationTime) {
    const [what, remedy] =
      base.volume !== undefined && base.volume === target.identity
        ? [
            `target ${target.handle} is the volume that base ${base.handle} was taken of, and goes on being written to`,
            'take another snapshot of it, and ask for that'
          ]
        : [`base ${base.handle} was taken after target ${target.handle}`, 'ask the other way round']
    throw new DeltamapperError('DM_ORDER_REVERSED', what, remedy)
  }
  return { base: foundBase, target: foundTarget }
}

function see({ base, target }: FoundDevices, resumed: boolean): SeenDevices {
  const asSeen = ({ snapshot, device, fingerprint }: FoundDevice): SeenDevice => {
    return { snapshot, transactionId: device.details.transactionId, fingerprint }
  }
  return { base: base && asSeen(base), target: asSeen(target), resumed }
}

/**
 * Refuses a volume in use. The kernel acknowledges writes up to a second before the pool commits its metadata, so an
 * answer would lack them. A snapshot begins with a commit.
 *
 * @throws DM_VOLUME_IN_USE
 */
async function refuseVolumeInUse(
  metadata: PoolMetadata,
  { snapshot: { handle, writable, volume }, device }: FoundDevice,
  signal: AbortSignal
): Promise<void> {
  if (!writable || volume !== undefined || (await metadata.isSnapshot(device, signal))) return
  throw new DeltamapperError(
    'DM_VOLUME_IN_USE',
    `${handle} is a volume in use, not a snapshot: the metadata lacks what was written to it last`,
    'take a snapshot of it, and ask for that; a volume that is at rest can be asked for once its device is read-only or deactivated'
  )
}

/**
 * Whether the walk that makes the answer would notice a base that was written to.
 *
 * A write leaves a mapping that is as young as the base or younger (pack_block_time in drivers/md/dm-thin-metadata.c).
 * Until somebody takes a snapshot of the base, such a mapping is in nodes of the base alone, and the walk reads all
 * nodes that base and target do not share. (Later snapshots do not matter: the target is older, so it shares nothing
 * that is written now.) The target must be another device. And the base must have no mappings where the walk does not
 * read: before its offset and behind its end.
 */
async function isMetByWalk(
  metadata: PoolMetadata,
  { base, target }: FoundDevices,
  startingOffset: number,
  signal: AbortSignal
): Promise<boolean> {
  if (!base || base.device.id === target.device.id || startingOffset > 0) return false
  const { creationTime, snapshottedTime } = base.device.details
  if (creationTime !== snapshottedTime) return false
  const { dataBlockBytes } = metadata.superblock
  const walked = Math.ceil(target.snapshot.sizeBytes / dataBlockBytes) * dataBlockBytes
  try {
    return (await metadata.mappedEnd(base.device, signal)) <= walked
  } catch (error) {
    // A tree that is being written to looks damaged. The check of the whole tree tells which it is.
    if (error instanceof DeltamapperError && error.code === 'DM_METADATA_DAMAGED') return false
    throw error
  }
}

/**
 * Reads the base's whole tree for blocks that were written since it was taken. A target may share such blocks, so the
 * delta would not show them, although the backup lacks them. There is no short cut: neither root nor checksum prove
 * that the tree is the one that was checked before.
 *
 * @throws DM_BASE_CHANGED
 */
async function checkUnwritten(
  metadata: PoolMetadata,
  { snapshot, fingerprint }: SeenDevice,
  signal: AbortSignal
): Promise<void> {
  if (await metadata.isPristine(snapshot.thinId, signal, fingerprint)) return
  throw new DeltamapperError(
    'DM_BASE_CHANGED',
    `${snapshot.handle} has blocks of its own, which could be overwritten without a trace: it was written to, or is no snapshot`,
    'take a full backup of a snapshot, and keep it read-only'
  )
}

/**
 * The catalog has found that the target maps as many blocks as when its answer began. It is the same if none of them
 * was written since it was taken. If some were, nothing tells whether that was before or after the answer began.
 *
 * @throws DM_RESUME_REFUSED
 */
async function checkResumable(
  metadata: PoolMetadata,
  { snapshot, fingerprint }: SeenDevice,
  signal: AbortSignal
): Promise<void> {
  if (await metadata.isPristine(snapshot.thinId, signal, fingerprint)) return
  throw resumeRefused(snapshot.handle, 'it was written to after it was taken, and maybe since the answer was begun')
}

async function answer(
  metadata: PoolMetadata,
  { base, target, startingOffset }: WalkRequest,
  { devices, record, sink }: AnswerParts,
  signal: AbortSignal
): Promise<MappingStream> {
  const { base: foundBase, target: foundTarget } = devices
  const question = { sizeBytes: target.sizeBytes, startingOffset, fingerprint: foundTarget.fingerprint, sink, signal }
  if (record) return metadata.deltaFromRecord({ deviceId: target.thinId, record, ...question })
  if (!base) return metadata.allocated({ deviceId: target.thinId, ...question })
  return metadata.delta({
    baseId: base.thinId,
    targetId: target.thinId,
    baseSizeBytes: base.sizeBytes,
    baseIsSnapshot: base.live ?? false,
    baseFingerprint: foundBase?.fingerprint,
    ...question
  })
}

/**
 * The record of a base that is gone, if it is the one that is meant, and pool and metadata continued from it. Which
 * base that is, and whether nobody wrote to it, the main thread knows.
 *
 * @throws DM_BASE_RECORD_DAMAGED, DM_BASE_RECORD_FOREIGN, DM_BASE_RECORD_STILL_THERE, and what `checkWentOn` and
 *   `checkExternalOrigin` throw
 */
async function openRecord(
  recorded: RecordedBase,
  metadata: PoolMetadata,
  target: Snapshot,
  signal: AbortSignal
): Promise<BaseRecordReader> {
  const record = await BaseRecordReader.open(recorded.path)
  try {
    const { pool, device } = record.header
    const isMeant =
      pool.identity === recorded.pool &&
      device.id === recorded.thinId &&
      device.creationTime === recorded.creationTime &&
      device.transactionId === recorded.transactionId &&
      device.mappedBlocks === recorded.mappedBlocks &&
      device.sizeBytes === recorded.sizeBytes
    if (!isMeant) {
      throw new DeltamapperError(
        'DM_BASE_RECORD_FOREIGN',
        `${recorded.handle} is gone, and ${recorded.path} is the record of another snapshot`,
        FULL
      )
    }
    // The agent makes no record where an origin shows, and whether one could be written to since is not on record.
    checkExternalOrigin(record.header, target.externalOrigin && { ...target.externalOrigin, readOnly: false })
    checkRecordBlocks(record, metadata.superblock.dataBlockBytes)
    checkWentOn(record.header, await metadata.moment(signal), metadata.superblock)
    await checkIsGone(recorded, metadata, signal)
    return record
  } catch (error) {
    await record.close()
    throw error
  }
}

const FULL = 'take a full backup; what is served from then on is a base again'

/**
 * A base that is there under another name, or is just being removed, can be written to.
 *
 * @throws DM_BASE_RECORD_STILL_THERE
 */
async function checkIsGone(recorded: RecordedBase, metadata: PoolMetadata, signal: AbortSignal): Promise<void> {
  const { thinId, creationTime, transactionId } = recorded
  const there = await metadata.device(thinId, signal).catch((error: unknown) => {
    if (error instanceof DeltamapperError && error.code === 'DM_DEVICE_NOT_FOUND') return undefined
    throw error
  })
  if (there?.details.creationTime !== creationTime || there.details.transactionId !== transactionId) return
  throw new DeltamapperError(
    'DM_BASE_RECORD_STILL_THERE',
    `${recorded.handle} is not found by its name, and still is in its pool, as thin device ${thinId}`,
    'ask by the name that it has now; if it is being removed, take a full backup'
  )
}

/** The same question in the form for the tools. */
function asked({ base, target }: FoundDevices, seen: SeenDevices | undefined, startingOffset: number): EngineQuestion {
  const device = ({ snapshot, device }: FoundDevice, as: SeenDevice | undefined) => {
    return { device, sizeBytes: snapshot.sizeBytes, fingerprint: as?.fingerprint }
  }
  return { base: base && device(base, seen?.base), target: device(target, seen?.target), startingOffset }
}

/** The snapshot's device. Its loss is an error with the code for the caller's role of the snapshot. */
async function findDevice(
  metadata: PoolMetadata,
  snapshot: Snapshot,
  lost: 'DM_SNAPSHOT_NOT_FOUND' | 'DM_BASE_LOST',
  signal: AbortSignal
): Promise<FoundDevice> {
  const { handle, thinId, transactionId } = snapshot
  const gone = (what: string, cause?: unknown) =>
    new DeltamapperError(
      lost,
      `snapshot ${handle} is no longer in its pool (${what})`,
      'take a full backup of a snapshot that exists',
      { cause }
    )
  let found: PinnedNow
  try {
    found = await metadata.pinned(thinId, signal)
  } catch (error) {
    if (!(error instanceof DeltamapperError) || error.code !== 'DM_DEVICE_NOT_FOUND') throw error
    throw gone(`no thin device ${thinId}`, error)
  }
  // LVM reuses the highest device id: the same id with another transaction id is another snapshot.
  const { device } = found
  if (transactionId !== undefined && device.details.transactionId !== transactionId) {
    throw gone(
      `thin device ${thinId} is of transaction ${device.details.transactionId}, the snapshot of ${transactionId}`
    )
  }
  return { snapshot, ...found }
}
