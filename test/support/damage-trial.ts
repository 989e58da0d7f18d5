/**
 * Damages a metadata image in one place at a time, asks again, and judges the answers.
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
import { BLOCK_BYTES } from './metadata-image.ts'

/** How often each kind of answer came, over all trials. */
export interface Verdicts {
  same: number
  refused: number
  otherImage: number
}

/** What was said to a question, or thrown. */
export type Answer = { readonly text: string } | { readonly thrown: unknown }

/** How a kind of metadata is asked. */
export interface Examination<Question> {
  readonly questions: readonly Question[]
  /** Opens the image at `path` and asks: an answer to each question. */
  readonly askAll: (path: string, questions: readonly Question[]) => Promise<Answer[]>
  /**
   * The right answer, from the image's bytes.
   *
   * @throws Error that says what is wrong with what this question concerns, or that its answer is not exact
   */
  readonly strictAnswer: (image: Buffer, question: Question) => string
}

export class DamageTrial<Image extends { readonly bytes: Buffer }, Question> {
  readonly image: Image
  readonly path: string
  readonly verdicts: Verdicts = { same: 0, refused: 0, otherImage: 0 }
  readonly #examination: Examination<Question>
  readonly #before: readonly string[]
  readonly #file: number

  private constructor(image: Image, path: string, examination: Examination<Question>, before: readonly string[]) {
    this.image = image
    this.path = path
    this.#examination = examination
    this.#before = before
    this.#file = openSync(path, 'r+')
  }

  static async begin<Image extends { readonly bytes: Buffer }, Question>(
    image: Image,
    path: string,
    examination: Examination<Question>
  ): Promise<DamageTrial<Image, Question>> {
    const { questions, askAll, strictAnswer } = examination
    await writeFile(path, image.bytes)
    const answers = await askAll(path, questions)
    const before = answers.map((answer, index) => {
      if ('thrown' in answer) throw answer.thrown
      const right = strictAnswer(image.bytes, questions[index])
      if (answer.text !== right) throw new Error(`undamaged: ${answer.text} for ${right}`)
      return answer.text
    })
    return new DamageTrial(image, path, examination, before)
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
      const answers = await this.#askAll()
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
      return this.#faults(await this.#askAll(), bytes, `cut off after ${length} bytes`, () => true)
    } finally {
      await writeFile(this.path, this.image.bytes)
    }
  }

  end(): void {
    closeSync(this.#file)
  }

  async #askAll(): Promise<Answer[]> {
    return this.#examination.askAll(this.path, this.#examination.questions)
  }

  #faults(answers: Answer[], image: Buffer, name: string, acceptable: (error: DeltamapperError) => boolean): string[] {
    const faults: string[] = []
    for (const [index, answer] of answers.entries()) {
      const fault = this.#fault(answer, index, image, acceptable)
      if (fault !== undefined) faults.push(`${name}: ${JSON.stringify(this.#examination.questions[index])}: ${fault}`)
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
      right = this.#examination.strictAnswer(image, this.#examination.questions[index])
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
