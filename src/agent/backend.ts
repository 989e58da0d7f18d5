/**
 * Where a CSI question becomes a walk: handles are resolved, and what cannot be compared is refused before any metadata is read.
 */
import { DeltamapperError } from '../errors.ts'
import type { EncodedStream, SnapshotMetadataBackend } from '../grpc/snapshot-metadata.ts'
import { parseHandle } from './handle.ts'
import type { Snapshot, SnapshotSource } from './snapshot-source.ts'
import type { Walkers } from './walkers.ts'

/** @param sources by the name before the slash of their handles */
export function snapshotMetadataBackend(
  sources: ReadonlyMap<string, SnapshotSource>,
  walkers: Walkers
): SnapshotMetadataBackend {
  return {
    async allocated({ snapshotId, startingOffset, maxResults }, signal) {
      const target = await resolve(snapshotId)
      return walk(undefined, target, startingOffset, maxResults, signal)
    },

    async delta({ baseSnapshotId, targetSnapshotId, startingOffset, maxResults }, signal) {
      const base = await resolve(baseSnapshotId)
      const target = await resolve(targetSnapshotId)
      if (base.metadataPath !== target.metadataPath) {
        throw new DeltamapperError(
          'DM_POOLS_DIFFER',
          `${base.handle} and ${target.handle} are in different pools`,
          'compare snapshots of one volume'
        )
      }
      if (base.volume !== target.volume) {
        throw new DeltamapperError(
          'DM_VOLUMES_DIFFER',
          `${base.handle} is a snapshot of ${base.volume}, ${target.handle} of ${target.volume}`,
          'compare snapshots of one volume'
        )
      }
      return walk(base, target, startingOffset, maxResults, signal)
    }
  }

  async function resolve(handle: string): Promise<Snapshot> {
    const { source, name } = parseHandle(handle)
    const snapshot = await sources.get(source)?.snapshot(name)
    if (!snapshot) {
      throw new DeltamapperError(
        'DM_SNAPSHOT_NOT_FOUND',
        sources.has(source) ? `${source} has no snapshot ${name}` : `this agent has no source ${source}`,
        `check the handle; this agent serves ${[...sources.keys()].join(', ') || 'no source'}`
      )
    }
    return snapshot
  }

  function walk(
    base: Snapshot | undefined,
    target: Snapshot,
    startingOffset: bigint,
    maxResults: number,
    signal: AbortSignal
  ): EncodedStream {
    if (startingOffset < 0n || startingOffset > target.sizeBytes) {
      throw new DeltamapperError(
        'DM_OFFSET_OUT_OF_RANGE',
        `starting offset ${startingOffset} is outside ${target.handle}, which has ${target.sizeBytes} bytes`,
        'resume at the end of the last extent received, or at 0'
      )
    }
    return walkers.walk({ base, target, startingOffset: Number(startingOffset), maxResults }, signal)
  }
}
