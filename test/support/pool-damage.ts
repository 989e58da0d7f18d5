/**
 * What a pool's metadata is asked while it is damaged: a small pool, and questions that come by most of it.
 */
import { DamageTrial } from './damage-trial.ts'
import { type MetadataImage, writeMetadataImage } from './metadata-image.ts'
import { PoolModel } from './pool-model.ts'
import { askAll, type Question, strictAnswer } from './questions.ts'
import type { Random } from './random.ts'

/** A pool of about fifty metadata blocks: three compared devices with shared and own nodes, and trees of several levels everywhere. */
export function smallPool(random: Random): MetadataImage {
  const shape = { leafEntries: 6, internalEntries: 6, split: 'anywhere' } as const
  const model = new PoolModel({ random, shape })
  model.createThin(1)
  for (let write = 0; write < 40; write++) model.write(1, random.integer(0, 60))
  model.createSnapshot(2, 1)
  for (let write = 0; write < 5; write++) model.write(1, random.integer(0, 60))
  for (let discard = 0; discard < 3; discard++) model.discard(1, random.integer(0, 60))
  model.createSnapshot(3, 1)
  for (let write = 0; write < 50; write++) model.write(3, random.integer(0, 260))
  for (let id = 20; id < 50; id += 5) model.createSnapshot(id, random.integer(1, 3))
  model.holdMetadataSnapshot()
  const options = { random, placement: 'scattered', topLevelShape: shape, detailsShape: shape } as const
  return writeMetadataImage(model, options)
}

const ENOUGH_BYTES = 2 ** 40

/** With the default size, which looks for the highest mapping, and with one that holds everything. */
const questions: readonly Question[] = [
  { ask: 'devices' },
  { ask: 'allocated', deviceId: 1 },
  { ask: 'allocated', deviceId: 3, sizeBytes: ENOUGH_BYTES },
  { ask: 'delta', baseId: 1, targetId: 2, sizeBytes: ENOUGH_BYTES },
  { ask: 'delta', baseId: 2, targetId: 1 },
  { ask: 'delta', baseId: 2, targetId: 3 },
  { ask: 'delta', baseId: 3, targetId: 1, sizeBytes: ENOUGH_BYTES }
]

/** @param path where the image is written, damaged, and asked */
export async function beginPoolTrial(
  image: MetadataImage,
  path: string
): Promise<DamageTrial<MetadataImage, Question>> {
  return DamageTrial.begin(image, path, { questions, askAll, strictAnswer })
}
