/** Who takes the snapshots of each volume that `deltamapper backup` names: LVM, or the agent. */
import { ownedSnapshots, trackedSnapshots } from '../../backup/agent-snapshots.ts'
import { LiveSnapshots, type SnapshotMaker } from '../../backup/live-snapshots.ts'
import { findLvmVolume, lvmSnapshots } from '../../backup/lvm-snapshots.ts'
import { connectAdmin } from '../../grpc/admin-client.ts'
import { endpointAddress } from '../command-line/endpoint.ts'
import { UsageError } from '../command-line/failure.ts'
import type { Remark } from './question.ts'

export interface LiveOptions {
  endpoint?: string
  keepSnapshot?: boolean
  cowSize?: number
  freeze: boolean
  before?: string
  after?: string
  hookDeadline: number
}

/** @throws UsageError; DM_LVM_FAILED; DM_SNAPSHOT_NOT_FOUND where nobody has such a volume */
export async function liveSnapshots(
  volumes: readonly string[],
  options: LiveOptions,
  remark: Remark
): Promise<LiveSnapshots> {
  const { endpoint, keepSnapshot = false, cowSize, freeze, before, after, hookDeadline } = options
  const agent = connectAdmin(endpointAddress(endpoint))
  const makers = new Map<string, SnapshotMaker>()
  for (const volume of volumes) {
    if (!volume.includes('/')) makers.set(volume, trackedSnapshots(volume, agent))
    else makers.set(volume, (await lvmMaker(volume, cowSize)) ?? ownedSnapshots(volume, agent))
  }
  const hookDeadlineMs = hookDeadline * 1000
  return new LiveSnapshots({ makers, keeps: keepSnapshot, freezes: freeze, before, after, hookDeadlineMs, remark })
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
