/** An inventory in the agent's log: one line of figures, and one for each finding that is more than a note. */
import type { Logger } from 'pino'
import type { AsBase, Examination, Severity } from './examination.ts'

export function logInventory(examination: Examination, logger: Logger): void {
  const { node, deviceMapper, lvm, pools, recordedPools, findings, tookMs } = examination
  const thins = pools.flatMap((each) => each.thins)
  const asBase = (verdict: AsBase) => thins.filter((each) => each.asBase === verdict).length
  const severe = (severity: Severity) => findings.filter((each) => each.severity === severity).length
  logger.info(
    {
      ...{ kernel: node.kernel, libdevmapper: deviceMapper.libraryVersion, volumeGroups: lvm.groups.length },
      pools: pools.map(({ name, kind, state }) => `${name} (${kind}, ${state})`),
      recordedPools: recordedPools.map(({ name }) => name),
      ...{ volumesAndSnapshots: thins.length, bases: asBase('unchanged'), changedBases: asBase('changed') },
      ...{ problems: severe('problem'), warnings: severe('warning'), notes: severe('note'), tookMs }
    },
    'inventory'
  )
  for (const { severity, kind, about, what, remedy, command } of findings) {
    if (severity === 'note') continue
    logger.warn({ severity, kind, about, remedy, ...(command !== '' && { command }) }, what)
  }
}
