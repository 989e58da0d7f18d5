/**
 * LVM's part of the inventory: its groups, the thin pools in them, and the volumes that cannot be tracked. From reports
 * alone (lvm/report.ts).
 */
import type { LvmFacts, VolumeGroupFacts } from './examination.ts'
import type { LogicalVolume, VolumeGroup } from '../lvm/parse.ts'
import type { LvmReporter } from '../lvm/report.ts'
import { byName, fullName, volumeKind, type VolumesByName } from '../lvm/volume.ts'
import { describeCommand } from '../lvm/command.ts'
import { probe, toProblem } from './probe.ts'

export type LvmPort = Pick<LvmReporter, 'volumeGroups' | 'logicalVolumes'>

export interface LvmNode {
  readonly facts: LvmFacts
  /** The volumes of each group that answered. */
  readonly volumes: readonly VolumesByName[]
}

/** @param inUse whether device-mapper has LVM devices: then LVM must answer */
export async function lookAtLvm(
  lvm: LvmPort,
  command: readonly string[],
  inUse: boolean,
  deadlineMs: number
): Promise<LvmNode> {
  const described = describeCommand(command)
  const { value: groups, problem } = await probe(`\`${described} vgs\``, deadlineMs, () => lvm.volumeGroups())
  if (problem) return { facts: { command: described, inUse, groups: [], problem }, volumes: [] }
  const looks = await Promise.all(
    groups.map(async (group) => {
      const what = `\`${described} lvs ${group.name}\``
      const { value, problem } = await probe(what, deadlineMs, () => lvm.logicalVolumes(group.name))
      return lookAtGroup(group, value && byName(value), problem)
    })
  )
  return {
    facts: { command: described, inUse, groups: looks.map(({ facts }) => facts) },
    volumes: looks.flatMap(({ volumes }) => volumes ?? [])
  }
}

function lookAtGroup(
  { name, sizeBytes, freeBytes, missingPhysicalVolumes }: VolumeGroup,
  volumes: VolumesByName | undefined,
  problem: VolumeGroupFacts['problem']
): { facts: VolumeGroupFacts; volumes: VolumesByName | undefined } {
  const facts = { name, sizeBytes, freeBytes, missingDisks: missingPhysicalVolumes }
  try {
    const untracked = [...(volumes?.values() ?? [])].filter((each) => isUntracked(each, volumes ?? new Map()))
    return { facts: { ...facts, untracked: untracked.map(fullName), ...(problem && { problem }) }, volumes }
  } catch (thrown) {
    return { facts: { ...facts, untracked: [], problem: toProblem(thrown) }, volumes: undefined }
  }
}

/** A volume of its own, in no thin pool, and without a classic snapshot. */
function isUntracked(lv: LogicalVolume, volumes: VolumesByName): boolean {
  return volumeKind(lv, volumes) === 'thick volume' && !lv.role.includes('thickorigin')
}

/**
 * VG and LV out of a device-mapper name of LVM's: `my--vg-data` and `my--vg-pool-tpool` (dm_build_dm_name in
 * libdevmapper: hyphens inside of a name are doubled).
 */
export function splitLvmName(deviceName: string): { group: string; volume: string } {
  const [group = '', volume = ''] = deviceName
    .replaceAll('--', '\0')
    .split('-')
    .map((each) => each.replaceAll('\0', '-'))
  return { group, volume }
}
