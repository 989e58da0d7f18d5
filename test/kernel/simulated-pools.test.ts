/**
 * The simulated thin pool held to the kernel's: the same lives, without faults, have to give the same status lines, content and metadata.
 * Runs inside the kernel lab: node test/lab/run.ts test/kernel/simulated-pools.test.ts
 *
 * LAB_COUNT lives from LAB_SEED on; `npm run soak -- --section simulated-pools` has the full count, on each kernel.
 */
import { writeFileSync } from 'node:fs'
import { isDeepStrictEqual } from 'node:util'
import test from 'ava'
import { DataDevice, ThinPool } from '../simulation/kernel/thin-pool.ts'
import {
  commits,
  DATA_BLOCKS,
  doTo,
  METADATA_BLOCKS,
  poolLifeOf,
  type PoolStep
} from '../simulation/kernel/pool-life.ts'
import { decodeSuperblock } from '../simulation/metadata/blocks.ts'
import { MetadataDisk } from '../simulation/metadata/disk.ts'
import { run } from './dmsetup.ts'
import { KernelPool } from './kernel-pool.ts'

const lives = Number(process.env['LAB_COUNT'] ?? 6)
const firstSeed = Number(process.env['LAB_SEED'] ?? 1)
/** How often a life is begun anew because the kernel committed in the middle of a step, as it does once a second. */
const MOST_TRIES = 20

const kernel = new KernelPool()
test.after.always(() => kernel.close())

test('a simulated pool is what the kernel makes of the same life', async (t) => {
  t.timeout(7_200_000)
  let [again, compared] = [0, 0]
  for (let seed = firstSeed; seed < firstSeed + lives; seed++) {
    const steps = poolLifeOf(seed)
    let difference: string | undefined = 'interrupted'
    for (let tries = 0; difference === 'interrupted' && tries < MOST_TRIES; tries++) {
      if (tries > 0) again++
      difference = await liveBoth(steps, { takesDiscards: seed % 2 === 0 })
    }
    // A step that takes a second is always interrupted: the machine is too slow for this life.
    if (difference === 'interrupted') continue
    t.is(difference, undefined, `seed ${seed}`)
    compared++
  }
  t.log(`${compared} of ${lives} lives from seed ${firstSeed} on, ${again} begun anew`)
  t.true(compared > 0)
})

/** @returns what differs; `interrupted` where nobody can say what the kernel had done when it committed by itself */
async function liveBoth(steps: readonly PoolStep[], options: { takesDiscards: boolean }): Promise<string | undefined> {
  const disk = new MetadataDisk(METADATA_BLOCKS)
  let pool = ThinPool.format(disk, new DataDevice(DATA_BLOCKS, options))
  await kernel.format(options)
  let version = 1
  let last = kernel.superblock()
  for (const [i, step] of steps.entries()) {
    const hasCommitted = await kernel.doAndCompare(step, version, last)
    const now = kernel.superblock()
    if (hasCommitted || (!commits(step) && !now.equals(last))) return 'interrupted'
    last = now
    doTo(pool, step, version)
    if (step.kind === 'reload') pool = ThinPool.load(disk, pool.data)
    if (step.kind === 'write') version += step.blocks.length
    if (!commits(step)) continue
    const status = await kernel.status()
    const what = `after step ${i}, ${JSON.stringify(step).slice(0, 100)}`
    if (status !== pool.status.trim()) return `${what}: the kernel says ${status}, the simulation ${pool.status}`
    const [real, simulated] = [kernel.superblock(), disk.read(0)].map((bytes) => decodeSuperblock(bytes, 0))
    if (!isDeepStrictEqual(real, simulated)) {
      return `${what}: the kernel's superblock is ${JSON.stringify(real)}, simulated ${JSON.stringify(simulated)}`
    }
  }
  return (await differentContent(pool)) ?? (await differentMetadata(disk))
}

async function differentContent(pool: ThinPool): Promise<string | undefined> {
  for (const id of pool.ids.slice(-2)) {
    const held = await kernel.content(id)
    const block = held.findIndex((version, at) => version !== pool.read(id, at))
    if (block >= 0) return `block ${block} of device ${id} holds ${held[block]}, simulated ${pool.read(id, block)}`
  }
  return undefined
}

/** (On devices: older tools read nothing from memory.) */
async function differentMetadata(disk: MetadataDisk): Promise<string | undefined> {
  await kernel.deactivate()
  const both = [kernel.metadata, kernel.spare]
  writeFileSync(kernel.spare, disk.toBuffer())
  for (const each of both) run('thin_check', ['-q', each])
  const [real, simulated] = both.map((each) => run('thin_dump', [each]).split('\n'))
  const line = real?.findIndex((text, at) => text !== simulated?.[at]) ?? -1
  return line < 0 ? undefined : `line ${line} of thin_dump: ${real?.[line]}, simulated ${simulated?.[line]}`
}
