/**
 * max_results is about a message, not about the stream: what does not fit comes in the next one.
 * Source: CSI specification, max_results
 */
import { sameAsWhole } from '../compare.ts'
import { describe, fail, skip, type Rule } from '../rule.ts'

export const rule: Rule = {
  number: 13,
  level: 'must',
  title: 'no message has more tuples than max_results, and the stream is complete all the same',
  source: 'CSI specification, max_results',
  ask: async (asker) => {
    await asker.wholes()
    for (const question of asker.questions) {
      for (const maxResults of [1, 2, 1000, 2 ** 31 - 1]) await asker.stream('limited', { ...question, maxResults })
    }
  },
  judge: (run) => {
    const calls = run.streamsOf(13)
    if (calls.length === 0) return skip('no snapshot was given')
    const over = run.streams.find(
      ({ question: { maxResults }, answer }) => maxResults > 0 && (answer.mostTuples?.tuples ?? 0) > maxResults
    )
    if (over !== undefined) {
      const { message, tuples } = over.answer.mostTuples!
      return fail(`${describe(over.question)}: message ${message} has ${tuples} tuples`)
    }
    return sameAsWhole(run, calls)
  }
}
