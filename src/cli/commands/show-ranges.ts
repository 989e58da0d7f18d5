/**
 * An answer as a map of the whole volume, for other programs: `START LENGTH TYPE` on each line, in bytes, without gaps.
 *
 * - `-o ranges`, for scripts: data or zero of what is allocated; changed or same of a delta.
 * - `-o borg-map`, for `borg2 create --map`, which trusts it: what is the same but not allocated has to be zero, and
 *   what changed but is not allocated any more as well. So a delta takes the target's allocation, too.
 *
 * A map that is cut off does not reach the volume's end, which borg refuses; and it lacks the last line.
 */
import type { ExtentAnswer } from '../../devicemapper/extents.ts'
import { DeltamapperError } from '../../errors.ts'
import { StatusMap } from '../../nbd/status-map.ts'
import { withAnswer } from '../answers/answer.ts'
import type { AnswerOptions, Question, Remark } from '../answers/question.ts'
import { UsageError } from '../command-line/failure.ts'
import { interruptible } from '../command-line/interruption.ts'
import { TextOutput } from '../output/text-output.ts'
import type { ExtentsOptions } from './show-extents.ts'

type State = 'data' | 'zero' | 'changed' | 'same'
const states: readonly State[] = ['data', 'zero', 'changed', 'same']

/**
 * Asks, and writes the map. Resolves when it is complete and written.
 *
 * @throws UsageError, DM_NOT_TRACKED, what asking throws
 */
export async function showRanges(question: Question, options: ExtentsOptions): Promise<void> {
  const { ask } = question
  const ofBorg = options.output === 'borg-map'
  checkWhole(ask, options)
  const remark = (text: string) => process.stderr.write(`deltamapper: ${text}\n`)
  await interruptible(options.timeout, async (signal) => {
    const output = new TextOutput(process.stdout, signal)
    if (ask === 'allocated' || !ofBorg) {
      const [has, lacks]: [State, State] = ask === 'allocated' ? ['data', 'zero'] : ['changed', 'same']
      await withAnswer(question, options, signal, remark, (answer) =>
        writeMap([answer], ([covered]) => (covered ? has : lacks), output)
      )
      return
    }
    await withBoth(question, options, signal, remark, (allocated, changed) =>
      writeMap([allocated, changed], ([has, differs]) => (!has ? 'zero' : differs ? 'data' : 'same'), output)
    )
  })
}

/** @throws UsageError where the answer would be of a part, or says too little */
function checkWhole(ask: Question['ask'], { output, startingOffset, xml, since }: ExtentsOptions): void {
  if (startingOffset !== undefined && startingOffset > 0) {
    throw new UsageError(`-o ${output} is a map of the whole volume`, 'leave --starting-offset out')
  }
  if (output === 'ranges' || ask === 'allocated' || (xml === undefined && since === undefined)) return
  throw new UsageError(
    'a map for borg says what is zero, and what a tool has printed of a difference, or an era, does not',
    'ask with --metadata or --endpoint; or take -o ranges'
  )
}

/**
 * What the target has allocated, and what changed in it, of one state of it: the first answer goes on until after the
 * second has begun. One that an agent has sent by then is asked for once more, at its end: the agent then says whether
 * the snapshot is what it was when it was begun.
 */
async function withBoth(
  question: Question,
  options: AnswerOptions,
  signal: AbortSignal,
  remark: Remark,
  use: (allocated: ExtentAnswer, changed: ExtentAnswer) => Promise<void>
): Promise<void> {
  const { target } = question
  let capacityBytes: number | undefined
  const ofTarget: AnswerOptions = { ...options }
  delete ofTarget.baseRecord
  await withAnswer({ ask: 'allocated', target }, ofTarget, signal, remark, (allocated) =>
    withAnswer(
      question,
      options,
      signal,
      () => undefined,
      async (changed) => {
        capacityBytes = sameCapacity(allocated, changed)
        await use({ ...allocated, capacityBytes }, { ...changed, capacityBytes })
      }
    )
  )
  if (options.metadata !== undefined) return
  const atEnd = { ...ofTarget, startingOffset: capacityBytes ?? 0 }
  await withAnswer({ ask: 'allocated', target }, atEnd, signal, remark, async ({ batches }) => {
    for await (const each of batches) void each
  })
}

/** @throws DM_SNAPSHOT_CHANGED, DM_NOT_TRACKED */
function sameCapacity(one: ExtentAnswer, other: ExtentAnswer): number {
  const capacityBytes = one.capacityBytes ?? other.capacityBytes
  if (capacityBytes === undefined) throw sizeUnknown()
  if ((other.capacityBytes ?? capacityBytes) === capacityBytes) return capacityBytes
  throw new DeltamapperError(
    'DM_SNAPSHOT_CHANGED',
    'the snapshot was resized while it was asked about',
    'ask again from the beginning'
  )
}

async function writeMap(
  answers: readonly ExtentAnswer[],
  state: (covered: readonly boolean[]) => State,
  output: TextOutput
): Promise<void> {
  const sizeBytes = answers[0].capacityBytes
  if (sizeBytes === undefined) throw sizeUnknown()
  const questions = answers.map((answer) => async () => answer)
  const map = new StatusMap({ sizeBytes, questions, state: (covered) => states.indexOf(state(covered)) })
  let run: { offset: number; end: number; flags: number } | undefined
  const write = async () => {
    if (run) output.text(`${run.offset} ${run.end - run.offset} ${states[run.flags]}\n`)
    if (output.isFull) await output.flush()
  }
  await map.forEachRun(async (offset, end, flags) => {
    if (run?.flags === flags) run.end = end
    else {
      await write()
      run = { offset, end, flags }
    }
  })
  await write()
  output.text('# complete\n')
  await output.flush()
}

function sizeUnknown(): DeltamapperError {
  return new DeltamapperError(
    'DM_NOT_TRACKED',
    'the driver has found nothing, and did not say how large the snapshot is: there is no map of it',
    'treat all of it as unchanged (delta) or zeros (allocated), or take -o json'
  )
}
