/** The tracked volumes, as the agent lists them, and which LVM volumes are their data devices. */
import type { TrackedVolumeFacts } from './examination.ts'
import type { EraVolume } from '../catalog/era-volumes.ts'
import type { LeaseRecord } from '../catalog/lease.ts'
import type { EraVolumes } from '../era/era-volumes.ts'
import { slotKey } from '../leases/era-slot-content.ts'
import type { LogicalVolume } from '../lvm/parse.ts'

export type TrackedPort = Pick<EraVolumes, 'listEra'>

/** Asks the kernel about all of them. @param volumes as in the catalog; `records`, of our metadata snapshots, too */
export async function lookAtTrackedVolumes(
  tracked: TrackedPort,
  volumes: readonly Pick<EraVolume, 'name' | 'id'>[],
  records: readonly Pick<LeaseRecord, 'device'>[]
): Promise<TrackedVolumeFacts[]> {
  const slots = new Map(volumes.map((each) => [each.name, slotKey(each)]))
  const listed = (await tracked.listEra({ volume: '' })).volumes
  return listed.map(({ name, deviceName, dataDevice, active, problem, underWay, usage }) => ({
    ...{ name, deviceName, dataDevice, active, problem, underWay },
    ...(usage && {
      metadataUsedBytes: usage.metadataUsedBytes,
      metadataTotalBytes: usage.metadataTotalBytes,
      ...(usage.heldMetadataSnapshot !== undefined && {
        heldMetadataSnapshot: usage.heldMetadataSnapshot,
        heldByUs: records.some(({ device }) => device === slots.get(name))
      })
    })
  }))
}

/**
 * Whether a logical volume is the data device of one of them (its device-mapper UUID: `LVM-`, the group's UUID, its
 * own).
 */
export function isTracked({ uuid }: LogicalVolume, volumes: readonly Pick<EraVolume, 'dataIdentity'>[]): boolean {
  const own = uuid.replaceAll('-', '')
  return volumes.some(({ dataIdentity }) => dataIdentity.startsWith('dm-uuid:LVM-') && dataIdentity.endsWith(own))
}
