/** Who takes the snapshots of each volume that `deltamapper backup` names: LVM, or the agent. */
import type { LogicalVolume } from '../../agent/lvm/parse.ts'
import type { SnapshotMaker } from '../../backup/live-snapshots.ts'
import { lvmSnapshots, volumeIn } from '../../backup/lvm-snapshots.ts'
import type { AdminClient } from '../../grpc/admin-client.ts'
import { parseHandle } from '../../handle.ts'
import { endpointAddress } from '../command-line/endpoint.ts'
import { UsageError } from '../command-line/failure.ts'
import { volumesOf } from '../lvm/group-report.ts'

export interface SnapshotMakers {
  /**
   * By volume. LVM is asked about each group once: what is marked with a chain is of that moment.
   *
   * @throws UsageError; DM_LVM_FAILED
   */
  find(): Promise<ReadonlyMap<string, SnapshotMaker>>
  close(): void
}

/** @param options.cowSize bytes for the snapshot of a volume that is not thin */
export function snapshotMakers(
  volumes: readonly string[],
  { endpoint, cowSize }: { readonly endpoint?: string; readonly cowSize?: number }
): SnapshotMakers {
  let admin: AdminClient | undefined
  /** Only those that need it wait for an agent's client to be loaded. */
  const ofAgent = async (volume: string): Promise<SnapshotMaker> => {
    const [{ connectAdmin }, { ownedSnapshots, trackedSnapshots }] = await Promise.all([
      import('../../grpc/admin-client.ts'),
      import('../../backup/agent-snapshots.ts')
    ])
    admin ??= connectAdmin(endpointAddress(endpoint))
    return volume.includes('/') ? ownedSnapshots(volume, admin) : trackedSnapshots(volume, admin)
  }
  return {
    async find() {
      const reports = new Map<string, readonly LogicalVolume[]>()
      const byVolume = new Map<string, SnapshotMaker>()
      for (const volume of volumes) {
        const { source: group, name } = parseVolume(volume)
        if (group !== undefined && !reports.has(group)) reports.set(group, (await volumesOf(group)) ?? [])
        const report = group === undefined ? [] : (reports.get(group) ?? [])
        const found = volumeIn(report, name)
        byVolume.set(volume, found ? ofLvm(volume, found, cowSize, report) : await ofAgent(volume))
      }
      return byVolume
    },
    close: () => admin?.close()
  }
}

/** A tracked volume's name is in no group. */
function parseVolume(volume: string): { source: string | undefined; name: string } {
  return volume.includes('/') ? parseHandle(volume) : { source: undefined, name: volume }
}

function ofLvm(
  volume: string,
  { thinId }: LogicalVolume,
  cowSize: number | undefined,
  report: readonly LogicalVolume[]
): SnapshotMaker {
  if (thinId === undefined && cowSize === undefined) {
    throw new UsageError(
      `${volume} is not thin, and a snapshot of it needs space of its own`,
      'say how much with --cow-size: what is written to the volume until the next backup has to fit',
      'DM_ARGUMENT_MISSING'
    )
  }
  const cowSizeBytes = thinId === undefined ? cowSize : undefined
  return lvmSnapshots(volume, { cowSizeBytes, report, askAgain: volumesOf })
}
