/**
 * At the capacity itself, the text is ambiguous: OK and empty, or OUT_OF_RANGE. A client that resumes after the
 * last tuple asks just that.
 * Source: CSI specification, error tables
 */
import { describe, ended, refusals, statusName, warn, type Rule } from '../rule.ts'
import { isOk } from '../run.ts'

export const rule: Rule = {
  number: 33,
  level: 'must',
  title: 'a starting offset below 0 or beyond the capacity is OUT_OF_RANGE',
  source: 'CSI specification, error tables',
  ask: async (asker) => {
    await asker.wholes()
    for (const question of asker.questions) {
      await asker.stream('outside', { ...question, startingOffset: -1 })
      const capacityBytes = asker.run.whole(question.base, question.target)?.answer.capacityBytes
      if (capacityBytes == null) continue
      await asker.stream('outside', { ...question, startingOffset: capacityBytes + 1 })
      await asker.stream('at the end', { ...question, startingOffset: capacityBytes })
    }
  },
  judge: (run) => {
    const verdict = refusals(run.streamsOf(33, 'outside'), ['OUT_OF_RANGE'])
    const atEnd = run.streamsOf(33, 'at the end')
    const wrong = atEnd.find(
      ({ end, answer }) => !(statusName(end) === 'OUT_OF_RANGE' || (isOk(end) && answer.tuples === 0))
    )
    if (wrong !== undefined && verdict.outcome === 'pass')
      return warn(`${describe(wrong.question)}: ${ended(wrong.end)}, ${wrong.answer.tuples} tuples`)
    return atEnd.length === 0
      ? verdict
      : { ...verdict, seen: `${verdict.seen}; at the capacity: ${ended(atEnd[0].end)}` }
  }
}
