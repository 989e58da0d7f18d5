/**
 * INVALID_ARGUMENT is what callers understand; another error is a warning.
 * Source: CSI specification, GetMetadataDelta: in the same volume
 */
import { refusals, skip, type Rule } from '../rule.ts'

const errors = ['FAILED_PRECONDITION', 'NOT_FOUND', 'ABORTED', 'OUT_OF_RANGE', 'INTERNAL', 'UNAVAILABLE', 'UNKNOWN']

export const rule: Rule = {
  number: 36,
  level: 'must',
  title: 'snapshots of two volumes are not compared',
  source: 'CSI specification, GetMetadataDelta: in the same volume',
  ask: async (asker) => {
    const [target] = asker.given.snapshots.slice(-1)
    const [other] = asker.given.otherSnapshots
    if (target === undefined || other === undefined) return
    await asker.stream('other volume', { base: other, target })
    await asker.stream('other volume', { base: target, target: other })
  },
  judge: (run) => {
    if (run.given.otherSnapshots.length === 0)
      return skip('no snapshot of another volume was given: see --other-snapshot')
    return refusals(run.streamsOf(36), ['INVALID_ARGUMENT'], errors)
  }
}
