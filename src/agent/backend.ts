/**
 * Where a CSI question becomes a walk: handles are resolved, and what cannot be compared is refused before any metadata is read.
 */
import { DeltamapperError } from '../errors.ts'
import type { EncodedStream, SnapshotMetadataBackend } from '../grpc/snapshot-metadata.ts'
import { trackedAllocated, trackedDelta, type TrackedSnapshot } from './era/source.ts'
import { parseHandle } from './handle.ts'
import type { AnySnapshot, Snapshot } from './snapshot-source.ts'
import type { Sources } from './sources.ts'
import type { DeviceKnowledge, Walkers } from './walkers.ts'

/** @param knowledge what is known of the devices of live pools */
export function snapshotMetadataBackend(
  sources: Sources,
  walkers: Walkers,
  knowledge?: DeviceKnowledge
): SnapshotMetadataBackend {
  return {
    async allocated({ snapshotId, startingOffset, maxResults }, signal, call) {
      const target = await resolve(snapshotId)
      if (target.kind === 'tracked') {
        checkOffset(startingOffset, target.handle, target.record.sizeBytes)
        const answer = await trackedAllocated(target, Number(startingOffset))
        return walkers.walkHistory('allocated', answer, maxResults, signal, call?.client)
      }
      checkExternalOrigin(undefined, target)
      return walk(undefined, target, startingOffset, maxResults, signal, call?.client)
    },

    async delta({ baseSnapshotId, targetSnapshotId, startingOffset, maxResults }, signal, call) {
      // Together: a source that has to ask somebody answers both from one report.
      const [base, target] = await Promise.all([resolve(baseSnapshotId), resolve(targetSnapshotId)])
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

  async function resolve(handle: string): Promise<AnySnapshot> {
    const { source, name } = parseHandle(handle)
    const found = await sources.find(source)
    const snapshot = await found?.snapshot(name)
    if (!snapshot) {
      throw new DeltamapperError(
        'DM_SNAPSHOT_NOT_FOUND',
        found ? `${source} has no snapshot ${name}` : `this agent has no source ${source}`,
        `check the handle; ${sources.description}`
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
    return walkers.walk(
      { base, target, startingOffset: Number(startingOffset), maxResults },
      signal,
      target.live && knowledge ? stillNamed(base ? [base, target] : [target], knowledge) : undefined,
      client
    )
  }

  /**
   * A name can go to another device, and a thin id to another snapshot, before the metadata is looked at. So what has nothing to be told
   * by but its name is looked up again when the metadata has been: a device that is still there held its id all the time.
   */
  function stillNamed(snapshots: Snapshot[], known: DeviceKnowledge): DeviceKnowledge {
    return {
      async check(seen) {
        await Promise.all(snapshots.filter(({ transactionId }) => transactionId === undefined).map(checkStillNamed))
        await known.check(seen)
      }
    }
  }

  /** @throws DM_SNAPSHOT_NOT_FOUND, DM_SNAPSHOT_CHANGED */
  async function checkStillNamed({ handle, thinId, sizeBytes, metadataPath }: Snapshot): Promise<void> {
    const now = await resolve(handle)
    if (
      now.kind === undefined &&
      now.thinId === thinId &&
      now.sizeBytes === sizeBytes &&
      now.metadataPath === metadataPath
    )
      return
    throw new DeltamapperError(
      'DM_SNAPSHOT_CHANGED',
      `${handle} was replaced or resized while it was looked at`,
      'ask again'
    )
  }
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
 * @throws DM_POOLS_DIFFER, DM_VOLUMES_DIFFER
 */
function checkRelated(base: Snapshot, target: Snapshot): void {
  const remedy = 'compare snapshots of one volume'
  if (base.metadataPath !== target.metadataPath) {
    throw new DeltamapperError('DM_POOLS_DIFFER', `${base.handle} and ${target.handle} are in different pools`, remedy)
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
