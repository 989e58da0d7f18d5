/**
 * The snapshot, the base and the target, each in its turn.
 * Source: CSI specification, error tables: a required field is missing
 */
import { refusals, type Rule } from '../rule.ts'

export const rule: Rule = {
  number: 31,
  level: 'must',
  title: 'an empty snapshot id is INVALID_ARGUMENT',
  source: 'CSI specification, error tables: a required field is missing',
  ask: async (asker) => {
    const [target] = asker.given.snapshots.slice(-1)
    await asker.stream('empty', { target: '' })
    if (target === undefined) return
    await asker.stream('empty', { base: '', target })
    await asker.stream('empty', { base: target, target: '' })
  },
  judge: (run) => refusals(run.streamsOf(31), ['INVALID_ARGUMENT'])
}
