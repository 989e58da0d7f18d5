/**
 * Both fall in mid-stream, while the reader pauses: the driver has more to send than it may.
 * Source: CSI specification; gRPC
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { sameAsWhole } from '../compare.ts'
import { describe, ended, fail, skip, type Rule } from '../rule.ts'

/** Bytes: less than a few messages. */
const SMALL_WINDOW = 64
const PAUSE_MS = 200

export const rule: Rule = {
  number: 28,
  level: 'must',
  title: 'after a cancel and after a deadline, a new call works at once',
  source: 'CSI specification; gRPC',
  ask: async (asker) => {
    await asker.wholes()
    const [question] = asker.questions.slice(-1)
    if (question === undefined || asker.run.whole(question.base, question.target) === undefined) return
    const pause = async () => {
      await sleep(PAUSE_MS)
      return true
    }
    for (const label of ['cancel', 'deadline']) {
      const wire = asker.wire(SMALL_WINDOW)
      const onMessage =
        label === 'cancel'
          ? pause
          : async ({ messages }: { messages: number }) => messages === 1 && sleep(PAUSE_MS, false)
      const grpcTimeout = label === 'cancel' ? {} : { grpcTimeoutMs: PAUSE_MS >> 1 }
      await asker.stream(
        label,
        { ...question, maxResults: 1 },
        { wire, onMessage, ...grpcTimeout, deadlineMs: 5 * PAUSE_MS }
      )
      for (const each of asker.questions) await asker.stream('after', each, { wire: asker.wire() })
    }
  },
  judge: (run) => {
    const after = run.streamsOf(28, 'after')
    if (after.length === 0) return skip('there is no answer to cancel')
    const hung = after.find(({ end }) => end.how === 'deadline')
    if (hung !== undefined) return fail(`${describe(hung.question)} after a call was cancelled: ${ended(hung.end)}`)
    const [late] = run.streamsOf(28, 'deadline')
    const verdict = sameAsWhole(run, after)
    return late === undefined
      ? verdict
      : { ...verdict, seen: `${verdict.seen}; the call with a deadline: ${ended(late.end)}` }
  }
}
