/**
 * How much of a random test is done, and from which seed: a slice in `npm test`, more where `npm run soak` asks for it through the
 * environment. A failure names both, so that it can be asked for again.
 */
import { Random } from '../support/random.ts'

export interface LabRun {
  random: Random
  /** Rounds, kills, or whatever the test counts in. */
  count: number
  /** For failures: what makes this run again. */
  again: string
}

/** @param slice how many rounds `npm test` does */
export function labRun(slice: number): LabRun {
  const { LAB_SEED = '1', LAB_COUNT = String(slice) } = process.env
  return {
    random: new Random(Number(LAB_SEED)),
    count: Number(LAB_COUNT),
    again: `LAB_SEED=${LAB_SEED} LAB_COUNT=${LAB_COUNT}`
  }
}
