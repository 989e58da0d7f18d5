/**
 * Random lives of LVM volumes with classic snapshots (cow-life.ts), raw and with ext4 by turns: every pair of snapshots is
 * asked of an agent, and every answer is right or refused with the right code. Runs inside the kernel lab, and prints what
 * there was as JSON:
 *
 *   node test/kernel/classic-lives.ts --seed S --lives N [--snapshots N]
 *
 * Pairs grow with the square of a life's snapshots. Two lives ask together (rounds.ts), and a kernel has but few of them:
 * a long process has more mappings on the host than that has room for.
 */
import { parseArgs } from 'node:util'
import { Random } from '../support/random.ts'
import { askAgent } from './classic-agent.ts'
import { CowLife, type LifeCounts } from './cow-life.ts'
import { LiveAgent } from './live-agent.ts'
import { createGroup, prepareLvm } from './lvm-setup.ts'
import { type InStep, liveInStep } from './rounds.ts'

export interface ClassicLivesReport extends LifeCounts {
  lives: number
}

const { values } = parseArgs({
  options: {
    seed: { type: 'string', default: '1' },
    lives: { type: 'string', default: '2' },
    snapshots: { type: 'string', default: '13' }
  }
})
const group = 'lives'
const snapshots = Number(values.snapshots)

prepareLvm()
createGroup(group, '/dev/ubda')
// All pairs of two lives are asked at once.
const agent = await LiveAgent.start({ config: { logLevel: 'info', maxStreams: 1000, maxStreamsPerClient: 1000 } })
const client = agent.client()

async function live(seed: number, ext4: boolean, inStep: InStep): Promise<LifeCounts> {
  const random = new Random(seed)
  const life = new CowLife(group, `o${seed}`, random, { ext4, prefix: `r${seed}-` })
  const ask = askAgent(client, group)
  try {
    life.live(snapshots)
    await inStep(() => life.check(ask))
    console.error(`life ${seed}: ${life.counts.pairs} pairs`)
    if (life.mergeable.length > 0) life.merge(random.pick(life.mergeable))
    life.take()
    life.write()
    life.event()
    await inStep(() => life.check(ask))
    console.error(`life ${seed}: ${life.counts.pairs} pairs, and at its end`)
  } catch (error) {
    throw new Error(`life ${seed}: ${(error as Error).stack}`, { cause: error })
  }
  life.end()
  return life.counts
}

const report: ClassicLivesReport = { lives: 0, pairs: 0, restored: 0, exact: 0, refused: {}, steps: {} }

function add(counts: LifeCounts): void {
  report.lives++
  for (const each of ['pairs', 'restored', 'exact'] as const) report[each] += counts[each]
  for (const each of ['refused', 'steps'] as const) {
    for (const [name, count] of Object.entries(counts[each])) report[each][name] = (report[each][name] ?? 0) + count
  }
}

const first = Number(values.seed)
const end = first + Number(values.lives)
for (let seed = first; seed < end; seed += 2) {
  const two = [seed, seed + 1].filter((each) => each < end)
  await liveInStep(two.map((each, i) => async (inStep) => add(await live(each, i === 1, inStep))))
}
const status = await agent.stop()
if (status !== 0) throw new Error(`the agent ended with status ${status}: ${agent.stderr}`)
console.log(JSON.stringify(report))
process.exit(0)
