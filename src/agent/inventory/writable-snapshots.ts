/**
 * Snapshots that somebody could write to at this moment: said here, because a write is noticed only at the next backup.
 */
import { parseThinTable } from '../../devicemapper/thin/table.ts'
import type { SurveyedDevice } from '../node/survey.ts'
import type { Finding, PoolFacts } from './examination.ts'

/** One finding for each pool that has such snapshots. @param survey undefined where device-mapper did not answer */
export function writableSnapshots(
  survey: readonly SurveyedDevice[] | undefined,
  pools: readonly Pick<PoolFacts, 'name' | 'kind' | 'deviceName' | 'thins'>[]
): Finding[] {
  return pools.flatMap(({ name, kind, deviceName, thins }) => {
    const pool = survey?.find(({ info }) => info.name === deviceName)?.info
    if (survey === undefined || pool === undefined) return []
    const writable = new Set<number>()
    for (const { info, row } of survey) {
      if (row?.targetType !== 'thin' || info.readOnly) continue
      const table = parseThinTable(row.params)
      if (table?.poolDevice.major === pool.major && table.poolDevice.minor === pool.minor) writable.add(table.deviceId)
    }
    const found = thins.filter((thin) => thin.kind === 'snapshot' && writable.has(thin.thinId))
    if (found.length === 0) return []
    const [{ handle }] = found
    const named = found.length === 1 ? handle : `${handle} and ${found.length - 1} more`
    return [
      {
        severity: 'warning',
        kind: 'snapshot-writable',
        about: name,
        what: `${named} can be written to: a write makes a snapshot useless as a base, and what is copied of it a mixture`,
        remedy: 'make snapshots that are backed up read-only, or deactivate them; leave alone what is meant to be used',
        command: kind === 'lvm' ? `lvchange -pr ${handle}` : ''
      }
    ]
  })
}
