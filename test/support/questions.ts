/**
 * Questions to a small pool, and their answers as text: to see whether damage makes the reader say anything else.
 */
import { openPoolMetadata } from '../../src/devicemapper/thin/pool-metadata.ts'
import type { PoolMetadata } from '../../src/devicemapper/thin/pool-metadata.ts'
import { collectExtents } from './collect-extents.ts'
import type { Answer } from './damage-trial.ts'
import { compareMappings, expectedAllocated, expectedDelta } from './expected.ts'
import type { Extent } from './expected.ts'
import { StrictReader } from './strict-reader.ts'

export type Question =
  | { readonly ask: 'devices' }
  | { readonly ask: 'allocated'; readonly deviceId: number; readonly sizeBytes?: number }
  | { readonly ask: 'delta'; readonly baseId: number; readonly targetId: number; readonly sizeBytes?: number }

/** Opens the image and asks. What is thrown is an answer too; so is no answer at all within the time. */
export async function askAll(path: string, questions: readonly Question[], secondsEach = 10): Promise<Answer[]> {
  let metadata
  try {
    metadata = await openPoolMetadata(path)
  } catch (thrown) {
    return questions.map(() => ({ thrown }))
  }
  try {
    const answers: Answer[] = []
    for (const question of questions) answers.push(await within(secondsEach, ask(metadata, question)))
    return answers
  } finally {
    await metadata.close()
  }
}

/** @throws Error that says what is wrong with what this question concerns, or that its answer is not exact */
export function strictAnswer(image: Buffer, question: Question): string {
  const reader = new StrictReader(image)
  const { blockSizeBytes } = reader
  if (question.ask === 'devices') return JSON.stringify(reader.deviceIds())
  const targetId = question.ask === 'delta' ? question.targetId : question.deviceId
  const sizeBytes = question.sizeBytes ?? reader.mappedBlocks(targetId) * blockSizeBytes
  if (!Number.isSafeInteger(sizeBytes)) throw new Error('the size is beyond 2^53')
  const end = Math.ceil(sizeBytes / blockSizeBytes)
  if (question.ask === 'allocated') {
    return textOf(expectedAllocated(reader.mappings(targetId, end), { blockSizeBytes, sizeBytes }))
  }
  const shared = reader.sharedPlaces(question.baseId, targetId, end)
  const target = reader.mappings(targetId, end, shared)
  const runs = compareMappings(reader.mappings(question.baseId, end, shared), target)
  return textOf(expectedDelta(runs, target, { blockSizeBytes, sizeBytes }))
}

async function ask(metadata: PoolMetadata, question: Question): Promise<Answer> {
  try {
    switch (question.ask) {
      case 'devices': {
        const ids: number[] = []
        for await (const { id } of metadata.devices()) ids.push(id)
        return { text: JSON.stringify(ids) }
      }
      case 'allocated':
        return { text: textOf(await collectExtents(await metadata.allocated(question))) }
      case 'delta':
        return { text: textOf(await collectExtents(await metadata.delta(question))) }
    }
  } catch (thrown) {
    return { thrown }
  }
}

function textOf(extents: readonly Extent[]): string {
  return JSON.stringify(extents)
}

async function within(seconds: number, answer: Promise<Answer>): Promise<Answer> {
  let timer: NodeJS.Timeout | undefined
  const timeout = new Promise<Answer>((resolve) => {
    timer = setTimeout(() => resolve({ thrown: new Error(`no answer within ${seconds} s`) }), seconds * 1000)
  })
  try {
    return await Promise.race([answer, timeout])
  } finally {
    clearTimeout(timer)
  }
}
