/**
 * A driver that serves it all the same, or refuses it otherwise, is warned of.
 * Source: the specification is silent; ceph-csi
 */
import { refusals, type Rule } from '../rule.ts'

export const rule: Rule = {
  number: 34,
  level: 'should',
  title: 'max_results below 0 is INVALID_ARGUMENT',
  source: 'the specification is silent; ceph-csi',
  ask: async (asker) => {
    for (const question of asker.questions) await asker.stream('negative', { ...question, maxResults: -1 })
  },
  judge: (run) => {
    const verdict = refusals(run.streamsOf(34), ['INVALID_ARGUMENT'])
    return verdict.outcome === 'fail' ? { ...verdict, outcome: 'warn' } : verdict
  }
}
