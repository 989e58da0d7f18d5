/**
 * The long run: what the tests do with a few random pools, done with many. Ends with one line of figures; exit status 1 at the first
 * disagreement, with what makes it again.
 *
 *   npm run soak -- [--seed S] [--pools N] [--section NAME] [--pool I]
 */
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'

import type { StormReport } from '../test/kernel/storm.ts'
import type { WorkloadReport } from '../test/kernel/live-workload.ts'
import { LabFailure, projectFolder, runInLab } from '../test/lab/boot.ts'
import { LabUnavailable } from '../test/lab/packages.ts'
import { added, comparePool } from '../test/support/compare-pool.ts'
import type { Comparison } from '../test/support/compare-pool.ts'
import { DamageTrial, smallPool } from '../test/support/damage-trial.ts'
import { kernelPools } from '../test/support/kernel-pool.ts'
import { flipByte, nodeDamages } from '../test/support/metadata-damage.ts'
import { BLOCK_BYTES } from '../test/support/metadata-image.ts'
import { Random } from '../test/support/random.ts'
import { restoredPool, tallPool, writtenPool } from '../test/support/random-pool.ts'
import type { TestPool } from '../test/support/random-pool.ts'
import { flood } from '../test/support/xml-flood.ts'

const usage = `usage: soak [--seed S] [--pools N] [--section NAME] [--pool I]
  --seed S        another seed, other pools (default 1)
  --pools N       how many pools in all (default 60)
  --section NAME  this section only
  --pool I        this pool of each section only: the number that a failure prints
`

/** Steps through which a live pool is taken, of either kind. */
const WORKLOAD_STEPS = 2000
/** Walks through the storm: straight through the metadata, and through an agent. */
const STORM_WALKS = 9000
const STORM_AGENT_WALKS = 1000

/** What a section reports when it is through. Sections that compare no pairs leave those figures at 0. */
interface Outcome extends Comparison {
  readonly pools: number
}

interface Section {
  readonly name: string
  /** Share of all pools that is this section's. */
  readonly share: number
  /** Pool numbers to try, and a folder for files. Reports each pool as it is done; throws at the first disagreement. */
  readonly run: (
    numbers: readonly number[],
    seedOf: (number: number) => number,
    folder: string
  ) => AsyncIterable<[what: string, outcome: Outcome]>
}

const nothing: Outcome = { pools: 0, pairs: 0, answers: 0, extents: 0 }

/** One pool after the other, made by `make` and removed when it has agreed. */
function comparing(make: (seed: number, folder: string, number: number) => Promise<TestPool>): Section['run'] {
  return async function* (numbers, seedOf, folder) {
    for (const number of numbers) {
      const pool = await make(seedOf(number), folder, number)
      yield [pool.name, { pools: 1, ...(await comparePool(pool, seedOf(number))) }]
      await rm(pool.path)
    }
  }
}

const sections: readonly Section[] = [
  {
    name: 'written',
    share: 0.5,
    run: comparing((seed, folder, number) => (number === 0 ? tallPool(seed, folder) : writtenPool(seed, folder)))
  },
  { name: 'thin_restore', share: 0.25, run: comparing(restoredPool) },
  {
    name: 'kernel',
    share: 0.25,
    run: async function* (numbers, seedOf) {
      const [first = 0] = numbers
      const pools = await kernelPools(seedOf(first), numbers.length)
      for (const views of pools) {
        let outcome: Outcome = { ...nothing, pools: 1 }
        for (const view of views) outcome = { ...outcome, ...added(outcome, await comparePool(view)) }
        yield [views.map(({ name }) => name).join(' and '), outcome]
      }
    }
  },
  {
    name: 'damage',
    share: 0.05,
    run: async function* (numbers, seedOf, folder) {
      for (const number of numbers) {
        const { damages, verdicts } = await tryDamages(new Random(seedOf(number)), folder)
        yield [`damaged pool, seed ${seedOf(number)}: ${damages} damages, ${JSON.stringify(verdicts)}`, nothing]
      }
    }
  },
  {
    name: 'xml',
    // Once.
    share: 0,
    run: async function* () {
      const { bytes, extents, seconds, earlyMiB, lateMiB, peakMiB } = await flood(10e9)
      const memory = `${earlyMiB.toFixed(0)} MiB of memory at first, ${lateMiB.toFixed(0)} MiB at the end, ${peakMiB.toFixed(0)} MiB at most`
      if (lateMiB > earlyMiB + 48 || peakMiB > 200) throw new Error(`memory grows while XML is read: ${memory}`)
      yield [
        `${figure(bytes / 1e6)} MB of XML, ${figure(extents)} extents, ${seconds.toFixed(0)} s: ${memory}`,
        nothing
      ]
    }
  },
  ...(['dmsetup', 'lvm'] as const).map((pool): Section => ({
    name: `workload-${pool}`,
    share: 0,
    run: async function* ([number = 0], seedOf) {
      const words = ['--pool', pool, '--seed', String(seedOf(number)), '--steps', String(WORKLOAD_STEPS)]
      const report = await inLab<WorkloadReport>('test/kernel/live-workload.ts', words)
      const { steps, full, incremental, agreedWithThinDelta, refused } = report
      yield [
        `${figure(steps)} steps, seed ${seedOf(number)}: ${figure(full)} full and ${figure(incremental)} incremental backups ` +
          `restored and identical, ${figure(agreedWithThinDelta)} answers as thin_delta's, refused ${JSON.stringify(refused)}`,
        nothing
      ]
    }
  })),
  {
    name: 'storm',
    share: 0,
    run: async function* ([number = 0], seedOf) {
      const counts = ['--walks', String(STORM_WALKS), '--agent', String(STORM_AGENT_WALKS)]
      const report = await inLab<StormReport>('test/kernel/storm.ts', ['--seed', String(seedOf(number)), ...counts])
      const { walks, agentWalks, ofStable, ofOthers, whileHeld, ended, storm, commitsPerWalk } = report
      yield [
        `${figure(walks)} walks and ${figure(agentWalks)} through an agent, seed ${seedOf(number)}: right ${figure(ofStable)} of ` +
          `snapshots left alone, ${figure(ofOthers)} of others, ${figure(whileHeld)} while a metadata snapshot was held; ended with ` +
          `an error ${JSON.stringify(ended)}; ${commitsPerWalk} commits a walk, the storm ${JSON.stringify(storm)}`,
        nothing
      ]
    }
  }
]

/** Runs a script of the kernel lab that ends with its report, as JSON. */
async function inLab<Report>(script: string, words: readonly string[]): Promise<Report> {
  let output = ''
  const { status } = await runInLab({
    command: [process.execPath, join(projectFolder, script), ...words],
    timeoutSeconds: 6 * 3600,
    onOutput: (stream, chunk) => {
      process[stream === 'stdout' ? 'stdout' : 'stderr'].write(chunk)
      if (stream === 'stdout') output += chunk.toString()
    }
  })
  if (status !== 0) throw new LabFailure(`${script} ${words.join(' ')} ended with status ${status}`)
  return JSON.parse(output.trim().split('\n').at(-1) ?? '') as Report
}

async function tryDamages(random: Random, folder: string) {
  const trial = await DamageTrial.begin(smallPool(random), join(folder, 'damage.img'))
  let damages = 0
  const expectNone = (faults: readonly string[]) => {
    damages++
    if (faults.length > 0) throw new Error(faults.join('\n'))
  }
  for (const block of trial.image.reachable()) {
    for (let flip = 0; flip < 40; flip++) {
      expectNone(await trial.of(flipByte(block, random.integer(0, BLOCK_BYTES - 1), random.integer(1, 255)), true))
    }
    if (trial.image.kinds.get(block)?.endsWith('node') !== true) continue
    for (const damage of nodeDamages(trial.image, block, random)) expectNone(await trial.of(damage))
  }
  trial.end()
  return { damages, verdicts: trial.verdicts }
}

async function soak(seed: number, pools: number, onlySection?: string, onlyPool?: number): Promise<boolean> {
  const folder = await mkdtemp(join(tmpdir(), 'deltamapper-soak-'))
  let total = nothing
  const summary: string[] = []
  try {
    for (const [index, { name, share, run }] of sections.entries()) {
      if (onlySection !== undefined && onlySection !== name) continue
      const count = Math.max(1, Math.round(pools * share))
      const numbers = onlyPool === undefined ? Array.from({ length: count }, (_, number) => number) : [onlyPool]
      // Sections do not share seeds, nor do runs with different ones.
      const seedOf = (number: number) => seed * 100_000 + index * 10_000 + number
      const started = performance.now()
      let outcome = nothing
      let done = 0
      try {
        for await (const [what, one] of run(numbers, seedOf, folder)) {
          outcome = { pools: outcome.pools + one.pools, ...added(outcome, one) }
          const figures = one.pairs > 0 ? `: ${figure(one.pairs)} pairs, ${figure(one.answers)} answers` : ''
          console.log(`${name} ${++done}/${numbers.length}: ${what}${figures}`)
        }
      } catch (error) {
        if (error instanceof LabUnavailable) {
          summary.push(`${name}: left out, ${error.message}`)
          continue
        }
        console.error(error)
        const again = `npm run soak -- --seed ${seed} --pools ${pools} --section ${name} --pool ${numbers[done]}`
        console.error(`again: ${again}`)
        console.log(`soak: stopped at a failure in section ${name}, pool ${numbers[done]}, seed ${seed}`)
        return false
      }
      const seconds = ((performance.now() - started) / 1000).toFixed(0)
      const { pools: compared, answers, extents } = outcome
      const figures =
        compared > 0
          ? `${figure(compared)} pools, ${figure(answers)} answers, ${figure(extents)} extents`
          : `${figure(done)} trials`
      summary.push(`${name}: ${figures}, ${seconds} s`)
      total = { pools: total.pools + outcome.pools, ...added(total, outcome) }
    }
  } finally {
    await rm(folder, { recursive: true })
  }
  for (const line of summary) console.log(line)
  console.log(`soak: ${figure(total.pools)} pools, ${figure(total.pairs)} pairs, 0 disagreements, seed ${seed}`)
  return true
}

/** With commas between thousands. */
function figure(value: number): string {
  return value.toLocaleString('en-US')
}

function wholeNumber(text: string): number {
  if (!/^[0-9]{1,6}$/.test(text)) throw new Error(`${text} is no number for this`)
  return Number(text)
}

try {
  const { values } = parseArgs({
    options: {
      seed: { type: 'string', default: '1' },
      pools: { type: 'string', default: '60' },
      section: { type: 'string' },
      pool: { type: 'string' },
      help: { type: 'boolean' }
    }
  })
  if (values.section !== undefined && !sections.some(({ name }) => name === values.section)) {
    throw new Error(`no section ${values.section}: there are ${sections.map(({ name }) => name).join(', ')}`)
  }
  if (values.help) console.log(usage)
  else {
    const onlyPool = values.pool === undefined ? undefined : wholeNumber(values.pool)
    const agreed = await soak(wholeNumber(values.seed), wholeNumber(values.pools), values.section, onlyPool)
    process.exitCode = agreed ? 0 : 1
  }
} catch (error) {
  console.error(`${(error as Error).message}\n\n${usage}`)
  process.exitCode = 2
}
