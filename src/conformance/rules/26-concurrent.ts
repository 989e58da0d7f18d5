/**
 * Of the same snapshots and of different ones.
 * Source: KEP-3314; practice of clients
 */
import { sameAsWhole } from '../compare.ts'
import type { Rule } from '../rule.ts'

const STREAMS = 8

export const rule: Rule = {
  number: 26,
  level: 'must',
  title: 'streams side by side have the same answers as one alone',
  source: 'KEP-3314; practice of clients',
  ask: async (asker) => {
    await asker.wholes()
    const all = [
      ...asker.questions,
      ...asker.given.otherSnapshots.slice(0, 1).map((target) => ({ base: null, target }))
    ]
    const some = Array.from({ length: STREAMS }, (_, i) => all[i % all.length])
    if (all.length > 0)
      await Promise.all(some.map((question) => asker.stream('beside', question, { wire: asker.wire() })))
  },
  judge: (run) => sameAsWhole(run, run.streamsOf(26))
}
