/**
 * UNAVAILABLE is what callers understand: ask again later.
 * Source: KEP-3314
 */
import { refusals, skip, type Rule } from '../rule.ts'

export const rule: Rule = {
  number: 40,
  level: 'must',
  title: 'a snapshot that is not ready is refused, never answered as empty',
  source: 'KEP-3314',
  ask: async (asker) => {
    const { unready } = asker.given
    if (unready !== null) await asker.stream('unready', { target: unready })
  },
  judge: (run) => {
    if (run.streamsOf(40).length === 0) return skip('no snapshot that is not ready was given: see --unready-snapshot')
    return refusals(
      run.streamsOf(40),
      ['UNAVAILABLE', 'FAILED_PRECONDITION', 'ABORTED', 'NOT_FOUND'],
      ['INTERNAL', 'UNKNOWN']
    )
  }
}
