/**
 * Damages a pool in one place at a time, asks again, and judges the answers.
 *
 * Accepted are: a DeltamapperError, the very same answer as before the damage (a walk need not come by there), and, for damage that leaves
 * everything a question concerns in perfect order, the answer that this other image must give. Anything else is a wrong answer, a crash or
 * a hang.
 */
import { closeSync, openSync, writeSync } from 'node:fs'
import { writeFile } from 'node:fs/promises'

import { DeltamapperError } from '../../src/errors.ts'
import { blockOf } from './metadata-damage.ts'
import type { Damage } from './metadata-damage.ts'
import { BLOCK_BYTES, writeMetadataImage } from './metadata-image.ts'
import type { MetadataImage } from './metadata-image.ts'
import { PoolModel } from './pool-model.ts'
import { askAll, strictAnswer } from './questions.ts'
import type { Answer, Question } from './questions.ts'
import { Random } from './random.ts'

/** How often each kind of answer came, over all trials. */
export interface Verdicts {
  same: number
  refused: number
  otherImage: number
}

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

export class DamageTrial {
  readonly image: MetadataImage
  readonly path: string
  readonly verdicts: Verdicts = { same: 0, refused: 0, otherImage: 0 }
  readonly #before: readonly string[]
  readonly #file: number

  private constructor(image: MetadataImage, path: string, before: readonly string[]) {
    this.image = image
    this.path = path
    this.#before = before
    this.#file = openSync(path, 'r+')
  }

  static async begin(image: MetadataImage, path: string): Promise<DamageTrial> {
    await writeFile(path, image.bytes)
    const answers = await askAll(path, questions)
    const before = answers.map((answer, index) => {
      if ('thrown' in answer) throw answer.thrown
      const right = strictAnswer(image.bytes, questions[index])
      if (answer.text !== right) throw new Error(`undamaged: ${answer.text} for ${right}`)
      return answer.text
    })
    return new DamageTrial(image, path, before)
  }

  /**
   * One damage, all questions. Gives back what is wrong with the answers, or an empty list.
   *
   * @param mustName for damage that checksums give away: an error has to name the block
   */
  async of(damage: Damage, mustName = false): Promise<string[]> {
    const bytes = Buffer.from(this.image.bytes)
    damage.apply(bytes)
    const at = damage.block * BLOCK_BYTES
    try {
      writeSync(this.#file, blockOf(bytes, damage.block), 0, BLOCK_BYTES, at)
      const answers = await askAll(this.path, questions)
      return this.#faults(answers, bytes, damage.name, (error) => !mustName || names(error, damage.block))
    } finally {
      writeSync(this.#file, blockOf(this.image.bytes, damage.block), 0, BLOCK_BYTES, at)
    }
  }

  /** The file cut off after so many bytes. */
  async ofLength(length: number): Promise<string[]> {
    const bytes = this.image.bytes.subarray(0, length)
    await writeFile(this.path, bytes)
    try {
      return this.#faults(await askAll(this.path, questions), bytes, `cut off after ${length} bytes`, () => true)
    } finally {
      await writeFile(this.path, this.image.bytes)
    }
  }

  end(): void {
    closeSync(this.#file)
  }

  #faults(answers: Answer[], image: Buffer, name: string, acceptable: (error: DeltamapperError) => boolean): string[] {
    const faults: string[] = []
    for (const [index, answer] of answers.entries()) {
      const fault = this.#fault(answer, index, image, acceptable)
      if (fault !== undefined) faults.push(`${name}: ${JSON.stringify(questions[index])}: ${fault}`)
    }
    return faults
  }

  #fault(
    answer: Answer,
    index: number,
    image: Buffer,
    acceptable: (error: DeltamapperError) => boolean
  ): string | undefined {
    if ('thrown' in answer) {
      const { thrown } = answer
      if (!(thrown instanceof DeltamapperError)) {
        return `threw ${thrown instanceof Error ? (thrown.stack ?? thrown.message) : String(thrown)}`
      }
      if (thrown.code === 'DM_INTERNAL') return `threw ${thrown.line}`
      if (!acceptable(thrown)) return `does not name the damaged block: ${thrown.line}`
      this.verdicts.refused++
      return undefined
    }
    if (answer.text === this.#before[index]) {
      this.verdicts.same++
      return undefined
    }
    let right: string
    try {
      right = strictAnswer(image, questions[index])
    } catch (error) {
      return `answered ${answer.text}, although ${(error as Error).message}`
    }
    if (answer.text !== right) return `answered ${answer.text} for ${right}`
    this.verdicts.otherImage++
    return undefined
  }
}

function names(error: DeltamapperError, block: number): boolean {
  return new RegExp(`\\bblock ${block}\\b`).test(error.message)
}
