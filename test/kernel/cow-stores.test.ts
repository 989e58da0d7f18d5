/**
 * What the stores of classic LVM snapshots say, on a real kernel: all that changed, and while they are written to. Runs inside the kernel lab:
 * node test/lab/run.ts test/kernel/cow-stores.test.ts
 */
import { once } from 'node:events'
import { Worker } from 'node:worker_threads'
import test from 'ava'
import { type CowStore, openCowStore } from '../../src/devicemapper/cow/cow-store.ts'
import { changed, type SnapshotStore } from '../../src/devicemapper/cow/delta.ts'
import { countedEntries, parseCowStatus } from '../../src/devicemapper/cow/status.ts'
import { parseCowTable } from '../../src/devicemapper/cow/table.ts'
import { collectExtents } from '../support/collect-extents.ts'
import type { Extent } from '../support/expected.ts'
import { type AskPair, CowLife, MEBIBYTE } from './cow-life.ts'
import { deviceBytes, run } from './dmsetup.ts'
import { labRun } from './lab-run.ts'
import { createGroup, lvm, prepareLvm } from './lvm-setup.ts'

prepareLvm()
const group = 'cow'
createGroup(group, '/dev/ubda')

/** Opens a snapshot's store as the kernel counts it now. */
async function openCounted(name: string): Promise<SnapshotStore & { store: CowStore }> {
  const store = await openCowStore(`/dev/mapper/${group}-${name}-cow`)
  return { store, sizeBytes: deviceBytes(`/dev/${group}/${name}`), counted: countOf(name, store) }
}

/** How many entries the kernel says that a store has now. */
function countOf(name: string, store: CowStore): number | undefined {
  const [, , , line] = /^(\d+) (\d+) snapshot (.*)$/.exec(run('dmsetup', ['status', `${group}-${name}`]).trim()) ?? []
  const status = parseCowStatus(line)
  return status.state === 'working' ? countedEntries(status, store.header) : undefined
}

const askStores: AskPair = async (base, target) => {
  const opened: (SnapshotStore & { store: CowStore })[] = []
  try {
    for (const { name } of [base, target]) opened.push(await openCounted(name))
    const compare = { bytes: Infinity, equal: 0, different: 0, left: 0 }
    const isComparable = base.readOnly && target.readOnly
    const extents = await collectExtents(
      changed({ base: opened[0], target: opened[1], ...(isComparable && { compare }) })
    )
    for (const [i, { name }] of [base, target].entries()) {
      const { store, counted = NaN } = opened[i]
      const { entries } = await store.list()
      const now = countOf(name, store) ?? NaN
      // (A mounted file system writes its journal whenever it likes.)
      if (!(counted <= entries && entries <= now)) {
        throw new Error(`${store.path} has ${entries} entries, the kernel said ${counted} before and says ${now} now`)
      }
    }
    return extents
  } finally {
    for (const { store } of opened) await store.close()
  }
}

test.serial('random lives, raw and with ext4: every incremental restore is right or refused', async (t) => {
  t.timeout(600_000)
  const { random: seeds, count, again } = labRun(2)
  const counts: unknown[] = []
  for (let round = 0; round < count; round++) {
    const random = seeds.fork()
    const life = new CowLife(group, `o${round}`, random, { ext4: round % 2 === 1 })
    try {
      life.live(5)
      await life.check(askStores)
      if (life.mergeable.length > 0) life.merge(random.pick(life.mergeable))
      life.write()
      life.take()
      life.write()
      await life.check(askStores)
    } catch (error) {
      throw new Error(`round ${round} of ${again}: ${(error as Error).stack}`, { cause: error })
    }
    counts.push(life.counts)
    life.end()
  }
  t.log(JSON.stringify(counts))
  t.pass()
})

test.serial(
  'a store that is written to while it is read: nothing finished is missing, nothing is taken for damage',
  async (t) => {
    const blocks = 4096
    lvm('lvcreate', '--size', '16m', '--name', 'busy', group)
    lvm('lvcreate', '--snapshot', '--size', '24m', '--chunksize', '4k', '--name', 'busy1', `${group}/busy`)
    const written = new Uint8Array(new SharedArrayBuffer(blocks + 1))
    const worker = new Worker(new URL('cow-writer.ts', import.meta.url), {
      workerData: { device: `/dev/${group}/busy`, written, seed: labRun(1).random.seed }
    })
    await once(worker, 'message')
    const { chunkSectors } = parseCowTable(
      run('dmsetup', ['table', `${group}-busy1`])
        .trim()
        .split(' ')
        .slice(3)
        .join(' ')
    )
    t.is(chunkSectors, 8)
    let readings = 0
    for (let seen = 0; seen < blocks; readings++) {
      const finished = Uint8Array.from(written)
      seen = finished.subarray(0, blocks).reduce((sum, each) => sum + each, 0)
      const base = await openCounted('busy1')
      const missing = (extents: readonly Extent[]) => {
        const found = new Set(
          extents.flatMap(([offset, size]) => Array.from({ length: size / 4096 }, (_, i) => offset / 4096 + i))
        )
        return [...finished.subarray(0, blocks).entries()].filter(([block, is]) => is && !found.has(block))
      }
      t.deepEqual(missing(await collectExtents(changed({ base }))), [])
      // Without the kernel's count, as by hand.
      t.deepEqual(missing(await collectExtents(changed({ base: { ...base, counted: undefined } }))), [])
      await base.store.close()
    }
    await worker.terminate()
    t.log(`${readings} readings while ${blocks} chunks were written to`)
    t.true(readings > 5)
    t.is(16 * MEBIBYTE, blocks * 4096)
  }
)
