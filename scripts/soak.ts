/**
 * The long run: what the tests do with a few random pools, done with many. Ends with one line of figures; exit status 1 at the first
 * disagreement, with what makes it again.
 *
 *   npm run soak -- [--seed S] [--pools N] [--section NAME] [--pool I]
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, readdir, rm } from 'node:fs/promises'
import { availableParallelism, tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'

import type { ClassicLivesReport } from '../test/kernel/classic-lives.ts'
import type { StormReport } from '../test/kernel/storm.ts'
import type { WorkloadReport } from '../test/kernel/live-workload.ts'
import { LabFailure, projectFolder, runInLab } from '../test/lab/boot.ts'
import {
  killKernels,
  killKernelsThatTrack,
  killKernelsWithBasesThatGo,
  killKernelsWithClassicSnapshots
} from '../test/lab/kernel-kills.ts'
import { faults, liveInstalled } from '../test/lab/installed-init.ts'
import { LabUnavailable } from '../test/lab/packages.ts'
import { type LabRelease, labReleases, releaseOf } from '../test/lab/releases.ts'
import { commandFor, labVariables } from '../test/lab/run.ts'
import { added, comparePool } from '../test/support/compare-pool.ts'
import type { Comparison } from '../test/support/compare-pool.ts'
import type { DamageTrial } from '../test/support/damage-trial.ts'
import { type CowTally, damageStores, summaryTable, tallyTable } from '../test/support/cow-mutations.ts'
import { eraCampaign } from '../test/support/era-mutations.ts'
import { availableEraTools } from '../test/support/era-tools.ts'
import { newTally, runCampaign } from '../test/support/mutations.ts'
import { poolCampaign } from '../test/support/pool-mutations.ts'
import { borgArchives } from '../test/support/borg-archives.ts'
import { beginEraTrial, eraDamages, smallEraDevice } from '../test/support/era-damage.ts'
import { beginPoolTrial, smallPool } from '../test/support/pool-damage.ts'
import { kernelPools } from '../test/support/kernel-pool.ts'
import { type Damage, flipByte, nodeDamages } from '../test/support/metadata-damage.ts'
import { BLOCK_BYTES } from '../test/support/metadata-image.ts'
import { Catalogs, liveOn, worldNames } from '../test/simulation/run.ts'
import { Random } from '../test/support/random.ts'
import { restoredPool, tallPool, writtenPool } from '../test/support/random-pool.ts'
import type { TestPool } from '../test/support/random-pool.ts'
import { flood } from '../test/support/xml-flood.ts'
import { trySpoiledDocuments } from '../test/support/xml-trial.ts'
import { figure, wholeNumber } from './figures.ts'
import { hostile } from './hostile.ts'
import { tryPackages } from './package/try-packages.ts'

const usage = `usage: soak [--seed S] [--pools N] [--section NAME] [--pool I]
  --seed S        another seed, other pools (default 1)
  --pools N       how many pools in all (default 60)
  --section NAME  this section only
  --pool I        this pool of each section only: the number that a failure prints
`

/** Steps through which a live pool is taken, of either kind. */
const WORKLOAD_STEPS = 2000
/** Storms, each in a kernel of its own, and walks through each: straight through the metadata, and through an agent. */
const STORMS = 4
const STORM_WALKS = 2250
const STORM_AGENT_WALKS = 250

/** How long each attack of hostile clients lasts. */
const HOSTILE_SECONDS = 15
/** Images of which a field is damaged under a right checksum: rounds with an image each, thin and era by turns. */
const MUTATION_ROUNDS = 200
const MUTATIONS_A_ROUND = 500
/** Pairs of stores of classic snapshots, and how often each is damaged. */
const COW_MUTATION_ROUNDS = 200
const COW_MUTATIONS_A_ROUND = 50
/**
 * Kernels in which two volumes with classic snapshots live, some 300 pairs each, asked of an agent. Most of them have the
 * release whose page faults cost least in the lab.
 */
const COW_KERNELS = ['sid', 'sid', 'trixie', 'sid', 'sid', undefined, 'sid', 'sid', 'sid'] as const
const COW_LIVES_EACH = 2
/** Lives of which the stores themselves are asked, without an agent. */
const COW_STORE_LIVES = 20
/** Of a whole kernel, while a volume has classic snapshots; 3 to 10 pairs after each. */
const COW_KERNEL_KILLS = 30

/** Streams asked for, 32 of them at a time. */
const STREAMS = 320
/** Random moments at which the agent is killed, and the whole kernel. */
const AGENT_KILLS = 200
const KERNEL_KILLS = 30
/** Of each kind: names that change during a question, pools that are made anew or put back. */
const LOOKUP_ROUNDS = 200
/** Of each way in which a base, or a target that is gone on with, is not what it was. */
const BASE_ROUNDS = 200
/** Of whoever holds metadata snapshots, and of an agent that changes pools of its own. */
const LEASE_KILLS = 100
const OWNED_POOLS_KILLS = 50
/** Of an agent that tracks a volume; also the most moments of each operation at which it dies: all of them. And snapshots of such a volume. */
const ERA_KILLS = 20
const ERA_BOUNDARIES = 60
/** Of one, every pair of which is compared. */
const ERA_SNAPSHOTS = 60
/** Snapshots of a file system in use, a third of them after a kill of the agent, of which backups are made and restored. */
const ERA_BACKUPS = 60
/** Of a whole kernel, while a volume is tracked. */
const ERA_KERNEL_KILLS = 10
/** Of a machine on which the package is installed; every second one after a power cut. */
const INSTALLED_REBOOTS = 10
/** Of lvm.conf: all of them. */
const LVM_SETTINGS = 23
/** Lives of a tracked volume in which blocks change beside dm-era, and in which they do not. */
const MISSED_ERA_LOOKS = 200
/** Steps through which an era device is taken, and rounds of discards at one. Most steps end an era. */
const ERA_STEPS = 200
const ERA_DISCARD_ROUNDS = 40
/** Rounds of each way in which the tables of a tracked volume, or the catalog's rows, were not what they were taken for. */
const ERA_TABLE_ROUNDS = 200
/** Options and requests that a server of ours gets from hostile clients, and increments that qemu-img makes of a live volume. */
const NBD_MESSAGES = 1_000_000
const NBD_INCREMENTS = 20
/** Kills of backups; and volumes that shrink and grow, each pruned to its last point. */
const BACKUP_KILLS = 300
const BACKUP_HISTORIES = 200
/** Live, of a file system in use; and kills of live backups, where file systems can be frozen (Linux 6.8 and later). */
const BACKUP_INCREMENTS = 20
const BACKUP_LIVE_KILLS = 100
/**
 * Of what an agent does around the last message of an answer, after which its base is removed; of agents; of kernels;
 * and of pools that lose their last transaction, or are put back to a copy, half and half.
 */
const RECORD_KILLS = 1000
const VANISHED_BASE_KILLS = 30
const RECORD_KERNEL_KILLS = 30
const PUT_BACK_ROUNDS = 400
/** Pairs of a base and a target, with the base gone but for a few; and bytes flipped in base records, and ends cut off. */
const RECORD_PAIRS = 100_000
const RECORD_DAMAGES = 20_000
/** Of each kind, to a catalog. */
const CATALOG_DAMAGES = 2000

/** What a section reports when it is through. Sections that compare no pairs leave those figures at 0. */
interface Outcome extends Comparison {
  readonly pools: number
  /** For the last line: what was done, where that is not pools and pairs. */
  readonly done?: string
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

/** Lives of each simulated world; those of era take the longest. */
const SIMULATED_LIVES = { thin: 500_000, leases: 500_000, era: 100_000, owned: 100_000 } as const
/** Of a pool and of an era device without faults, in the simulation and in each kernel. */
const SIMULATED_POOLS = 1000
const SIMULATED_ERAS = 300

/** ava, for tests that take hours. */
const avaForLong = [join(projectFolder, 'node_modules/.bin/ava'), '--tap', '--timeout=4h']

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

/** A kernel test with its full count, by its file's name in test/kernel/. */
function kernelTest(name: string, file: string, count: number, done: string, release?: LabRelease): Section {
  return {
    name,
    share: 0,
    run: async function* ([number = 0], seedOf) {
      yield [await testInLab(file, count, seedOf(number), release), { ...nothing, done }]
    }
  }
}

/** (A section's seeds come from its place in this list.) */
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
        const random = new Random(seedOf(number))
        const trial = await beginPoolTrial(smallPool(random), join(folder, 'damage.img'))
        const { image, verdicts } = trial
        const isNode = (block: number) => image.kinds.get(block)?.endsWith('node') === true
        const damages = await tryDamages(trial, image.reachable(), random, (block) =>
          isNode(block) ? nodeDamages(image, block, random) : []
        )
        yield [`damaged pool, seed ${seedOf(number)}: ${damages} damages, ${JSON.stringify(verdicts)}`, nothing]
      }
    }
  },
  {
    name: 'xml-spoiled',
    share: 0.5,
    run: async function* (numbers, seedOf) {
      for (const number of numbers) {
        const { refused, accepted } = await trySpoiledDocuments(seedOf(number))
        yield [`seed ${seedOf(number)}: ${refused} documents refused, ${accepted} accepted`, nothing]
      }
    }
  },
  {
    name: 'xml-flood',
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
      const done = `${figure(steps)} steps on ${pool === 'lvm' ? 'an LVM' : 'a raw'} pool with ${figure(full + incremental)} restores`
      yield [
        `seed ${seedOf(number)}: ${figure(full)} full and ${figure(incremental)} incremental backups ` +
          `restored and identical, ${figure(agreedWithThinDelta)} answers as thin_delta's, refused ${JSON.stringify(refused)}`,
        { ...nothing, done }
      ]
    }
  })),
  {
    name: 'hostile',
    share: 0,
    run: async function* () {
      const faults = await hostile(HOSTILE_SECONDS)
      if (faults > 0) throw new Error(`${faults} faults, said above`)
      yield ['hostile clients', { ...nothing, done: 'hostile clients held off' }]
    }
  },
  {
    name: 'storm',
    share: 0,
    run: async function* ([number = 0], seedOf) {
      const counts = ['--walks', String(STORM_WALKS), '--agent', String(STORM_AGENT_WALKS)]
      const said: string[] = []
      let all = 0
      for (let seed = seedOf(number); seed < seedOf(number) + STORMS; seed++) {
        const report = await inLab<StormReport>('test/kernel/storm.ts', ['--seed', String(seed), ...counts])
        const { walks, agentWalks, ofStable, ofOthers, whileHeld, ended, storm, commitsPerWalk } = report
        all += walks + agentWalks
        said.push(
          `${figure(walks)} walks and ${figure(agentWalks)} through an agent, seed ${seed}: right ${figure(ofStable)} of ` +
            `snapshots left alone, ${figure(ofOthers)} of others, ${figure(whileHeld)} while a metadata snapshot was held; ended with ` +
            `an error ${JSON.stringify(ended)}; ${commitsPerWalk} commits a walk, the storm ${JSON.stringify(storm)}`
        )
        console.log(`storm: ${figure(all)} walks, 0 wrong answers`)
      }
      yield [said.join('\n'), { ...nothing, done: `${figure(all)} walks through a storm` }]
    }
  },
  kernelTest('streams', 'streams', STREAMS, `${figure(STREAMS)} streams, 32 at once`),
  {
    name: 'agent-kills',
    share: 0,
    run: async function* ([number = 0], seedOf) {
      // In several kernels, so that what went well is known early; one on each processor.
      const said: string[] = []
      const each = AGENT_KILLS / 8
      let begun = 0
      const oneAfterTheOther = async () => {
        while (begun < AGENT_KILLS) {
          said.push(await testInLab('agent-kills', each, seedOf(number) + (begun += each)))
          console.log(`agent-kills: ${each * said.length} of ${AGENT_KILLS}`)
        }
      }
      await Promise.all(Array.from({ length: availableParallelism() }, oneAfterTheOther))
      yield [said.join('; '), { ...nothing, done: `${figure(AGENT_KILLS)} kills of the agent` }]
    }
  },
  {
    name: 'kernel-kills',
    share: 0,
    run: async function* ([number = 0], seedOf) {
      const report = await killKernels(seedOf(number), KERNEL_KILLS, (line) => console.log(line))
      const { kills, whileStarting, answers, leasesLeft, ambiguous } = report
      yield [
        `seed ${seedOf(number)}: ${whileStarting} while the agent started, ${figure(answers)} answers right afterwards; leases left ` +
          `behind, by what was on record: ${JSON.stringify(leasesLeft)}, ${ambiguous} of them left to a person`,
        { ...nothing, done: `${kills} kills of the kernel` }
      ]
    }
  },
  kernelTest(
    'missed-blocks-lookup',
    'missed-blocks-lookup',
    LOOKUP_ROUNDS,
    `${figure(LOOKUP_ROUNDS)} rounds of names that change during a question`
  ),
  kernelTest(
    'missed-bases',
    'missed-blocks-bases',
    BASE_ROUNDS,
    `${figure(BASE_ROUNDS)} rounds of each life of a base or a resumed answer`
  ),
  {
    name: 'classic-snapshots',
    share: 0,
    run: async function* ([number = 0], seedOf) {
      const said: string[] = []
      let [lives, pairs] = [0, 0]
      for (const [i, release] of COW_KERNELS.entries()) {
        const words = ['--seed', String(seedOf(number) + COW_LIVES_EACH * i), '--lives', String(COW_LIVES_EACH)]
        const report = await inLab<ClassicLivesReport>('test/kernel/classic-lives.ts', words, release)
        lives += report.lives
        pairs += report.pairs
        said.push(`Linux of ${release ?? 'the machine'}: ${JSON.stringify(report)}`)
        console.log(`classic-snapshots: ${figure(pairs)} pairs of ${figure(lives)} lives, 0 wrong answers`)
      }
      const done = `${figure(pairs)} pairs of classic snapshots, of ${figure(lives)} lives`
      yield [said.join('\n'), { ...nothing, done }]
      const stores = await testInLab('cow-stores', COW_STORE_LIVES, seedOf(number))
      yield [stores, { ...nothing, done: `${figure(COW_STORE_LIVES)} lives of which the stores were asked` }]
    }
  },
  {
    name: 'classic-kernel-kills',
    share: 0,
    run: async function* ([number = 0], seedOf) {
      const report = await killKernelsWithClassicSnapshots(seedOf(number), COW_KERNEL_KILLS, (line) => {
        console.log(line)
      })
      const { kills, whileStarting, pairs, refused, merging } = report
      yield [
        `seed ${seedOf(number)}: ${whileStarting} while the agent started, ${merging} while a snapshot was merged; ` +
          `${figure(pairs)} pairs right afterwards, of which refused ${JSON.stringify(refused)}`,
        { ...nothing, done: `${kills} kills of a kernel with classic snapshots` }
      ]
    }
  },
  kernelTest('lease-kills', 'lease', LEASE_KILLS, `${figure(LEASE_KILLS)} kills of a lease's holder`),
  kernelTest(
    'owned-pools-kills',
    'owned-pools-killed',
    OWNED_POOLS_KILLS,
    `${figure(OWNED_POOLS_KILLS)} kills while pools of our own were changed`
  ),
  kernelTest(
    'era-boundaries',
    'era-snapshots',
    ERA_BOUNDARIES,
    `${figure(ERA_BOUNDARIES)} snapshots with writes in flight`
  ),
  kernelTest(
    'era-history',
    'era-history',
    ERA_SNAPSHOTS,
    `every pair of ${figure(ERA_SNAPSHOTS)} snapshots of a tracked volume`
  ),
  kernelTest('era-kills', 'era-kills', ERA_KILLS, `${figure(ERA_KILLS)} kills of an agent that tracks a volume`),
  kernelTest(
    'era-backups',
    'era-backups',
    ERA_BACKUPS,
    `backups of ${figure(ERA_BACKUPS)} snapshots of a tracked volume restored, the agent killed ${ERA_BACKUPS / 3} times`
  ),
  {
    name: 'installed',
    share: 0,
    run: async function* () {
      const found = faults(
        await liveInstalled(INSTALLED_REBOOTS, (round, { seconds }) => console.log(`boot ${round}: ${seconds} s`))
      )
      if (found.length > 0) throw new Error(found.join('\n'))
      yield [
        'mounts stayed, every delta had what differed, and histories ended with a power cut only',
        { ...nothing, done: `${INSTALLED_REBOOTS} reboots of a machine with the package, an upgrade and a purge` }
      ]
    }
  },
  {
    name: 'packages',
    share: 0,
    run: async function* () {
      const said = await tryPackages((line) => console.log(line))
      yield [said, { ...nothing, done: 'packages and images made twice' }]
    }
  },
  {
    name: 'era-kernel-kills',
    share: 0,
    run: async function* ([number = 0], seedOf) {
      const report = await killKernelsThatTrack(seedOf(number), ERA_KERNEL_KILLS, (line) => console.log(line))
      const { kills, whileStarting, answers, differing, refused, lost, settled, ambiguous } = report
      yield [
        `seed ${seedOf(number)}: ${whileStarting} while the agent started, ${figure(answers)} answers with all of ` +
          `${figure(differing)} blocks that differ, ${refused} refused as void; ${lost} snapshots lost in the middle, ` +
          `${settled} lives with something to settle, ${ambiguous} metadata snapshots left to a person`,
        { ...nothing, done: `${kills} kills of a kernel that tracks a volume` }
      ]
    }
  },
  ...[undefined, ...labReleases].map((release): Section => ({
    name: `kernels-${release ?? 'own'}`,
    share: 0,
    run: async function* () {
      const files = (await readdir(join(projectFolder, 'test/kernel'))).filter((name) => name.endsWith('.test.ts'))
      for (const file of files) {
        const began = performance.now()
        await showLab(commandFor(join(projectFolder, 'test/kernel', file), []), {}, release)
        yield [`${file}, ${figure((performance.now() - began) / 1000)} s`, nothing]
      }
      yield [
        '',
        {
          ...nothing,
          done: `${files.length} files of kernel tests with the kernel, LVM and tools of ${release ?? 'the machine'}`
        }
      ]
    }
  })),
  kernelTest('lvm-settings', 'lvm-settings', LVM_SETTINGS, 'reports under all lvm.conf'),
  kernelTest(
    'missed-era-looks',
    'missed-blocks-era-looks',
    MISSED_ERA_LOOKS,
    `${figure(MISSED_ERA_LOOKS)} lives of a tracked volume between two looks`
  ),
  kernelTest(
    'era-metadata',
    'era-metadata',
    ERA_STEPS,
    `every era of an era device through ${figure(ERA_STEPS)} steps`
  ),
  kernelTest(
    'era-discards',
    'era-discards',
    ERA_DISCARD_ROUNDS,
    `${figure(ERA_DISCARD_ROUNDS)} rounds of discards at a tracked volume`
  ),
  {
    name: 'nbd',
    share: 0,
    run: async function* ([number = 0], seedOf) {
      const seed = String(seedOf(number))
      await testHere([...avaForLong, 'test/nbd/hostile.test.ts'], {
        NBD_SEED: seed,
        NBD_MESSAGES: String(NBD_MESSAGES)
      })
      console.log(`nbd: ${figure(NBD_MESSAGES)} malformed messages`)
      await testHere([...avaForLong, 'test/nbd/recorded-pool.test.ts'], { NBD_RELEASES: 'sid' })
      const { archives } = await borgArchives()
      const said = await testInLab('nbd', NBD_INCREMENTS, seedOf(number))
      const done = `${figure(NBD_MESSAGES)} malformed NBD messages, ${archives} archives of borg, ${NBD_INCREMENTS} increments of a file system in use`
      yield [said, { ...nothing, done }]
    }
  },
  kernelTest(
    'missed-era-tables',
    'missed-blocks-era-tables',
    ERA_TABLE_ROUNDS,
    `${figure(ERA_TABLE_ROUNDS)} rounds of tables that others load, of late grows and of retention`
  ),
  {
    name: 'era-damage',
    share: 0,
    run: async function* (numbers, seedOf, folder) {
      for (const number of numbers) {
        const random = new Random(seedOf(number))
        const trial = await beginEraTrial(smallEraDevice(random), join(folder, 'era-damage.img'))
        const { image, verdicts } = trial
        const damages = await tryDamages(trial, image.kinds.keys(), random, (block) => eraDamages(image, block, random))
        const done = `${figure(damages)} damages to era metadata`
        yield [`seed ${seedOf(number)}: ${JSON.stringify(verdicts)}`, { ...nothing, done }]
      }
    }
  },
  {
    name: 'mutations',
    share: 0,
    run: async function* ([number = 0], seedOf, folder) {
      const { versions } = await availableEraTools()
      for (let round = 0; round < MUTATION_ROUNDS; round++) {
        const random = new Random(seedOf(number) + round)
        const isThin = round % 2 === 0 || versions.length === 0
        const path = join(folder, 'mutations.img')
        const tally = newTally()
        const faults = isThin
          ? await runCampaign(poolCampaign(random), path, random, MUTATIONS_A_ROUND, tally)
          : await runCampaign(
              eraCampaign(random, versions[round % versions.length]),
              path,
              random,
              MUTATIONS_A_ROUND,
              tally
            )
        if (faults.length > 0) throw new Error(faults.join('\n'))
        const done = `${figure(tally.images)} ${isThin ? 'thin' : 'era'} images with damage under right checksums`
        yield [`seed ${random.seed}: ${JSON.stringify(tally)}`, { ...nothing, done }]
      }
    }
  },
  {
    name: 'cow-mutations',
    share: 0,
    run: async function* ([number = 0], seedOf, folder) {
      const tally: CowTally = new Map()
      for (let round = 0; round < COW_MUTATION_ROUNDS; round++) {
        const random = new Random(seedOf(number) + round)
        const faults = await damageStores(folder, random, COW_MUTATIONS_A_ROUND, tally)
        if (faults.length > 0) throw new Error(`seed ${random.seed}: ${faults.join('\n')}`)
      }
      const done = `${figure(COW_MUTATION_ROUNDS * COW_MUTATIONS_A_ROUND)} damaged stores of classic snapshots`
      yield [`seed ${seedOf(number)}:\n${tallyTable(tally)}\n\n${summaryTable(tally)}`, { ...nothing, done }]
    }
  },
  kernelTest(
    'base-records',
    'base-records',
    RECORD_PAIRS,
    `${figure(RECORD_PAIRS)} pairs of snapshots by the records of their bases, against what the kernel reads`
  ),
  {
    name: 'base-record-damage',
    share: 0,
    run: async function* ([number = 0], seedOf) {
      const environment = { RECORD_DAMAGES: String(RECORD_DAMAGES), RECORD_SEED: String(seedOf(number)) }
      const said = await testHere([...avaForLong, 'test/devicemapper/thin/base-record.test.ts'], environment)
      const done = `${figure(RECORD_DAMAGES)} damaged base records`
      yield [`seed ${seedOf(number)}: ${said}`, { ...nothing, done }]
    }
  },
  {
    name: 'catalog-damage',
    share: 0,
    run: async function* ([number = 0], seedOf) {
      const files = ['database', 'era-snapshots', 'store/kept-pages'].map(
        (each) => `test/agent/catalog/${each}.test.ts`
      )
      const environment = {
        DELTAMAPPER_CATALOG_DAMAGES: String(CATALOG_DAMAGES),
        DELTAMAPPER_CATALOG_SEED: String(seedOf(number))
      }
      const words = [process.execPath, join(projectFolder, 'scripts/ava.mjs'), '--tap', '--timeout=60m', ...files]
      const said = await testHere(words, environment)
      yield [
        `seed ${seedOf(number)}: ${said}`,
        { ...nothing, done: `${figure(CATALOG_DAMAGES)} damages of each kind to a catalog` }
      ]
    }
  },
  {
    name: 'conformance',
    share: 0,
    run: async function* ([number = 0], seedOf) {
      const node = process.execPath
      await testHere([node, join(projectFolder, 'scripts/conformance-table.ts'), '--check'], {})
      yield ['', { ...nothing, done: 'a whole conformance run against every mutant' }]
      const words = [process.execPath, join(projectFolder, 'scripts/ava.mjs'), '--tap', '--timeout=10m']
      const patience = { HOSTILE_PATIENCE: 'command' }
      const said = await testHere([...words, 'test/conformance/hostile.test.ts'], patience)
      yield [said, { ...nothing, done: 'hostile drivers, with all the patience that the command has' }]
      yield [
        await testInLab('conformance', 1, seedOf(number)),
        { ...nothing, done: 'histories of the content rules, on loop devices, thin volumes and tracked volumes' }
      ]
    }
  },
  {
    name: 'cancelled-walks',
    share: 0,
    run: async function* () {
      const words = [process.execPath, join(projectFolder, 'scripts/ava.mjs'), '--tap', '--timeout=30m']
      const said = await testHere([...words, 'test/devicemapper/read-queue.test.ts'], { LAB_COUNT: '10000' })
      yield [said, { ...nothing, done: '10,000 cancelled walks through the kernel queue, of which nothing is left' }]
    }
  },
  {
    name: 'simulation',
    share: 0,
    run: async function* (numbers, seedOf) {
      const [first = 0] = numbers
      const seed = seedOf(first)
      for (const world of worldNames) {
        using catalogs = new Catalogs()
        const lives = SIMULATED_LIVES[world]
        const { failed, turns } = await liveOn(world, seed, lives, catalogs)
        if (failed) throw new Error(`world ${world}, seed ${failed.life.seed}: ${failed.result.violation}`)
        yield [`world ${world}, ${turns} turns`, { ...nothing, done: `${lives} lives of the world ${world}` }]
      }
    }
  },
  {
    name: 'simulated-pools',
    share: 0,
    run: async function* ([number = 0], seedOf) {
      for (const release of ['sid', 'trixie', undefined] as const) {
        const said = await testInLab('simulated-pools', SIMULATED_POOLS, seedOf(number), release)
        const done = `${figure(SIMULATED_POOLS)} lives that a simulated pool and a kernel's went through alike`
        yield [`${release ?? 'own'} kernel, ${said}`, { ...nothing, done }]
        const saidOfEras = await testInLab('simulated-era', SIMULATED_ERAS, seedOf(number), release)
        const doneOfEras = `${figure(SIMULATED_ERAS)} lives that a simulated era device and a kernel's went through alike`
        yield [`${release ?? 'own'} kernel, ${saidOfEras}`, { ...nothing, done: doneOfEras }]
      }
    }
  },
  kernelTest(
    'vanished-bases-kills',
    'vanished-bases-kills',
    VANISHED_BASE_KILLS,
    `${figure(VANISHED_BASE_KILLS)} kills of the agent around the end of an answer whose base goes then`
  ),
  {
    name: 'record-kills',
    share: 0,
    run: async function* ([number = 0], seedOf) {
      const environment = { LAB_SEED: String(seedOf(number)), LAB_COUNT: String(RECORD_KILLS) }
      const said = await testHere([...avaForLong, 'test/agent/bases/kills.test.ts'], environment)
      yield [said, { ...nothing, done: `${figure(RECORD_KILLS)} kills around the end of an answer and its record` }]
    }
  },
  {
    name: 'record-kernel-kills',
    share: 0,
    run: async function* ([number = 0], seedOf) {
      const report = await killKernelsWithBasesThatGo(seedOf(number), RECORD_KERNEL_KILLS, (line) => {
        console.log(line)
      })
      const { kills, right, refused } = report
      yield [
        `seed ${seedOf(number)}: ${right} right afterwards, refused ${JSON.stringify(refused)}`,
        { ...nothing, done: `${kills} kills of a kernel whose bases go` }
      ]
    }
  },
  kernelTest(
    'put-back-pools',
    'put-back-pools',
    PUT_BACK_ROUNDS,
    `${figure(PUT_BACK_ROUNDS)} power cuts and rollbacks of a pool whose base is gone`
  ),
  {
    name: 'backup',
    share: 0,
    run: async function* ([number = 0], seedOf) {
      const seed = String(seedOf(number))
      const kills = { LAB_SEED: seed, LAB_COUNT: String(BACKUP_KILLS) }
      console.log(`backup: ${BACKUP_KILLS} kills`)
      await testHere([...avaForLong, 'test/backup/kills.test.ts'], kills)
      console.log(`backup: ${BACKUP_HISTORIES} volumes that shrink and grow, pruned to the end`)
      await testHere([...avaForLong, 'test/backup/prune.test.ts'], { ...kills, LAB_COUNT: String(BACKUP_HISTORIES) })
      const done = `${BACKUP_KILLS} kills of backups, prunes and restores, ${BACKUP_HISTORIES} volumes pruned to the end`
      yield [`seed ${seed}`, { ...nothing, done }]
    }
  },
  kernelTest(
    'backup-live',
    'backup',
    BACKUP_INCREMENTS,
    `${figure(BACKUP_INCREMENTS)} increments of a file system in use, with the newest snapshot kept and with nothing kept`,
    'trixie'
  ),
  kernelTest(
    'backup-kills',
    'backup-kills',
    BACKUP_LIVE_KILLS,
    `${figure(BACKUP_LIVE_KILLS)} kills of backups, prunes and restores of live volumes, by themselves or with all that they started`,
    'trixie'
  )
]

/** Runs a kernel test with a full count. @returns what it logged */
async function testInLab(name: string, count: number, seed: number, release?: LabRelease): Promise<string> {
  const file = join(projectFolder, `test/kernel/${name}.test.ts`)
  const environment = { LAB_SEED: String(seed), LAB_COUNT: String(count) }
  const output = await showLab(commandFor(file, []), environment, releaseOf(process.env['LAB_RELEASE']) ?? release)
  return `seed ${seed}: ${logged(output)}`
}

/** Runs tests of this machine. @returns what they logged @throws where one fails */
async function testHere([program = '', ...args]: readonly string[], environment: Readonly<Record<string, string>>) {
  const child = spawn(program, args, {
    cwd: projectFolder,
    env: { ...process.env, ...environment },
    stdio: ['ignore', 'pipe', 'inherit']
  })
  let output = ''
  child.stdout.on('data', (chunk: Buffer) => {
    process.stdout.write(chunk)
    output += chunk.toString()
  })
  const [status] = (await once(child, 'close')) as [number | null]
  if (status !== 0) throw new Error(`${args.join(' ')} ended with status ${status}`)
  return logged(output)
}

/** ava's TAP has what a test logs in comments behind its result. */
function logged(output: string): string {
  return (output.match(/^# {3}.*$/gm) ?? []).map((line) => line.slice(4).trim()).join(' ')
}

/** Runs a script of the kernel lab that ends with its report, as JSON. */
async function inLab<Report>(script: string, words: readonly string[], release?: LabRelease): Promise<Report> {
  const output = await showLab([process.execPath, join(projectFolder, script), ...words], {}, release)
  return JSON.parse(output.trim().split('\n').at(-1) ?? '') as Report
}

/** Runs a command in the kernel lab and shows what it prints. @returns its stdout @throws LabFailure unless it succeeds */
async function showLab(
  command: readonly string[],
  environment: Readonly<Record<string, string>> = {},
  release: LabRelease | undefined = releaseOf(process.env['LAB_RELEASE'])
) {
  let output = ''
  const { status } = await runInLab({
    release,
    command,
    environment: { ...labVariables({}), ...environment },
    timeoutSeconds: 6 * 3600,
    onOutput: (stream, chunk) => {
      process[stream].write(chunk)
      if (stream === 'stdout') output += chunk.toString()
    }
  })
  if (status !== 0) throw new LabFailure(`${command.join(' ')} ended with status ${status}`)
  return output
}

/** Bytes flipped in each block, and structures that are wrong under a right checksum. @returns how many damages */
async function tryDamages<Image extends { readonly bytes: Buffer }, Question>(
  trial: DamageTrial<Image, Question>,
  blocks: Iterable<number>,
  random: Random,
  structures: (block: number) => Iterable<Damage>
): Promise<number> {
  let damages = 0
  const expectNone = (faults: readonly string[]) => {
    damages++
    if (faults.length > 0) throw new Error(faults.join('\n'))
  }
  for (const block of blocks) {
    for (let flip = 0; flip < 40; flip++) {
      expectNone(await trial.of(flipByte(block, random.integer(0, BLOCK_BYTES - 1), random.integer(1, 255)), true))
    }
    for (const damage of structures(block)) expectNone(await trial.of(damage))
  }
  trial.end()
  return damages
}

async function soak(seed: number, pools: number, onlySection?: string, onlyPool?: number): Promise<boolean> {
  const folder = await mkdtemp(join(tmpdir(), 'deltamapper-soak-'))
  let total = nothing
  const summary: string[] = []
  const claims: string[] = []
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
          if (one.done !== undefined) claims.push(one.done)
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
  if (total.pools > 0) claims.unshift(`${figure(total.pools)} pools, ${figure(total.pairs)} pairs`)
  console.log(`soak: ${claims.join('; ') || 'no answers compared'}, 0 wrong answers, seed ${seed}`)
  return true
}

/** With commas between thousands. */
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
