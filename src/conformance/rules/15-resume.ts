/**
 * As sets of bytes; at random tuples, and at the boundaries of messages after a stream that was cancelled.
 * Source: CSI specification, starting_offset
 */
import { sameAsWhole } from '../compare.ts'
import { rangesOf } from '../ranges.ts'
import type { Rule } from '../rule.ts'

/** How often it is resumed at random tuples, and how often it is cancelled and resumed. */
const RESUMPTIONS = 6
const CANCELLED = 3

export const rule: Rule = {
  number: 15,
  level: 'must',
  title: 'an answer resumed at the end of a tuple is the rest of the whole answer',
  source: 'CSI specification, starting_offset',
  ask: async (asker) => {
    await asker.wholes()
    for (const question of asker.questions) {
      const whole = asker.run.whole(question.base, question.target)
      if (whole === undefined) continue
      const ends = rangesOf(whole.answer.named).map(([, end]) => end)
      for (const end of asker.random.shuffle(ends).slice(0, RESUMPTIONS)) {
        await asker.stream('resumed', { ...question, startingOffset: end })
      }
      const maxResults = Math.max(Math.ceil(whole.answer.tuples / (CANCELLED + 1)), 1)
      for (let messages = 1; messages <= CANCELLED; messages++) {
        const cut = await asker.stream(
          'cancelled',
          { ...question, maxResults },
          { onMessage: (fold) => fold.messages >= messages }
        )
        const { last } = cut.answer
        if (last === null) break
        await asker.stream('resumed', { ...question, startingOffset: last.byteOffset + last.sizeBytes })
      }
    }
  },
  judge: (run) => sameAsWhole(run, run.streamsOf(15, 'resumed'))
}
