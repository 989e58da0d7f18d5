/**
 * Pruning keeps every point that it is to keep, byte for byte, whatever the order in which a volume shrank and grew: with the qemu-img of two
 * releases.
 */
import { existsSync } from 'node:fs'
import { mkdtemp, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import { Chain } from '../../src/backup/chain.ts'
import { finishPrune, prune } from '../../src/backup/prune.ts'
import { toolFolder } from '../support/nbd-clients.ts'
import { Random } from '../support/random.ts'
import { testFolder } from '../support/test-folder.ts'
import { VolumeHistory } from '../support/volume-history.ts'
import { store, unnamedFiles, VOLUME, wrongPoints } from './chain-life.ts'

const folder = testFolder(test)
const { LAB_SEED = '1', LAB_COUNT = '4' } = process.env
const path = process.env['PATH']
const releases = ['bookworm', 'trixie'] as const

/** Sizes that end inside a cluster and a block, at a cluster's end, and where both end. */
const [small, middle, large] = [3 * 65536 + 4608, 7 * 65536, 12 * 65536 + 512]

/** Backs all of it up, and prunes to one point fewer each time. */
async function pruneAll(t: ExecutionContext, release: string, history: VolumeHistory, what: string): Promise<void> {
  process.env['PATH'] = `${toolFolder(release as 'bookworm')}:${path}`
  const root = await mkdtemp(join(folder, 'root-'))
  const chain = await Chain.open(root, VOLUME, 'exclusive')
  for (let at = 0; at < history.count; at++) {
    const { point } = await store(chain, history, at)
    t.is(point.kind, at === 0 ? 'full' : 'increment', `${what}: ${point.full_because}`)
  }
  await chain.close()
  for (let keep = history.count; keep > 0; keep--) {
    const open = await Chain.open(root, VOLUME, 'exclusive')
    const dropped = await prune(open, keep)
    t.is(dropped.length, keep === history.count ? 0 : 1)
    t.is(open.points.length, keep)
    t.is(open.points[0].kind, 'full')
    t.deepEqual(await unnamedFiles(open), [])
    await open.close()
    t.deepEqual(await wrongPoints(root, folder, history), [], `${what}, ${keep} kept`)
  }
}

for (const release of releases) {
  test.serial(`a volume that shrank and grew again brings no old data back (${release})`, async (t) => {
    for (const sizes of [
      [large, small, large],
      [large, small, middle, large, small, large]
    ]) {
      const history = new VolumeHistory({ seed: 7, sizes, blockBytes: 65536 })
      await pruneAll(t, release, history, sizes.join(' '))
    }
  })
}

test.serial('random orders of shrinking and growing, with blocks of 4 KiB to 1 MiB', async (t) => {
  t.timeout(60 * 60_000)
  const random = new Random(Number(LAB_SEED))
  for (let i = 0; i < Number(LAB_COUNT); i++) {
    const release = releases[i % 2]
    const blockBytes = random.pick([4096, 65536, 3 * 65536, 2 ** 20])
    const sizes = Array.from({ length: random.integer(3, 6) }, () => random.pick([small, middle, large]))
    const seed = random.integer(1, 1e9)
    const history = new VolumeHistory({ seed, sizes, blockBytes })
    await pruneAll(t, release, history, `${release}, seed ${seed}, blocks of ${blockBytes}, ${sizes.join(' ')}`)
  }
})

test.serial(
  'several points are dropped at once, and a full backup in the middle ends what has to be merged',
  async (t) => {
    process.env['PATH'] = `${toolFolder('trixie')}:${path}`
    const history = new VolumeHistory({
      seed: 3,
      sizes: [large, middle, large, small, large, large],
      blockBytes: 65536
    })
    const root = await mkdtemp(join(folder, 'root-'))
    const chain = await Chain.open(root, VOLUME, 'exclusive')
    for (let at = 0; at < history.count; at++) await store(chain, history, at, { full: at === 3 })
    t.is((await prune(chain, 3)).length, 3)
    t.is(chain.points[0].kind, 'full')
    t.is((await prune(chain, 1)).length, 2)
    t.deepEqual(await unnamedFiles(chain), [])
    await chain.close()
    t.deepEqual(await wrongPoints(root, folder, history), [])
  }
)

/** The first time that it makes a file smaller, it is killed once the file is shorter, and before its tables are written. */
const killedWhileItCuts = (tools: string, mark: string) => `#!/bin/bash
if [ "$1" = resize ] && [ ! -e ${mark} ]; then
  file=${'$'}{@: -2:1}
  cp "$file" ${mark}
  ${tools}/qemu-img "$@"
  truncate --size "$(stat --format %s "$file")" ${mark}
  cat ${mark} >"$file"
  kill -KILL $$
fi
exec ${tools}/qemu-img "$@"
`

for (const release of releases) {
  test.serial(
    `a prune that is killed while qemu-img makes a file smaller is finished later (${release})`,
    async (t) => {
      const bin = await mkdtemp(join(folder, 'bin-'))
      const mark = join(bin, 'killed')
      await writeFile(join(bin, 'qemu-img'), killedWhileItCuts(toolFolder(release), mark), { mode: 0o755 })
      process.env['PATH'] = `${bin}:${toolFolder(release)}:${path}`
      // (Many clusters behind the cut: they are what the tables still lead to.)
      const history = new VolumeHistory({ seed: 3, sizes: [40 * 65536, small, large], blockBytes: 65536 })
      const root = await mkdtemp(join(folder, 'root-'))
      const chain = await Chain.open(root, VOLUME, 'exclusive')
      for (let at = 0; at < history.count; at++) await store(chain, history, at)
      await t.throwsAsync(prune(chain, 1), { code: 'DM_TOOL_FAILED', message: /status 137/ })
      t.true(existsSync(mark))
      await finishPrune(chain)
      t.deepEqual(await unnamedFiles(chain), [])
      await chain.close()
      t.deepEqual(await wrongPoints(root, folder, history), [])
    }
  )
}
