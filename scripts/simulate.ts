/**
 * Lives of a simulated machine, one after the other: test/simulation/ has the world, docs/simulation.md says how to read what this prints.
 *
 *     npm run simulate -- [--seed S] [--lives N]          N lives from seed S on; the first that fails is made small, and told as a story
 */
import { parseArgs } from 'node:util'
import { runLives } from '../test/simulation/run.ts'

const { values } = parseArgs({
  options: {
    seed: { type: 'string', default: '1' },
    lives: { type: 'string', default: '1000' },
    story: { type: 'boolean', default: false }
  }
})
process.exitCode = await runLives({ seed: Number(values.seed), lives: Number(values.lives), story: values.story })
