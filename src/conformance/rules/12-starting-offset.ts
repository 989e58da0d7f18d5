/**
 * starting_offset < byte_offset + size_bytes. It may begin before: a driver may round the offset down (KEP-3314).
 * Source: CSI specification, starting_offset
 */
import { rangesOf } from '../ranges.ts'
import { eachStream, tupleBreach, type Rule } from '../rule.ts'

export const rule: Rule = {
  number: 12,
  level: 'must',
  title: 'the first tuple ends behind the starting offset',
  source: 'CSI specification, starting_offset',
  ask: async (asker) => {
    await asker.wholes()
    for (const question of asker.questions) {
      const whole = asker.run.whole(question.base, question.target)
      const ends = whole ? rangesOf(whole.answer.named).map(([, end]) => end) : []
      if (ends.length > 1) await asker.stream('resumed', { ...question, startingOffset: ends[ends.length >> 1] })
    }
  },
  judge: (run) =>
    eachStream(run, ({ answer: { first }, question: { startingOffset } }) =>
      first !== null && first.sizeBytes > 0 && first.byteOffset + first.sizeBytes <= startingOffset
        ? tupleBreach(first, `ends before the starting_offset ${startingOffset}`)
        : undefined
    )
}
