/**
 * Snapshots do not change, so that nothing about their answers should.
 * Source: practice of clients
 */
import type { Answer } from '../answer.ts'
import { describe, pass, skip, warn, type Rule } from '../rule.ts'
import { isOk } from '../run.ts'

export const rule: Rule = {
  number: 14,
  level: 'should',
  title: 'the same question has the same answer, byte for byte',
  source: 'practice of clients',
  ask: async (asker) => {
    await asker.wholes()
    for (const question of asker.questions) await asker.stream('again', question)
  },
  judge: (run) => {
    let compared = 0
    for (const call of run.streamsOf(14)) {
      const whole = run.whole(call.question.base, call.question.target)
      if (whole === undefined || !isOk(call.end)) continue
      const [before, now] = [whole.answer, call.answer]
      if (before.sha256 !== now.sha256) {
        const seen = (answer: Answer) => `${answer.messages} messages, ${answer.tuples} tuples`
        return warn(`${describe(call.question)}: ${seen(before)}, and then ${seen(now)}`)
      }
      compared++
    }
    return compared === 0 ? skip('no question was answered twice') : pass(`${compared} answers were the same`)
  }
}
