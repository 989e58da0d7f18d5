/**
 * The simulated era device held to the kernel's: the same lives, without faults, have to give the same status lines and metadata.
 * Runs inside the kernel lab: node test/lab/run.ts test/kernel/simulated-era.test.ts
 *
 * LAB_COUNT lives from LAB_SEED on; `npm run soak -- --section simulated-pools` has the full count, on each kernel.
 */
import { writeFileSync } from 'node:fs'
import { isDeepStrictEqual } from 'node:util'
import test from 'ava'
import { eraLifeOf, type EraLife, LivedEra, METADATA_BLOCKS } from '../simulation/kernel/era-target-life.ts'
import { MetadataDisk } from '../simulation/metadata/disk.ts'
import { decodeEraSuperblock } from '../simulation/metadata/era-superblock.ts'
import { run } from './dmsetup.ts'
import { KernelEra } from './kernel-era.ts'

const lives = Number(process.env['LAB_COUNT'] ?? 2)
const firstSeed = Number(process.env['LAB_SEED'] ?? 1)
/** How often a life is lived that differs: the kernel's worker may have been at work when it was taken for idle. */
const MOST_TRIES = 4

const kernel = new KernelEra()
test.after.always(() => kernel.close())

test('a simulated era device is what the kernel makes of the same life', async (t) => {
  t.timeout(7_200_000)
  let again = 0
  for (let seed = firstSeed; seed < firstSeed + lives; seed++) {
    let difference: string | undefined = 'not lived'
    for (let tries = 0; difference !== undefined && tries < MOST_TRIES; tries++) {
      if (tries > 0) again++
      difference = await liveBoth(eraLifeOf(seed))
      if (difference !== undefined) t.log(`seed ${seed}: ${difference}`)
    }
    t.is(difference, undefined, `seed ${seed}`)
  }
  t.log(`${lives} lives from seed ${firstSeed} on, ${again} begun anew`)
})

/** @returns what differs */
async function liveBoth({ blocks, steps }: EraLife): Promise<string | undefined> {
  const disk = new MetadataDisk(METADATA_BLOCKS)
  await kernel.format(blocks)
  const simulated = new LivedEra(disk, blocks)
  for (const [i, step] of steps.entries()) {
    const says = [await kernel.do(step), simulated.do(step)]
    const what = `after step ${i}, ${JSON.stringify(step).slice(0, 100)}`
    if (says[0] !== says[1]) return `${what}: the kernel says ${says[0]}, the simulation ${says[1]}`
    const superblocks = [kernel.superblock(), disk.read(0)].map((bytes) => decodeEraSuperblock(bytes, 0))
    if (isDeepStrictEqual(superblocks[0], superblocks[1])) continue
    const [real, ours] = superblocks.map((each) => JSON.stringify(each))
    return `${what}: the kernel's superblock is ${real}, simulated ${ours}`
  }
  return differentMetadata(simulated)
}

/** (On devices: older tools read nothing from memory.) */
async function differentMetadata(simulated: LivedEra): Promise<string | undefined> {
  await kernel.deactivate()
  simulated.suspend()
  const both = [kernel.metadata, kernel.spare]
  writeFileSync(kernel.spare, simulated.disk.toBuffer())
  for (const each of both) run('era_check', ['-q', each])
  const [real, ours] = both.map((each) => run('era_dump', [each]).split('\n'))
  const line = real?.findIndex((text, at) => text !== ours?.[at]) ?? -1
  return line < 0 ? undefined : `line ${line} of era_dump: ${real?.[line]}, simulated ${ours?.[line]}`
}
