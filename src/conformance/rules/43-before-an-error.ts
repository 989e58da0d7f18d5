/**
 * Judged of every stream that broke after its first tuple, whoever broke it: up to the end of the last tuple,
 * nothing may be missing.
 * Source: CSI specification: the caller may continue from there
 */
import { lost } from '../compare.ts'
import { shown } from '../ranges.ts'
import { describe, ended, fail, pass, skip, type Rule } from '../rule.ts'
import { isOk } from '../run.ts'

export const rule: Rule = {
  number: 43,
  level: 'must',
  title: 'what was received before a stream broke is right',
  source: 'CSI specification: the caller may continue from there',
  ask: async (asker) => {
    await asker.wholes()
    for (const question of asker.questions) {
      await asker.stream('broken off', { ...question, maxResults: 2 }, { onMessage: ({ messages }) => messages === 3 })
    }
  },
  judge: (run) => {
    const broken = run.streams.filter(({ end, answer }) => !isOk(end) && answer.tuples > 0)
    let judged = 0
    for (const call of broken) {
      const whole = run.whole(call.question.base, call.question.target)
      const { last } = call.answer
      if (whole === undefined || last === null) continue
      const left = lost(whole, call, call.question.startingOffset, last.byteOffset + last.sizeBytes)
      if (left.length > 0) {
        return fail(
          `${describe(call.question)}: ${ended(call.end)}; before ${last.byteOffset + last.sizeBytes} it lacks ${shown(left)}`
        )
      }
      judged++
    }
    return judged === 0
      ? skip('no stream broke after a tuple')
      : pass(`${judged} streams that broke were right up to there`)
  }
}
