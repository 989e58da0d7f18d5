/**
 * Both are legal. Without a message, a client does not learn the capacity.
 * Source: the specification is silent
 */
import { describe, pass, skip, type Rule } from '../rule.ts'
import { isOk } from '../run.ts'

export const rule: Rule = {
  number: 17,
  level: 'note',
  title: 'an answer without tuples: a message with type and capacity, or none',
  source: 'the specification is silent',
  ask: async (asker) => {
    await asker.wholes()
    for (const question of asker.questions) {
      const capacityBytes = asker.run.whole(question.base, question.target)?.answer.capacityBytes
      if (capacityBytes != null) await asker.stream('at the end', { ...question, startingOffset: capacityBytes })
    }
  },
  judge: (run) => {
    const nothing = run.streams.filter(({ end, answer }) => isOk(end) && answer.tuples === 0)
    if (nothing.length === 0) return skip('no answer was empty')
    const silent = nothing.find(({ answer }) => answer.messages === 0)
    if (silent === undefined) return pass(`${nothing.length} empty answers, each with a message`)
    return pass(`${describe(silent.question)}: OK without a message, so that the capacity is not known`)
  }
}
