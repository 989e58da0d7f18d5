/**
 * One reader takes a message a second, another's connection is cut in mid-stream; beside them, everything is
 * answered.
 * Source: CSI specification, Snapshot Metadata Service RPCs: a write error ends the call
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { sameAsWhole } from '../compare.ts'
import { describe, ended, fail, skip, type Rule } from '../rule.ts'

/** Bytes: less than a few messages. */
const SMALL_WINDOW = 64

/** Milliseconds that the others have beyond what they took alone. */
const OTHERS_MS = 5000

/** Messages that are taken slowly, at least; the rest as fast as it comes, once the others are through. */
const SLOW_MESSAGES = 2

export const rule: Rule = {
  number: 27,
  level: 'must',
  title: 'a slow reader, and one that vanishes, disturb nobody else',
  source: 'CSI specification, Snapshot Metadata Service RPCs: a write error ends the call',
  ask: async (asker) => {
    const wholes = await asker.wholes()
    const [question] = asker.questions.slice(-1)
    if (question === undefined || asker.run.whole(question.base, question.target) === undefined) return
    const vanishing = asker.wire(SMALL_WINDOW)
    const { slowReaderMs, callMs } = asker.patience
    // Several times what it took alone: the machine has more to do now.
    const alone = Math.max(...wholes.map(({ milliseconds }) => milliseconds))
    const deadlineMs = Math.min(callMs, OTHERS_MS + 5 * alone)
    const begun = Promise.withResolvers<void>()
    let othersWait = true
    const slow = asker.stream(
      'slow',
      { ...question, maxResults: 1 },
      {
        wire: asker.wire(SMALL_WINDOW),
        onMessage: async ({ messages }) => {
          begun.resolve()
          if (messages <= SLOW_MESSAGES || othersWait) await sleep(slowReaderMs)
          return false
        }
      }
    )
    const vanished = asker.stream(
      'vanished',
      { ...question, maxResults: 1 },
      {
        wire: vanishing,
        onMessage: () => {
          vanishing.destroy()
          return false
        }
      }
    )
    await Promise.race([begun.promise, slow])
    for (const each of asker.questions) await asker.stream('beside', each, { wire: asker.wire(), deadlineMs })
    await vanished
    for (const each of asker.questions) await asker.stream('beside', each, { deadlineMs })
    othersWait = false
    await slow
  },
  judge: (run) => {
    const calls = run.streamsOf(27)
    if (calls.length === 0) return skip('there is no answer to read slowly')
    const verdict = sameAsWhole(
      run,
      calls.filter(({ label }) => label === 'beside' || label === 'slow')
    )
    const hung = calls.find(({ label, end }) => label === 'beside' && end.how === 'deadline')
    return hung === undefined ? verdict : fail(`${describe(hung.question)} beside a slow reader: ${ended(hung.end)}`)
  }
}
