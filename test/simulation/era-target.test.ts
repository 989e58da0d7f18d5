/** The simulated era device held against Debian's tools: what it writes is intact, and says what was written to in which era. */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import { availableEraTools, eraCheck, eraInvalidate, type EraTools, printedBy } from '../support/era-tools.ts'
import { Random } from '../support/random.ts'
import { testFolder } from '../support/test-folder.ts'
import { BLOCK_SECTORS, eraLifeOf, LivedEra, METADATA_BLOCKS } from './kernel/era-target-life.ts'
import { EraTarget } from './kernel/era-target.ts'
import { MetadataDisk } from './metadata/disk.ts'

const folder = testFolder(test)
let versions: EraTools[] = []
test.before(async (t) => {
  t.timeout(600_000)
  const available = await availableEraTools()
  versions = available.versions
  t.true(versions.length > 0, available.unavailable.join('; '))
})

/** The era of each block's last write, by what was done. */
class Truth {
  era = 1
  readonly #last = new Map<number, number>()

  write(block: number): void {
    this.#last.set(block, this.era)
  }

  /** What is cut off is gone, and comes back as never written to. */
  resize(blocks: number): void {
    for (const block of this.#last.keys()) if (block >= blocks) this.#last.delete(block)
  }

  /** Blocks written to since an era, but for those of the current one. */
  since(era: number): number[] {
    return [...this.#last]
      .filter(([, last]) => last >= era && last < this.era)
      .map(([block]) => block)
      .sort((a, b) => a - b)
  }

  lastOf(block: number): number {
    return this.#last.get(block) ?? 0
  }
}

async function isAsItWas(t: ExecutionContext, { disk, target }: LivedEra, truth: Truth, name: string) {
  for (const tools of versions) {
    if (tools.version === '0.9.0' && target.hasElementsLeft) continue
    const path = join(folder, `${name}-${tools.version}`)
    writeFileSync(path, disk.toBuffer())
    t.is(await eraCheck(tools, path), '', name)
    const dump = await printedBy(tools, 'era_dump', [path])
    t.is(Number(/current_era="(\d+)"/.exec(dump)?.[1]), truth.era, name)
    const archived = [...dump.matchAll(/<writeset era="(\d+)"/g)].filter(([, era]) => Number(era) < truth.era)
    // (1.1.0 lists nothing then.)
    if (tools.version === '1.1.0' && archived.length === 0) continue
    for (const era of [1, Math.max(1, truth.era - 1), Math.max(1, truth.era - 4)]) {
      t.deepEqual(await eraInvalidate(tools, path, era), truth.since(era), `${name} since ${era}`)
    }
  }
}

for (let seed = 1; seed <= 4; seed++) {
  test(`era_check, era_dump and era_invalidate find what was written (seed ${seed})`, async (t) => {
    const { blocks, steps } = eraLifeOf(seed)
    const disk = new MetadataDisk(METADATA_BLOCKS)
    const lived = new LivedEra(disk, blocks)
    const truth = new Truth()
    let isHeld = false
    for (const [i, step] of steps.entries()) {
      const said = lived.do(step)
      if (step.kind === 'write') for (const block of step.blocks) truth.write(block)
      if (step.kind === 'resize') truth.resize(step.blocks)
      if (step.kind === 'take_metadata_snap' || step.kind === 'drop_metadata_snap') {
        const takes = step.kind === 'take_metadata_snap'
        t.is(said, takes === isHeld ? 'EINVAL' : '')
        if (takes && !isHeld) truth.era++
        isHeld = takes
      }
      if (['checkpoint', 'suspend', 'reactivate', 'resize'].includes(step.kind)) truth.era++
      for (const block of [0, blocks >> 1]) {
        if (block < lived.target.blocks) t.is(lived.target.lastEra(block), truth.lastOf(block))
      }
      if (i % 16 === 15) await isAsItWas(t, lived, truth, `era-${seed}-${i}`)
    }
    lived.do({ kind: 'reactivate' })
    truth.era++
    await isAsItWas(t, lived, truth, `era-${seed}`)
  })
}

for (let seed = 1; seed <= 8; seed++) {
  test(`after a power cut in the middle of a commit, no write that came through is forgotten (seed ${seed})`, async (t) => {
    const random = new Random(seed)
    const disk = new MetadataDisk(METADATA_BLOCKS)
    const table = { blockSectors: BLOCK_SECTORS, blocks: 2500 }
    let target = EraTarget.load(disk, table)
    const written = new Map<number, number>()
    for (let boot = 0; boot < 4; boot++) {
      target.resume()
      for (let i = 0; i < 60; i++) {
        const block = random.integer(0, table.blocks - 1)
        const era = target.currentEra
        target.write(block, () => written.set(block, era))
        if (random.chance(0.2)) target.message('checkpoint')
        if (random.chance(0.1))
          target.message(target.metadataSnapshot === 0 ? 'take_metadata_snap' : 'drop_metadata_snap')
        for (let steps = random.integer(0, 8); steps > 0; steps--) target.step(random)
        if (random.chance(0.1)) target.writeBack(random)
      }
      for (let steps = random.integer(0, 12); steps > 0; steps--) target.step(random)
      disk.crash(random)
      target = EraTarget.load(disk, table)
      for (const tools of versions) {
        const path = join(folder, `crashed-${seed}-${boot}-${tools.version}`)
        writeFileSync(path, disk.toBuffer())
        t.is(await eraCheck(tools, path), '')
      }
    }
    target.resume()
    for (const [block, era] of written) t.true(target.lastEra(block) >= era, `block ${block}, written in era ${era}`)
    t.true(written.size > 50)
  })
}
