/**
 * A last block that reaches beyond an unaligned end is a warning only: the specification does not say.
 * Source: CSI specification, Metadata Format
 */
import { quoted } from '../answer.ts'
import { eachStream, tupleBreach, warn, type Rule } from '../rule.ts'

const FIXED_LENGTH = 1

export const rule: Rule = {
  number: 8,
  level: 'must',
  title: 'in a FIXED_LENGTH stream every tuple has the same size',
  source: 'CSI specification, Metadata Format',
  ask: async (asker) => void (await asker.wholes()),
  judge: (run) =>
    eachStream(run, ({ answer: { type, first, otherSize, reaches, capacityBytes } }) => {
      if (type !== FIXED_LENGTH || first === null) return undefined
      if (otherSize !== null)
        return tupleBreach(otherSize, `in a FIXED_LENGTH stream that began with ${first.sizeBytes} bytes`)
      const beyond =
        reaches !== null && capacityBytes !== null && reaches.byteOffset + reaches.sizeBytes > capacityBytes
      return beyond ? warn(`${quoted(reaches)} reaches beyond the capacity ${capacityBytes}`) : undefined
    })
}
