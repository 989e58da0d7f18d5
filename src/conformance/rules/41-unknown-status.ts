/**
 * It tells nobody what to do.
 * Source: external-snapshot-metadata makes INTERNAL of it
 */
import { describe, ended, pass, skip, statusName, warn, type Rule } from '../rule.ts'

export const rule: Rule = {
  number: 41,
  level: 'should',
  title: 'no call ends with the status UNKNOWN',
  source: 'external-snapshot-metadata makes INTERNAL of it',
  ask: async (asker) => {
    await asker.wholes()
    await asker.stream('refused', { target: '' })
    for (const question of asker.questions) await asker.stream('refused', { ...question, maxResults: -1 })
  },
  judge: (run) => {
    const ends = run.calls.flatMap((call) =>
      'end' in call && call.end.how === 'status' ? [{ call, end: call.end }] : []
    )
    const unknown = ends.find(({ end }) => statusName(end) === 'UNKNOWN')
    if (unknown === undefined)
      return ends.length === 0 ? skip('no call ended with a status') : pass(`${ends.length} statuses`)
    const { call, end } = unknown
    return warn(`${call.kind === 'stream' ? describe(call.question) : call.method}: ${ended(end)}`)
  }
}
