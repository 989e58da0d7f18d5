/**
 * `--engine tools` and `--engine both` of a question about metadata: thin_delta and thin_dump answer, or check the
 * answer.
 */
import type { ExtentStream } from '../../devicemapper/extents.ts'
import type { PoolMetadata } from '../../devicemapper/thin/pool-metadata.ts'
import { crossChecked } from '../../devicemapper/tools/cross-check.ts'
import type { Engine } from '../../devicemapper/tools/engine.ts'
import { checkTool } from '../../devicemapper/tools/tool.ts'
import { toolAnswer } from '../../devicemapper/tools/tool-answer.ts'
import { describeVersion } from '../../devicemapper/tools/tool-version.ts'
import type { Remark } from './question.ts'
import { type MetadataQuestion, nativeAnswer } from './native-answer.ts'
import { counted } from '../command-line/quantities.ts'

/** The tools in this user's PATH. */
const command: readonly string[] = []

/**
 * @throws what the tools throw; with `both`, DM_ENGINES_DISAGREE, and the reason why they could not check: the user
 *   asked for it
 */
export async function answerWithTools(
  engine: Exclude<Engine, 'native'>,
  metadata: PoolMetadata,
  question: MetadataQuestion,
  remark: Remark
): Promise<ExtentStream> {
  const { baseId, targetId, sizeBytes, baseSizeBytes = sizeBytes, startingOffset, signal } = question
  const name = baseId === undefined ? 'thin_dump' : 'thin_delta'
  const tool = `${name} ${describeVersion(await checkTool(name, command))}`
  const target = { device: await metadata.device(targetId, signal), sizeBytes }
  const base =
    baseId === undefined ? undefined : { device: await metadata.device(baseId, signal), sizeBytes: baseSizeBytes }
  const ask = (stop: AbortSignal) => toolAnswer({ metadata, base, target, startingOffset, command, signal: stop })
  if (engine === 'tools') {
    remark(`asking ${tool}`)
    return ask(signal)
  }
  const native = await nativeAnswer(metadata, question)
  let beyondBase = () => 0
  const checking = (over: AbortSignal) => {
    const answer = ask(AbortSignal.any([signal, over]))
    beyondBase = answer.beyondBase
    return answer.batches
  }
  const batches = crossChecked(native.batches, checking, (outcome) => {
    if (outcome.check === 'unchecked') throw outcome.why
    if (outcome.check === 'disagreed') return
    const blocks = beyondBase()
    const expected = blocks === 0 ? '' : `; it calls ${counted(blocks, 'block')} beyond the end of ${baseId} the same`
    remark(`${tool} agrees on ${counted(outcome.extents, 'extent')}${expected}`)
  })
  return { capacityBytes: native.capacityBytes, batches }
}
