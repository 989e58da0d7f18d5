/**
 * At offsets within a tuple, within a hole, at the last tuple's end, and at the last byte.
 * Source: CSI specification, starting_offset
 */
import { againstWhole, lost } from '../compare.ts'
import { rangesOf, shown, totalBytes } from '../ranges.ts'
import type { Rule } from '../rule.ts'

export const rule: Rule = {
  number: 16,
  level: 'must',
  title: 'no starting offset loses a byte behind it',
  source: 'CSI specification, starting_offset',
  ask: async (asker) => {
    await asker.wholes()
    for (const question of asker.questions) {
      const whole = asker.run.whole(question.base, question.target)
      const capacityBytes = whole?.answer.capacityBytes
      if (whole === undefined || capacityBytes == null) continue
      const ranges = rangesOf(whole.answer.named)
      const within = asker.random.shuffle(ranges).slice(0, 3)
      const offsets = [
        ...within.map(([start, end]) => start + Math.floor((end - start) / 2)),
        ...within.map(([start]) => Math.max(start - 1, 0)),
        ...ranges.slice(-1).map(([, end]) => Math.min(end, capacityBytes)),
        capacityBytes - 1
      ]
      for (const startingOffset of new Set(offsets)) await asker.stream('from', { ...question, startingOffset })
    }
  },
  judge: (run) =>
    againstWhole(run, run.streamsOf(16), (whole, call) => {
      const left = lost(whole, call, call.question.startingOffset, whole.answer.capacityBytes ?? Infinity)
      return left.length === 0 ? undefined : `lacks ${totalBytes(left)} bytes that the whole answer has: ${shown(left)}`
    })
}
