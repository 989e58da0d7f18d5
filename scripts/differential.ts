/**
 * Our own reading of metadata against Debian's tools, both versions, on any number of random pools: every pair of devices and what each has
 * allocated. Ends with one line of figures. The first disagreement is made small and kept; exit status 1 then.
 *
 *   npm run differential -- [--seed S] [--pools N] [--devices N] [--out FOLDER] [--again FOLDER]
 */
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { projectFolder } from '../test/lab/boot.ts'
import { LabUnavailable } from '../test/lab/packages.ts'
import {
  addTallies,
  askKept,
  compareEngines,
  EnginesDisagree,
  keepSmall,
  noTally
} from '../test/support/differential.ts'
import { kernelPools } from '../test/support/kernel-pool.ts'
import { restoredPool, type TestPool, writtenPool } from '../test/support/random-pool.ts'
import { type TestedVersion, toolCommands, toolVersions } from '../test/support/tool-commands.ts'
import type { ToolCommand } from '../src/devicemapper/tools/tool.ts'
import { figure, wholeNumber } from './figures.ts'

const usage = `usage: differential [--seed S] [--pools N] [--devices N] [--out FOLDER] [--again FOLDER]
  --seed S         another seed, other pools (default 1)
  --pools N        how many (default 100): one in 50 made by a kernel, one in 4 by thin_restore
  --devices N      at most so many devices of each, in all pairs (default 7)
  --out FOLDER     where a disagreement is kept (default .cache/differential)
  --again FOLDER   only asks what was kept in this folder once more
`
const KERNEL_MADE = 50
const RESTORED = 4
/** Kernel-made pools are made by the dozen, in one boot of the lab. */
const KERNEL_POOLS_AT_ONCE = 10
const PROGRESS_EVERY = 50
/** Pools that are asked about at once: the tools read past the page cache, and mostly wait. */
const AT_ONCE = 4

/** The pools, one after the other. Those in `folder` are for whoever takes them to remove. */
async function* pools(seed: number, count: number, folder: string): AsyncGenerator<TestPool> {
  const ofKernel = Math.floor(count / KERNEL_MADE)
  for (let made = 0; made < ofKernel; made += KERNEL_POOLS_AT_ONCE) {
    const views = await kernelPools(seed * 100_000 + made, Math.min(KERNEL_POOLS_AT_ONCE, ofKernel - made))
    // One view of each: the metadata snapshot where one is held, and the live pool else.
    for (const [view] of views) yield view
  }
  let next = seed * 100_000
  for (let made = ofKernel; made < count; next++) {
    const pool = await (next % RESTORED === 0 ? restoredPool(next, folder) : writtenPool(next, folder))
    // Nodes that the tools do not take are for other tests.
    if (pool.readableByTools) {
      yield pool
      made++
    } else await rm(pool.path)
  }
}

async function differential(
  commands: Record<TestedVersion, ToolCommand>,
  { seed, count, devices, out }: { seed: number; count: number; devices: number; out: string }
): Promise<boolean> {
  const folder = await mkdtemp(join(tmpdir(), 'deltamapper-differential-'))
  const started = performance.now()
  const asked = Object.fromEntries(toolVersions.map((version) => [version, 0]))
  let tally = noTally
  let done = 0
  try {
    const all = pools(seed, count, folder)
    const compareOne = async (pool: TestPool, version: TestedVersion, order: number) => {
      const some = { ...pool, deviceIds: pool.deviceIds.slice(0, devices) }
      const one = await compareEngines(some, commands[version], seed + order)
      tally = addTallies(tally, one)
      if (pool.path.startsWith(folder)) await rm(pool.path)
      asked[version]++
      if (++done % PROGRESS_EVERY === 0) console.log(`${done}/${count}: ${describe(tally)}`)
    }
    let taken = 0
    let found: { error: EnginesDisagree; version: TestedVersion } | undefined
    const compareMany = async () => {
      while (found === undefined) {
        const next = await all.next()
        if (next.done) return
        // In turn: the pools are many enough for either.
        const order = taken++
        const version = toolVersions[order % toolVersions.length]
        await compareOne(next.value, version, order).catch((error: unknown) => {
          if (!(error instanceof EnginesDisagree)) throw error
          found ??= { error, version }
        })
      }
    }
    await Promise.all(Array.from({ length: AT_ONCE }, compareMany))
    if (found !== undefined) {
      const { error, version } = found
      console.error(error.message)
      const { folder: kept, mappings } = await keepSmall(error, commands[version], out)
      const size = mappings === undefined ? 'the whole pool' : `${mappings} mappings`
      console.error(`kept in ${kept} (${size}); again: npm run differential -- --again ${kept}`)
      console.log(`differential: stopped at a disagreement with ${version} after ${done} pools, seed ${seed}`)
      return false
    }
  } finally {
    await rm(folder, { recursive: true })
  }
  const versions = toolVersions.map((version) => `${asked[version]} with ${version}`).join(', ')
  const seconds = ((performance.now() - started) / 1000).toFixed(0)
  console.log(
    `differential: ${figure(done)} pools (${versions}), ${describe(tally)}, 0 disagreements, seed ${seed}, ${seconds} s`
  )
  return true
}

function describe({ pairs, answers, extents, sameBeyondBase }: typeof noTally): string {
  return (
    `${figure(pairs)} pairs, ${figure(answers)} answers, ${figure(extents)} extents, ` +
    `expected of thin_delta: ${figure(sameBeyondBase)} blocks beyond a shrunk base called the same`
  )
}

try {
  const { values } = parseArgs({
    options: {
      seed: { type: 'string', default: '1' },
      pools: { type: 'string', default: '100' },
      devices: { type: 'string', default: '7' },
      out: { type: 'string', default: join(projectFolder, '.cache/differential') },
      again: { type: 'string' },
      help: { type: 'boolean' }
    }
  })
  const settings = {
    seed: wholeNumber(values.seed),
    count: wholeNumber(values.pools),
    devices: wholeNumber(values.devices),
    out: values.out
  }
  const commands = values.help ? '' : await toolCommands()
  if (values.help) console.log(usage)
  else if (typeof commands === 'string') throw new LabUnavailable(commands)
  else if (values.again !== undefined) {
    for (const version of toolVersions) {
      const { agreed, says } = await askKept(values.again, commands[version])
      console.log(`${version}: ${says}`)
      if (!agreed) process.exitCode = 1
    }
  } else process.exitCode = (await differential(commands, settings)) ? 0 : 1
} catch (error) {
  console.error(error instanceof LabUnavailable ? error.message : error)
  if (!(error instanceof LabUnavailable)) console.error(`\n${usage}`)
  process.exitCode = 2
}
