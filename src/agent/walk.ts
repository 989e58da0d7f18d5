/**
 * One question, answered: opens the metadata, finds the devices, checks that the question makes sense, and turns the walk's extents
 * into encoded messages. Runs in a walker thread; knows nothing of threads itself.
 */
import { DeltamapperError } from '../errors.ts'
import {
  type Fingerprint,
  type MappingStream,
  openPoolMetadata,
  type PoolMetadata,
  type ThinDevice
} from '../devicemapper/thin/pool-metadata.ts'
import { engineAnswer, type EngineQuestion, type ToolsRequested, type ToolSupport } from './engine-walk.ts'
import { encodedMessages } from './encoded-messages.ts'
import type { Snapshot } from './snapshot-source.ts'

export interface WalkRequest {
  /** Undefined: everything the target has allocated. */
  base?: Snapshot | undefined
  target: Snapshot
  /** Bytes; 0 to the target's size. */
  startingOffset: number
  /** The most extents in a message; 0 for as many as are good. */
  maxResults: number
  /** Read an image around the page cache, as a device is. */
  direct: boolean
  /** How long one request to a metadata device may take, in milliseconds. */
  readDeadlineMs?: number | undefined
  /** What one walker thread may read of a metadata device, in bytes a second; undefined for as fast as it goes. */
  readBytesPerSecond?: number | undefined
  /** Left out: our own reading is all there is. */
  tools?: ToolsRequested | undefined
}

/** A device as the pool's metadata has it when a walk begins, to be compared with what was seen of it before. */
export interface SeenDevice {
  snapshot: Snapshot
  /** The pool's transaction id when the device was created. */
  transactionId: bigint
  fingerprint: Fingerprint
}

/** What a walk is about, told before its first message. */
export interface SeenDevices {
  base?: SeenDevice | undefined
  target: SeenDevice
}

/** What is known of those devices beside the metadata: the answer to SeenDevices. */
export interface KnownDevices {
  /** The base, as it is, is known never to have been written to since it was taken. */
  baseIsPristine: boolean
}

/** What a walk has found out about a device's whole tree: that it was never written to since it was taken. */
export type OnPristine = (device: SeenDevice) => void

/** What a walk has cost, for the log and the metrics. */
export interface WalkStatistics {
  nodesRead: number
  bytesRead: number
  readCalls: number
  extents: number
}

/**
 * The encoded messages of an answer: at least one, because an empty list still tells the capacity.
 *
 * @param statistics kept up to date while the walk goes on
 * @param onSeen told of a live pool's devices before the first message, which waits for what is known of them
 * @param onPristine told which of them were found never to have been written to
 * @param support needed where the tools have a part in it
 * @throws what reading metadata throws; DM_SNAPSHOT_NOT_FOUND, DM_BASE_LOST, DM_BASE_CHANGED, DM_ORDER_REVERSED; what the tools throw
 */
export async function* walkMessages(
  { base, target, startingOffset, maxResults, direct, readDeadlineMs, readBytesPerSecond, tools }: WalkRequest,
  statistics: WalkStatistics,
  signal: AbortSignal,
  onSeen: (seen: SeenDevices) => Promise<KnownDevices> = async () => ({ baseIsPristine: false }),
  onPristine: OnPristine = () => undefined,
  support?: ToolSupport
): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  const liveRoot = (target.live || target.liveRoot) ?? false
  const metadata = await openPoolMetadata(target.metadataPath, {
    ...{ liveRoot, direct, device: target.metadataDevice },
    ...{ deadlineMs: readDeadlineMs, bytesPerSecond: readBytesPerSecond }
  })
  try {
    checkBlockSize(metadata, target)
    const devices = await find(metadata, base, target, signal)
    // What is in a file does not change: nobody has to know anything about it.
    const seen = target.live ? await see(metadata, devices) : undefined
    if (seen) {
      const { baseIsPristine } = await onSeen(seen)
      if (seen.base && !baseIsPristine) {
        await checkPristine(metadata, seen.base, signal)
        onPristine(seen.base)
      }
    }
    const native = () => answer(metadata, base, target, seen, startingOffset, signal)
    const { batches, isPristine } =
      tools && support
        ? await engineAnswer(tools, metadata, liveRoot, asked(devices, seen, startingOffset), support, native)
        : await native()
    yield* encodedMessages(batches, { capacityBytes: target.sizeBytes, maxResults }, statistics, () => {
      Object.assign(statistics, metadata.statistics)
    })
    // What the target shares with its base is as old as that one's, which is pristine; the rest has just been looked at.
    if (seen && startingOffset === 0 && isPristine()) onPristine(seen.target)
  } finally {
    Object.assign(statistics, metadata.statistics)
    await metadata.close()
  }
}

/** A snapshot and its device. */
interface FoundDevice {
  snapshot: Snapshot
  device: ThinDevice
}

interface FoundDevices {
  base: FoundDevice | undefined
  target: FoundDevice
}

/** @throws DM_RECORDED_POOL_INVALID when the description and the image are not of one pool */
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
  base: Snapshot | undefined,
  target: Snapshot,
  signal: AbortSignal
): Promise<FoundDevices> {
  const targetDevice = await findDevice(metadata, target, 'DM_SNAPSHOT_NOT_FOUND', signal)
  const baseDevice = base && (await findDevice(metadata, base, 'DM_BASE_LOST', signal))
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
  return {
    base: base && baseDevice && { snapshot: base, device: baseDevice },
    target: { snapshot: target, device: targetDevice }
  }
}

/** @throws DM_SNAPSHOT_CHANGED */
async function see(metadata: PoolMetadata, { base, target }: FoundDevices): Promise<SeenDevices> {
  const look = async ({ snapshot, device }: FoundDevice): Promise<SeenDevice> => ({
    snapshot,
    transactionId: device.details.transactionId,
    fingerprint: await metadata.fingerprint(device)
  })
  return { base: base && (await look(base)), target: await look(target) }
}

/**
 * A block of its own that a snapshot has can be overwritten in place without a trace, between a backup of it and now.
 *
 * @throws DM_BASE_CHANGED
 */
async function checkPristine(
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

/** @param seen what the devices were when they were checked, which the answer has to be about */
async function answer(
  metadata: PoolMetadata,
  base: Snapshot | undefined,
  target: Snapshot,
  seen: SeenDevices | undefined,
  startingOffset: number,
  signal: AbortSignal
): Promise<MappingStream> {
  const { fingerprint } = seen?.target ?? {}
  const question = { sizeBytes: target.sizeBytes, startingOffset, fingerprint, signal }
  if (!base) return metadata.allocated({ deviceId: target.thinId, ...question })
  return metadata.delta({
    baseId: base.thinId,
    targetId: target.thinId,
    baseSizeBytes: base.sizeBytes,
    baseIsSnapshot: base.live ?? false,
    baseFingerprint: seen?.base?.fingerprint,
    ...question
  })
}

/** The same question, as the tools' engine takes it. */
function asked({ base, target }: FoundDevices, seen: SeenDevices | undefined, startingOffset: number): EngineQuestion {
  const device = ({ snapshot, device }: FoundDevice, as: SeenDevice | undefined) => {
    return { device, sizeBytes: snapshot.sizeBytes, fingerprint: as?.fingerprint }
  }
  return { base: base && device(base, seen?.base), target: device(target, seen?.target), startingOffset }
}

/** The snapshot's device, under the code that its loss means for the caller. */
async function findDevice(
  metadata: PoolMetadata,
  { handle, thinId, transactionId }: Snapshot,
  lost: 'DM_SNAPSHOT_NOT_FOUND' | 'DM_BASE_LOST',
  signal: AbortSignal
): Promise<ThinDevice> {
  const gone = (what: string, cause?: unknown) =>
    new DeltamapperError(
      lost,
      `snapshot ${handle} is no longer in its pool (${what})`,
      'take a full backup of a snapshot that exists',
      { cause }
    )
  let device: ThinDevice
  try {
    device = await metadata.device(thinId, signal)
  } catch (error) {
    if (!(error instanceof DeltamapperError) || error.code !== 'DM_DEVICE_NOT_FOUND') throw error
    throw gone(`no thin device ${thinId}`, error)
  }
  // LVM gives the highest device id out again: the same id with another transaction id is another snapshot.
  if (transactionId !== undefined && device.details.transactionId !== transactionId) {
    throw gone(
      `thin device ${thinId} is of transaction ${device.details.transactionId}, the snapshot of ${transactionId}`
    )
  }
  return device
}
