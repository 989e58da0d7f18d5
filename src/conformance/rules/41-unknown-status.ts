/**
 * It tells nobody what to do.
 * Source: external-snapshot-metadata makes INTERNAL of it
 */
import { askForStatuses, ended, pass, skip, statuses, statusName, warn, type Rule } from '../rule.ts'

export const rule: Rule = {
  number: 41,
  level: 'should',
  title: 'no call ends with the status UNKNOWN',
  source: 'external-snapshot-metadata makes INTERNAL of it',
  ask: askForStatuses,
  judge: (run) => {
    const ends = statuses(run)
    const unknown = ends.find(({ end }) => statusName(end) === 'UNKNOWN')
    if (unknown === undefined)
      return ends.length === 0 ? skip('no call ended with a status') : pass(`${ends.length} statuses`)
    return warn(`${unknown.what}: ${ended(unknown.end)}`)
  }
}
