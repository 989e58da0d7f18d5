/**
 * Lives of a simulated machine, one after the other: test/simulation/ has the world, docs/simulation.md says how to read what this prints.
 *
 *     npm run simulate -- [--world thin|leases|era|owned|all] [--seed S] [--lives N]     N lives from seed S on; the first that fails is made small, and told as a story
 *     npm run simulate -- --story --world W --seed S     one life, told
 *     npm run simulate -- --mutants [--lives N] [--only NAME,…] [--again]     takes guards of the product away in turn: N lives at most to find that out
 *
 * `--processes N`: how many processes live at once; as many as there are processors where left out.
 */
import { availableParallelism } from 'node:os'
import { parseArgs } from 'node:util'
import { isWorld, runLives, runMutants, worldNames } from '../test/simulation/run.ts'

const { values } = parseArgs({
  options: {
    world: { type: 'string', default: 'all' },
    seed: { type: 'string', default: '1' },
    lives: { type: 'string' },
    story: { type: 'boolean', default: false },
    mutants: { type: 'boolean', default: false },
    only: { type: 'string' },
    again: { type: 'boolean', default: false },
    processes: { type: 'string' }
  }
})
const seed = Number(values.seed)
const processes = Number(values.processes ?? availableParallelism())
const { only, again, story } = values
if (values.mutants) {
  const lives = Number(values.lives ?? 10_000)
  process.exitCode = await runMutants({ seed, lives, only: only?.split(','), again, processes })
} else {
  for (const world of values.world === 'all' ? worldNames : [values.world]) {
    if (!isWorld(world)) throw new Error(`there is no world ${world}: ${worldNames.join(', ')}, all`)
    process.exitCode ||= await runLives({ world, seed, lives: Number(values.lives ?? 1000), story, processes })
  }
}
