/**
 * What test/lab/kernel-kills.ts tells a life of a kernel (kernel-life.ts, era-life.ts): `--journal FILE --seed S --life N [--last]`.
 */
import { parseArgs } from 'node:util'
import { Random } from '../support/random.ts'

export interface LifeArguments {
  /** The journal's file, on the host. */
  readonly journalPath: string
  /** Which life it is, from 0 on, and whether it is the last, which ends by itself. */
  readonly life: number
  readonly isLast: boolean
  /** Of this life alone. */
  readonly random: Random
}

export function lifeArguments(): LifeArguments {
  const { values } = parseArgs({
    options: {
      journal: { type: 'string', default: '' },
      seed: { type: 'string', default: '' },
      life: { type: 'string', default: '' },
      last: { type: 'boolean', default: false }
    }
  })
  const life = Number(values.life)
  return { journalPath: values.journal, life, isLast: values.last, random: new Random(Number(values.seed) + life) }
}
