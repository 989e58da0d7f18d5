/**
 * And the driver goes on: a name that is too long must not take it down.
 * Source: CSI specification, Size Limits
 */
import { ended, fail, refusals, type Rule } from '../rule.ts'

export const rule: Rule = {
  number: 35,
  level: 'must',
  title: 'an id of more than 128 bytes is refused, with INVALID_ARGUMENT or NOT_FOUND',
  source: 'CSI specification, Size Limits',
  ask: async (asker) => {
    const [target] = asker.given.snapshots.slice(-1)
    for (const bytes of [129, 4000]) {
      await asker.stream('long', { target: 'x'.repeat(bytes) })
      if (target !== undefined) await asker.stream('long', { base: 'x'.repeat(bytes), target })
    }
    await asker.unary('afterwards', 'Identity/GetPluginInfo')
  },
  judge: (run) => {
    const afterwards = run.unary(35, 'GetPluginInfo')
    if (afterwards !== undefined && afterwards.end.how !== 'status')
      return fail(`GetPluginInfo afterwards: ${ended(afterwards.end)}`)
    return refusals(run.streamsOf(35), ['INVALID_ARGUMENT', 'NOT_FOUND'])
  }
}
