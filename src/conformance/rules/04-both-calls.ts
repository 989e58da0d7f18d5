/**
 * A plain question about snapshots that there are has to be answered to its end. A delta may be refused with
 * FAILED_PRECONDITION: tracking is not enabled.
 * Source: CSI specification, Snapshot Metadata Service RPCs
 */
import { describe, ended, fail, pass, skip, statusName, type Rule } from '../rule.ts'

export const rule: Rule = {
  number: 4,
  level: 'must',
  title: 'GetMetadataAllocated and GetMetadataDelta are implemented, and answer',
  source: 'CSI specification, Snapshot Metadata Service RPCs',
  ask: async (asker) => void (await asker.wholes()),
  judge: (run) => {
    const calls = run.streamsOf(0, 'whole')
    if (calls.length === 0) return skip('no snapshot was given')
    const answers = calls.filter(({ question: { base, target } }) => run.whole(base, target) === undefined)
    const refused = answers.find(
      ({ question, end }) => question.base === null || statusName(end) !== 'FAILED_PRECONDITION'
    )
    if (refused !== undefined) {
      const { question, end, answer } = refused
      return fail(
        `${describe(question)}: ${ended(end)}, after ${answer.messages} messages, ${answer.tuples} tuples, ${answer.bytes} bytes`
      )
    }
    if (!calls.some(({ question }) => question.base !== null))
      return skip('GetMetadataDelta needs two snapshots of one volume')
    const untracked = answers.length > 0 ? `; ${describe(answers[0].question)}: ${ended(answers[0].end)}` : ''
    return pass(`${calls.length - answers.length} whole answers${untracked}`)
  }
}
