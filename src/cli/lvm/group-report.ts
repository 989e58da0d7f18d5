/** What LVM says of a group as it is now. Whoever may go by an older answer keeps it: nothing is remembered here. */
import type { LogicalVolume } from '../../agent/lvm/parse.ts'
import { LvmReporter } from '../../agent/lvm/report.ts'

const reporter = new LvmReporter()

/** All of a group's volumes, hidden ones included; undefined where LVM sees no such group. @throws DM_LVM_FAILED */
export async function volumesOf(group: string): Promise<LogicalVolume[] | undefined> {
  return reporter.logicalVolumes(group)
}
