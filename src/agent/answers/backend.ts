/**
 * Where a CSI question becomes a walk: handles are resolved, and what cannot be compared is refused before any metadata is read.
 *
 *   look up both handles, at one look ─▶ open the metadata ─▶ find the devices in it ─▶ look up again ─▶ the catalog ─▶ first message
 *
 * A name can go to another volume, and a pool's node to another pool, at any moment. The descriptor that is held settles which metadata
 * it is: its device keeps its number. The second look settles whether that is what the handles mean, and did at the first one.
 */
import { isDeepStrictEqual } from 'node:util'
import { DeltamapperError } from '../../errors.ts'
import type { EncodedStream, SnapshotMetadataBackend } from '../../grpc/snapshot-metadata.ts'
import { trackedAllocated, trackedDelta, type TrackedSnapshot } from './tracked-volume.ts'
import { parseHandle } from '../../handle.ts'
import type { AnySnapshot, Snapshot } from '../walks/snapshot.ts'
import type { Sources } from './sources.ts'
import type { SeenDevices } from '../walks/thin-walk.ts'
import type { DeviceKnowledge, Walkers } from '../walks/walkers.ts'

/** @param knowledge what is known of the devices of live pools */
export function snapshotMetadataBackend(
  sources: Sources,
  walkers: Walkers,
  knowledge?: DeviceKnowledge
): SnapshotMetadataBackend {
  return {
    async allocated({ snapshotId, startingOffset, maxResults }, signal, call) {
      const [target] = await lookUp([snapshotId])
      if (target.kind === 'tracked') {
        checkOffset(startingOffset, target.handle, target.record.sizeBytes)
        const answer = await trackedAllocated(target, Number(startingOffset))
        return walkers.walkHistory('allocated', answer, maxResults, signal, call?.client)
      }
      checkExternalOrigin(undefined, target)
      return walk(undefined, target, startingOffset, maxResults, signal, call?.client)
    },

    async delta({ baseSnapshotId, targetSnapshotId, startingOffset, maxResults }, signal, call) {
      const [base, target] = await lookUp([baseSnapshotId, targetSnapshotId])
      if (base.kind === 'tracked' || target.kind === 'tracked') {
        const both = bothTracked(base, target)
        checkOffset(startingOffset, target.handle, both.target.record.sizeBytes)
        const answer = await trackedDelta(both.base, both.target, Number(startingOffset))
        return walkers.walkHistory('delta', answer, maxResults, signal, call?.client)
      }
      checkRelated(base, target)
      checkExternalOrigin(base, target)
      return walk(base, target, startingOffset, maxResults, signal, call?.client)
    }
  }

  async function lookUp(handles: readonly string[]): Promise<AnySnapshot[]> {
    const look = sources.look()
    return Promise.all(handles.map((handle) => resolve(handle, look)))
  }

  async function resolve(handle: string, look: Sources): Promise<AnySnapshot> {
    const { source, name } = parseHandle(handle)
    const found = await look.find(source)
    const snapshot = await found?.snapshot(name)
    if (!snapshot) {
      throw new DeltamapperError(
        'DM_SNAPSHOT_NOT_FOUND',
        found ? `${source} has no snapshot ${name}` : `this agent has no source ${source}`,
        `check the handle; ${sources.description}`,
        { forOthers: { remedy: 'check the handle; the log of the agent says what it serves' } }
      )
    }
    // By whichever name it was asked for, the client will ask again.
    return { ...snapshot, handle }
  }

  function walk(
    base: Snapshot | undefined,
    target: Snapshot,
    startingOffset: bigint,
    maxResults: number,
    signal: AbortSignal,
    client: string | undefined
  ): EncodedStream {
    checkOffset(startingOffset, target.handle, target.sizeBytes)
    const request = { base, target, startingOffset: Number(startingOffset), maxResults }
    if (!target.live || !knowledge) return walkers.walk(request, signal, undefined, client)
    const second = new SecondLook(base ? [base, target] : [target], knowledge, lookUp)
    const stream = walkers.walk(request, signal, second, client)
    return { ...stream, messages: second.explained(stream.messages, signal) }
  }
}

type LookUp = (handles: readonly string[]) => Promise<AnySnapshot[]>

/** What the devices of a question are, known once more when its metadata is open; then what else is known of them. */
class SecondLook implements DeviceKnowledge {
  readonly #snapshots: readonly Snapshot[]
  readonly #known: DeviceKnowledge
  readonly #lookUp: LookUp
  #isTaken = false

  /** @param lookUp all at one look, which begins when it is called */
  constructor(snapshots: readonly Snapshot[], known: DeviceKnowledge, lookUp: LookUp) {
    this.#snapshots = snapshots
    this.#known = known
    this.#lookUp = lookUp
  }

  async check(seen: SeenDevices): Promise<void> {
    await this.#take()
    this.#isTaken = true
    await this.#known.check(seen)
  }

  /** What the metadata says against a question may be said of another pool: then the question is to be asked again. */
  async *explained(messages: EncodedStream['messages'], signal: AbortSignal): AsyncGenerator<Uint8Array> {
    try {
      yield* messages
    } catch (error) {
      if (!this.#isTaken && !signal.aborted) {
        await this.#take().catch((found: unknown) => {
          if (found instanceof DeltamapperError && found.code === 'DM_SNAPSHOT_CHANGED') throw found
        })
      }
      throw error
    }
  }

  /** @throws DM_SNAPSHOT_CHANGED, and what looking up throws */
  async #take(): Promise<void> {
    const now = await this.#lookUp(this.#snapshots.map(({ handle }) => handle))
    this.#snapshots.forEach((snapshot, i) => checkSame(snapshot, now[i]))
  }
}

/** @throws DM_SNAPSHOT_CHANGED where anything is known of the snapshot that was not known of it before, or the other way round */
function checkSame(before: Snapshot, now: AnySnapshot): void {
  if (isDeepStrictEqual(before, now)) return
  throw new DeltamapperError(
    'DM_SNAPSHOT_CHANGED',
    `${before.handle} was renamed, replaced, resized or moved while it was looked at`,
    'ask again'
  )
}

/** @throws DM_OFFSET_OUT_OF_RANGE */
function checkOffset(startingOffset: bigint, handle: string, sizeBytes: number): void {
  if (startingOffset >= 0n && startingOffset <= sizeBytes) return
  throw new DeltamapperError(
    'DM_OFFSET_OUT_OF_RANGE',
    `starting offset ${startingOffset} is outside ${handle}, which has ${sizeBytes} bytes`,
    'resume at the end of the last extent received, or at 0'
  )
}

/** @throws DM_POOLS_DIFFER where one is thin */
function bothTracked(base: AnySnapshot, target: AnySnapshot): { base: TrackedSnapshot; target: TrackedSnapshot } {
  if (base.kind === 'tracked' && target.kind === 'tracked') return { base, target }
  const [tracked, thin] = base.kind === 'tracked' ? [base, target] : [target, base]
  throw new DeltamapperError(
    'DM_POOLS_DIFFER',
    `${tracked.handle} is a snapshot of an era volume, ${thin.handle} is in a thin pool`,
    'compare snapshots of one volume'
  )
}

/**
 * Refuses a mix-up of handles. Block numbers within one pool compare exactly whatever they are of, so this protects the caller, not
 * the answer: what is not known passes.
 *
 * @throws DM_POOLS_DIFFER, DM_VOLUMES_DIFFER, DM_SNAPSHOT_CHANGED
 */
function checkRelated(base: Snapshot, target: Snapshot): void {
  const remedy = 'compare snapshots of one volume'
  if (poolOf(base) !== poolOf(target)) {
    throw new DeltamapperError('DM_POOLS_DIFFER', `${base.handle} and ${target.handle} are in different pools`, remedy)
  }
  // The target's is opened, and proven to be the one that was looked up.
  if (!isDeepStrictEqual(base.metadataDevice, target.metadataDevice)) {
    throw new DeltamapperError(
      'DM_SNAPSHOT_CHANGED',
      `the pool of ${base.handle} and ${target.handle} was activated anew while they were looked up`,
      'ask again'
    )
  }
  if (base.volume === undefined || target.volume === undefined || base.volume === target.volume) return
  // A snapshot and the volume it was taken of are related, even when that volume is itself a snapshot of another.
  if (base.volume === target.identity || target.volume === base.identity) return
  const ofWhat = ({ volume, volumeName }: Snapshot) => volumeName ?? volume
  throw new DeltamapperError(
    'DM_VOLUMES_DIFFER',
    `${base.handle} is a snapshot of ${ofWhat(base)}, ${target.handle} of ${ofWhat(target)}`,
    remedy
  )
}

function poolOf({ poolIdentity, metadataPath }: Snapshot): string {
  return poolIdentity ?? metadataPath
}

/**
 * Where a snapshot maps nothing, its external origin shows through. Compared with a base over the same origin that cancels out, as
 * far as the base reaches; everything else would be under-reported.
 *
 * @throws DM_NOT_TRACKED
 */
function checkExternalOrigin(base: Snapshot | undefined, target: Snapshot): void {
  const refuse = (what: string): never => {
    throw new DeltamapperError(
      'DM_NOT_TRACKED',
      what,
      'back up every block, or copy what is outside of the pool into a thin volume'
    )
  }
  const origin = target.externalOrigin
  if (base && origin?.identity !== base.externalOrigin?.identity) {
    refuse(
      `${base.handle} and ${target.handle} do not have the same external origin, which shows where they map nothing`
    )
  }
  if (!origin) return
  const shown = `the external origin of ${target.handle} shows where it maps nothing`
  if (!base) refuse(`${shown}, so what it maps is not all it holds`)
  else if (base.sizeBytes < Math.min(target.sizeBytes, origin.sizeBytes ?? Infinity)) {
    refuse(`${shown}, and shows more of itself since ${base.handle}, which is smaller`)
  }
}
