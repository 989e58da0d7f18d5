/**
 * Answers held against each other, as sets of bytes.
 */
import { missing, type Range, rangesOf, shown, totalBytes, within } from './ranges.ts'
import { isOk, type Run, type StreamCall } from './run.ts'
import { describe, ended, fail, pass, skip, statusName, type Verdict } from './rule.ts'

/** Up to where both are known. */
function knownUntil(...calls: readonly StreamCall[]): number {
  return Math.min(...calls.map(({ answer }) => answer.named.knownUntil ?? Infinity))
}

/** What `call` leaves out of what `whole` names within `[from, until)`. */
export function lost(whole: StreamCall, call: StreamCall, from: number, until = Infinity): Range[] {
  const end = Math.min(until, knownUntil(whole, call))
  return missing(within(rangesOf(whole.answer.named), from, end), rangesOf(call.answer.named))
}

/** How an answer differs from the whole one from an offset on; undefined where it names the same bytes. */
export function difference(whole: StreamCall, call: StreamCall, from: number): string | undefined {
  // What a last tuple names behind the end of the volume does not matter (rule 11).
  const until = whole.answer.capacityBytes ?? Infinity
  const left = lost(whole, call, from, until)
  if (left.length > 0) return `lacks ${totalBytes(left)} bytes that the whole answer has: ${shown(left)}`
  const more = lost(call, whole, from, until)
  if (more.length > 0) return `names ${totalBytes(more)} bytes that the whole answer has not: ${shown(more)}`
  return undefined
}

/** Whether an offset is at the end of the volume, where a driver may refuse it (rule 33). */
export function refusedAtEnd({ question, end }: StreamCall, whole: StreamCall): boolean {
  return question.startingOffset === whole.answer.capacityBytes && statusName(end) === 'OUT_OF_RANGE'
}

/**
 * Holds each call that ended OK against the whole answer to its question. A call that ended otherwise is a breach,
 * unless only its time was up.
 *
 * @param differs what is wrong with one, if anything
 */
export function againstWhole(
  run: Run,
  calls: readonly StreamCall[],
  differs: (whole: StreamCall, call: StreamCall) => string | undefined
): Verdict {
  let compared = 0
  let late: StreamCall | undefined
  for (const call of calls) {
    const whole = run.whole(call.question.base, call.question.target)
    if (whole === undefined || refusedAtEnd(call, whole)) continue
    if (call.end.how === 'deadline') {
      late ??= call
      continue
    }
    if (!isOk(call.end))
      return fail(`${describe(call.question)} ended with ${ended(call.end)}, the whole answer with OK`)
    const what = differs(whole, call)
    if (what !== undefined) return fail(`${describe(call.question)} ${what}`)
    compared++
  }
  if (late !== undefined && compared === 0) return fail(`${describe(late.question)}: ${ended(late.end)}`)
  if (compared === 0) return skip('no whole answer ended OK, so that there is nothing to compare with')
  return pass(`${compared} answers name the same bytes as the whole one`)
}

/** The same, for answers that have to name the same bytes from their offset on. */
export function sameAsWhole(run: Run, calls: readonly StreamCall[]): Verdict {
  return againstWhole(run, calls, (whole, call) => difference(whole, call, call.question.startingOffset))
}
