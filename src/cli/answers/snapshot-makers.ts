/** Who takes the snapshots of each volume that `deltamapper backup` names: LVM, or the agent. */
import { ownedSnapshots, trackedSnapshots } from '../../backup/agent-snapshots.ts'
import type { SnapshotMaker } from '../../backup/live-snapshots.ts'
import { findLvmVolume, lvmSnapshots } from '../../backup/lvm-snapshots.ts'
import { connectAdmin } from '../../grpc/admin-client.ts'
import { endpointAddress } from '../command-line/endpoint.ts'
import { UsageError } from '../command-line/failure.ts'

export interface SnapshotMakers {
  readonly byVolume: ReadonlyMap<string, SnapshotMaker>
  readonly close: () => void
}

/**
 * @param options.cowSize bytes for the snapshot of a volume that is not thin
 * @throws UsageError; DM_LVM_FAILED; DM_SNAPSHOT_NOT_FOUND where nobody has such a volume
 */
export async function snapshotMakers(
  volumes: readonly string[],
  { endpoint, cowSize }: { readonly endpoint?: string; readonly cowSize?: number }
): Promise<SnapshotMakers> {
  const agent = connectAdmin(endpointAddress(endpoint))
  const close = () => agent.close()
  const byVolume = new Map<string, SnapshotMaker>()
  try {
    for (const volume of volumes) {
      if (!volume.includes('/')) byVolume.set(volume, trackedSnapshots(volume, agent))
      else byVolume.set(volume, (await lvmMaker(volume, cowSize)) ?? ownedSnapshots(volume, agent))
    }
    return { byVolume, close }
  } catch (error) {
    close()
    throw error
  }
}

async function lvmMaker(volume: string, cowSize: number | undefined): Promise<SnapshotMaker | undefined> {
  const found = await findLvmVolume(volume)
  if (!found) return undefined
  if (found.thinId !== undefined) return lvmSnapshots(volume, undefined)
  if (cowSize !== undefined) return lvmSnapshots(volume, cowSize)
  throw new UsageError(
    `${volume} is not thin, and a snapshot of it needs space of its own`,
    'say how much with --cow-size: what is written to the volume until the next backup has to fit',
    'DM_ARGUMENT_MISSING'
  )
}
