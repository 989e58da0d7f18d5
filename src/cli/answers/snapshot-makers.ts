/** Who takes the snapshots of each volume that `deltamapper backup` names: LVM, or the agent. */
import type { LogicalVolume } from '../../agent/lvm/parse.ts'
import type { SnapshotMaker } from '../../backup/live-snapshots.ts'
import { lvmSnapshots, volumeIn } from '../../backup/lvm-snapshots.ts'
import { DeltamapperError } from '../../errors.ts'
import type { AdminClient } from '../../grpc/admin-client.ts'
import { parseHandle } from '../../handle.ts'
import { endpointAddress } from '../command-line/endpoint.ts'
import { UsageError } from '../command-line/failure.ts'
import { volumesOf } from '../lvm/group-report.ts'

export interface SnapshotMakers {
  /**
   * By volume. LVM is asked about each group once: what is marked with a chain is of that moment.
   *
   * @throws UsageError; DM_LVM_FAILED; DM_NO_SUCH_DEVICE
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
  /** Only those that need it wait for its client to be loaded. */
  const agent = async (): Promise<AdminClient> => {
    const { connectAdmin } = await import('../../grpc/admin-client.ts')
    return (admin ??= connectAdmin(endpointAddress(endpoint)))
  }
  const ofAgent = async (volume: string): Promise<SnapshotMaker> => {
    const { ownedSnapshots, trackedSnapshots } = await import('../../backup/agent-snapshots.ts')
    return (volume.includes('/') ? ownedSnapshots : trackedSnapshots)(volume, await agent())
  }
  /** Whether the agent has a pool that is called like a group of LVM's. */
  const hasPool = async (pool = ''): Promise<boolean> =>
    (await agent()).listSnapshots({ pool }).then(
      () => true,
      () => false
    )
  return {
    async find() {
      const reports = new Map<string, readonly LogicalVolume[] | undefined>()
      const byVolume = new Map<string, SnapshotMaker>()
      for (const volume of volumes) {
        const { source: group, name } = parseVolume(volume)
        if (group !== undefined && !reports.has(group)) reports.set(group, await volumesOf(group))
        const report = group === undefined ? undefined : reports.get(group)
        const found = report && volumeIn(report, name)
        if (report && found) byVolume.set(volume, ofLvm(volume, found, cowSize, report))
        else if (report && !(await hasPool(group))) throw noVolume(volume)
        else byVolume.set(volume, await ofAgent(volume))
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

function noVolume(volume: string): DeltamapperError {
  const { source: group, name } = parseHandle(volume)
  return new DeltamapperError(
    'DM_NO_SUCH_DEVICE',
    `volume group ${group} has no volume ${name}`,
    `\`lvs ${group}\` lists those that it has`
  )
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
