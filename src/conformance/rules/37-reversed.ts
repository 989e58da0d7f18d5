/**
 * What changed from one to the other changed from the other to the one: an answer must not name less than the
 * usual delta does.
 * Source: CSI specification, GetMetadataDelta: created after the base
 */
import { lost } from '../compare.ts'
import { shown, totalBytes } from '../ranges.ts'
import { describe, fail, pass, refusals, skip, type Rule } from '../rule.ts'
import { isOk } from '../run.ts'

const errors = ['FAILED_PRECONDITION', 'NOT_FOUND', 'ABORTED', 'OUT_OF_RANGE', 'INTERNAL', 'UNAVAILABLE', 'UNKNOWN']

export const rule: Rule = {
  number: 37,
  level: 'must',
  title: 'a target older than its base is refused, or answered rightly',
  source: 'CSI specification, GetMetadataDelta: created after the base',
  ask: async (asker) => {
    await asker.wholes()
    const { snapshots } = asker.given
    if (snapshots.length > 1) await asker.stream('reversed', { base: snapshots.at(-1)!, target: snapshots[0] })
  },
  judge: (run) => {
    const [call] = run.streamsOf(37)
    if (call === undefined) return skip('two snapshots of one volume are needed')
    if (!isOk(call.end)) return refusals([call], ['INVALID_ARGUMENT'], errors)
    const whole = run.whole(call.question.target, call.question.base!)
    if (whole === undefined) return skip(`${describe(call.question)}: OK; there is no usual delta to compare it with`)
    const left = lost(whole, call, 0, call.answer.capacityBytes ?? Infinity)
    if (left.length === 0) return pass(`${describe(call.question)}: OK, and names all that the usual delta does`)
    return fail(
      `${describe(call.question)}: OK, and lacks ${totalBytes(left)} bytes that the usual delta names: ${shown(left)}`
    )
  }
}
