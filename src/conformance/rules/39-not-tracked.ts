/**
 * Then a client takes a full backup.
 * Source: CSI specification 1.12, error table of GetMetadataDelta
 */
import { describe, ended, pass, refusals, skip, statusName, type Rule } from '../rule.ts'

export const rule: Rule = {
  number: 39,
  level: 'must',
  title: 'a delta of a volume that is not tracked is FAILED_PRECONDITION',
  source: 'CSI specification 1.12, error table of GetMetadataDelta',
  ask: async (asker) => {
    const [base, target = base] = asker.given.untracked
    if (base !== undefined && target !== undefined) await asker.stream('untracked', { base, target })
  },
  judge: (run) => {
    if (run.streamsOf(39).length > 0) return refusals(run.streamsOf(39), ['FAILED_PRECONDITION'])
    const refused = run
      .streamsOf(0)
      .find(({ question, end }) => question.base !== null && statusName(end) === 'FAILED_PRECONDITION')
    if (refused !== undefined) return pass(`${describe(refused.question)}: ${ended(refused.end)}`)
    return skip('no snapshot of a volume without tracking was given: see --untracked-snapshot')
  }
}
