/**
 * For tuples A before B, A.byte_offset + A.size_bytes <= B.byte_offset.
 * Source: CSI specification, Metadata Format
 */
import { eachStream, tupleBreach, type Rule } from '../rule.ts'

export const rule: Rule = {
  number: 10,
  level: 'must',
  title: 'tuples ascend and do not overlap, also from message to message',
  source: 'CSI specification, Metadata Format',
  ask: async (asker) => void (await asker.wholes()),
  judge: (run) =>
    eachStream(run, ({ answer: { disorder } }) =>
      disorder === null
        ? undefined
        : tupleBreach(disorder, `begins before ${disorder.previousEnd}, where one before it ended`)
    )
}
