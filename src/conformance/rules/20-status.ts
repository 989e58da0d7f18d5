/**
 * status.details must be empty, and status.message human readable.
 * Source: CSI specification, Error Scheme
 */
import { askForStatuses, ended, fail, pass, skip, statuses, type Rule } from '../rule.ts'

/** Whether a google.rpc.Status has field 3, details. What cannot be read counts as details. */
function hasDetails(base64: string): boolean {
  const bytes = Buffer.from(base64, 'base64')
  for (let at = 0; at < bytes.length;) {
    const tag = bytes[at++]
    if (tag >> 3 === 3 || (tag & 7) === 1 || (tag & 7) > 2) return true
    if ((tag & 7) === 2) at += bytes[at] + 1
    else while (at < bytes.length && bytes[at++] >= 0x80);
  }
  return false
}

export const rule: Rule = {
  number: 20,
  level: 'must',
  title: 'a status has no details, and a message where it is an error',
  source: 'CSI specification, Error Scheme',
  ask: askForStatuses,
  judge: (run) => {
    const ends = statuses(run)
    if (ends.length === 0) return skip('no call ended with a status')
    for (const { what, end } of ends) {
      if (hasDetails(end.detailsBase64)) return fail(`${what}: ${ended(end)} carries details`)
      if (end.code !== 0 && end.message === '') return fail(`${what}: ${ended(end)} has no message`)
    }
    const errors = ends.filter(({ end }) => end.code !== 0).length
    return pass(`${ends.length} statuses, ${errors} of them errors`)
  }
}
