/**
 * `allocated` and `delta` with `--metadata`: answers about thin devices, straight from a pool's metadata in a file or
 * device.
 */
import type { ExtentStream } from '../../devicemapper/extents.ts'
import type { PoolMetadata } from '../../devicemapper/thin/pool-metadata.ts'
import type { AnswerOptions, NamedQuestion, Remark } from './question.ts'
import { type MetadataQuestion, nativeAnswer } from './native-answer.ts'
import { firstBeyond, remarkLeftOut } from './left-out.ts'
import { deviceId } from '../command-line/option-values.ts'
import { describeView, openViews } from '../inspection/pool-views.ts'
import { targetSize } from './target-size.ts'

/** Hands the answer to `use`. @throws UsageError when BASE or TARGET is no thin device id; what reading throws */
export async function answerFromPool(
  path: string,
  { base, target }: NamedQuestion,
  { size, baseSize, liveRoot = false, engine = 'native', startingOffset = 0 }: AnswerOptions,
  signal: AbortSignal,
  remark: Remark,
  use: (answer: ExtentStream) => Promise<void>
): Promise<void> {
  const targetId = deviceId(target, '--metadata')
  const baseId = base === undefined ? undefined : deviceId(base, '--metadata')
  const views = await openViews(path, liveRoot)
  try {
    const { metadata } = views
    remark(`reading ${describeView(views)}`)
    const sizeBytes = await targetSize(metadata, targetId, size, signal, remark)
    const sizeIsFromTree = size === undefined
    if (baseId !== undefined && baseSize === undefined) {
      remark(`size of base ${baseId}: that of target ${targetId}; --base-size says otherwise`)
    }
    const question = { baseId, targetId, baseSizeBytes: baseSize, sizeBytes, sizeIsFromTree, startingOffset, signal }
    if (!sizeIsFromTree) await remarkLeftOut(() => beyond(metadata, question), remark)
    if (engine === 'native') return await use(await nativeAnswer(metadata, question))
    const { answerWithTools } = await import('./tool-engine.ts')
    await use(await answerWithTools(engine, metadata, question, remark))
  } finally {
    await views.close()
  }
}

/** The same question beyond its size, up to the end of all mappings; undefined if nothing is there. */
async function beyond(metadata: PoolMetadata, question: MetadataQuestion): Promise<ExtentStream | undefined> {
  const { baseId, targetId, sizeBytes, signal } = question
  let endBytes = 0
  for (const id of baseId === undefined ? [targetId] : [baseId, targetId]) {
    endBytes = Math.max(endBytes, await metadata.mappedEnd(await metadata.device(id, signal), signal))
  }
  const startingOffset = firstBeyond(sizeBytes, metadata.superblock.dataBlockBytes)
  if (endBytes <= startingOffset) return undefined
  return nativeAnswer(metadata, { ...question, sizeBytes: endBytes, startingOffset })
}
