/**
 * Lives of a simulated machine, one after the other: test/simulation/ has the world, docs/simulation.md says how to read what this prints.
 *
 *     npm run simulate -- [--seed S] [--lives N]     N lives from seed S on; the first that fails is made small, and told as a story
 *     npm run simulate -- --story --seed S           one life, told
 *     npm run simulate -- --mutants [--lives N] [--only NAME,…]     takes each guard of the product away in turn: N lives at most to find that out
 */
import { parseArgs } from 'node:util'
import { runLives, runMutants } from '../test/simulation/run.ts'

const { values } = parseArgs({
  options: {
    seed: { type: 'string', default: '1' },
    lives: { type: 'string' },
    story: { type: 'boolean', default: false },
    mutants: { type: 'boolean', default: false },
    only: { type: 'string' }
  }
})
const seed = Number(values.seed)
process.exitCode = values.mutants
  ? await runMutants({ seed, lives: Number(values.lives ?? 10_000), only: values.only })
  : await runLives({ seed, lives: Number(values.lives ?? 1000), story: values.story })
