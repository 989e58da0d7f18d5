/**
 * Classic LVM snapshots through the agent: every incremental restore is byte-exact or refused with the right code, whatever becomes of snapshots,
 * names, tables and stores. Runs inside the kernel lab: node test/lab/run.ts test/kernel/classic-snapshots.test.ts
 */
import { closeSync, constants, openSync, writeSync } from 'node:fs'
import test from 'ava'
import type { Extent } from '../support/expected.ts'
import { answerTo, failure } from './ask.ts'
import { type AskPair, contentOf, CowLife, MEBIBYTE } from './cow-life.ts'
import { alignedBuffer, createDevice, deviceBytes, reloadDevice, removeDevice, run } from './dmsetup.ts'
import { labRun } from './lab-run.ts'
import { LiveAgent } from './live-agent.ts'
import { createGroup, lvm, prepareLvm } from './lvm-setup.ts'

prepareLvm()
const group = 'classic'
createGroup(group, '/dev/ubda')
const agent = await LiveAgent.start({ config: { logLevel: 'info' } })
const client = agent.client()
test.after.always(async () => agent.stop())

const handle = (name: string) => `${group}/${name}`
const served = new Set<string>()

/** Serves it as a target, as the full backup that makes it a base does. */
async function serve(name: string): Promise<void> {
  const extents = await answerTo(client, { target: handle(name) })
  const size = deviceBytes(`/dev/${group}/${name}`)
  if (JSON.stringify(extents) !== JSON.stringify([[0, size]])) throw new Error(`${name}: ${JSON.stringify(extents)}`)
}

const delta = (base: string, target: string) => answerTo(client, { base: handle(base), target: handle(target) })
const refusal = async (base: string, target: string) => (await failure(delta(base, target))).code

const { random: seeds, count, again } = labRun(1)
const ask: AskPair = async (base, target) => {
  for (const each of [base, target]) {
    if (served.has(each.name) || each.lost !== undefined) continue
    served.add(each.name)
    await serve(each.name)
  }
  return delta(base.name, target.name)
}
for (let round = 0; round < count; round++) {
  const random = seeds.fork()
  test.serial(`random life ${round}, ${round % 2 === 1 ? 'with ext4' : 'raw'}, through the agent`, async (t) => {
    t.timeout(600_000)
    const life = new CowLife(group, `o${round}`, random, { ext4: round % 2 === 1, prefix: `r${round}-` })
    try {
      life.live(4)
      await life.check(ask)
      life.merge(random.pick(life.snapshots.filter(({ lost }) => lost === undefined)))
      life.take()
      life.write()
      await life.check(ask)
    } catch (error) {
      throw new Error(`round ${round} of ${again}: ${(error as Error).stack}`, { cause: error })
    }
    t.log(JSON.stringify(life.counts))
    t.pass()
    life.end()
  })
}

const buffer = alignedBuffer(MEBIBYTE)
let filler = 1

/** Writes what was nowhere before. @returns the chunks of 4 KiB */
function write(device: string, chunk: number, chunks = 1): Extent {
  buffer.fill(filler++ % 251)
  const file = openSync(device, constants.O_WRONLY | constants.O_DIRECT | constants.O_SYNC)
  writeSync(file, buffer, 0, chunks * 4096, chunk * 4096)
  closeSync(file)
  return [chunk * 4096, chunks * 4096]
}

function volume(name: string): string {
  lvm('lvcreate', '--size', '4m', '--wipesignatures', 'n', '--name', name, group)
  return `/dev/${group}/${name}`
}

function snapshot(origin: string, name: string, ...options: string[]): void {
  const rest = options.length > 0 ? options : ['--permission', 'r']
  lvm('lvcreate', '--snapshot', '--size', '5m', '--chunksize', '4k', ...rest, '--name', name, handle(origin))
}

test.serial(
  'what was written after the target is told apart by its old content, where nobody could write into the base',
  async (t) => {
    const device = volume('exact')
    snapshot('exact', 'e1')
    snapshot('exact', 'e1w', '--permission', 'rw')
    const changed = write(device, 10)
    await serve('e1')
    await serve('e1w')
    snapshot('exact', 'e2')
    const later = write(device, 20)
    t.deepEqual(await delta('e1', 'e2'), [changed])
    t.deepEqual(await delta('e1w', 'e2'), [changed, later])
    t.deepEqual(await delta('e1', 'e1'), [])
    // Somebody who writes the target's content into the base, and makes it read-only again, is not believed.
    lvm('lvchange', '--permission', 'rw', handle('e1'))
    t.deepEqual(await delta('e1', 'e2'), [changed, later])
    lvm('lvchange', '--permission', 'r', handle('e1'))
    t.deepEqual(await delta('e1', 'e2'), [changed, later])
    const e3 = 'e3'
    snapshot('exact', e3)
    t.deepEqual(await delta('e2', e3), [later])
  }
)

test.serial('split off and joined again: refused, also where it was never served', async (t) => {
  t.timeout(600_000)
  const device = volume('split')
  for (const name of ['p1', 'p2']) snapshot('split', name)
  await serve('p1')
  for (const name of ['p1', 'p2']) {
    lvm('lvconvert', '--splitsnapshot', handle(name))
    write(device, 30)
    lvm('lvconvert', '--type', 'snapshot', '-Zn', '--chunksize', '4k', handle('split'), handle(name))
  }
  snapshot('split', 'p3')
  t.is(await refusal('p1', 'p3'), 'DM_COW_REJOINED')
  await serve('p1')
  t.is(await refusal('p1', 'p3'), 'DM_COW_REJOINED')
})

test.serial('a name that goes to another snapshot', async (t) => {
  t.timeout(600_000)
  const device = volume('rotated')
  snapshot('rotated', 'last')
  await serve('last')
  write(device, 40)
  lvm('lvremove', handle('last'))
  snapshot('rotated', 'last')
  snapshot('rotated', 'next')
  t.is(await refusal('last', 'next'), 'DM_BASE_CHANGED')
  lvm('lvrename', handle('last'), handle('other'))
  const changed = write(device, 41)
  snapshot('rotated', 'third')
  t.deepEqual(await delta('other', 'third'), [changed])
})

test.serial('mixed up, gone, or no snapshot at all', async (t) => {
  t.timeout(600_000)
  volume('mixed')
  const device = volume('mixed2')
  snapshot('mixed', 'm1')
  snapshot('mixed2', 'm2')
  t.is(await refusal('m1', 'm2'), 'DM_VOLUMES_DIFFER')
  t.is(await refusal('m1', 'nothing'), 'DM_SNAPSHOT_NOT_FOUND')
  const { code, remedy } = await failure(delta('m1', 'mixed'))
  t.is(code, 'DM_VOLUME_IN_USE')
  t.regex(remedy, /lvcreate -s -L/)
  t.is((await failure(answerTo(client, { target: handle('mixed') }))).code, 'DM_VOLUME_IN_USE')
  write(device, 1)
  lvm('lvchange', '--activate', 'n', handle('mixed2'))
  t.is((await failure(answerTo(client, { target: handle('m2') }))).code, 'DM_COW_INACTIVE')
  lvm('lvchange', '--activate', 'y', handle('mixed2'))
  await serve('m2')
})

test.serial(
  'an answer cannot go on from an offset about another snapshot, or one that can be written to',
  async (t) => {
    const device = volume('resumed')
    snapshot('resumed', 'r1')
    write(device, 5)
    snapshot('resumed', 'r2')
    snapshot('resumed', 'r3', '--permission', 'rw')
    const from = async (target: string) => {
      const options = { baseSnapshotId: handle('r1'), targetSnapshotId: handle(target), startingOffset: 8192 }
      const extents: Extent[] = []
      for await (const { count, offsets, sizes } of (await client.delta(options)).batches) {
        for (let i = 0; i < count; i++) extents.push([offsets[i], sizes[i]])
      }
      return extents
    }
    t.is((await failure(from('r2'))).code, 'DM_RESUME_REFUSED')
    await delta('r1', 'r2')
    t.deepEqual(await from('r2'), [[5 * 4096, 4096]])
    await delta('r1', 'r3')
    t.is((await failure(from('r3'))).code, 'DM_RESUME_REFUSED')
  }
)

test.serial('tables changed by hand: refused', async (t) => {
  t.timeout(600_000)
  const device = volume('hand')
  snapshot('hand', 'h1')
  write(device, 3)
  snapshot('hand', 'h2')
  await serve('h1')
  // Something on the untouched origin, beside the origin.
  createDevice('beside', `0 8192 linear /dev/mapper/${group}-hand-real 0`)
  t.is(await refusal('h1', 'h2'), 'DM_COW_DETACHED')
  removeDevice('beside')
  t.is((await delta('h1', 'h2')).length, 1)
  // The origin without its snapshot-origin target: writes are in no store.
  reloadDevice(`${group}-hand`, `0 8192 linear /dev/mapper/${group}-hand-real 0`)
  t.is(await refusal('h1', 'h2'), 'DM_COW_DETACHED')
  reloadDevice(`${group}-hand`, `0 8192 snapshot-origin /dev/mapper/${group}-hand-real`)
  // The store of another snapshot, and one in memory.
  const table = (store: string, kind: string) => `0 8192 snapshot /dev/mapper/${group}-hand-real ${store} ${kind} 8`
  const own = `/dev/mapper/${group}-h1-cow`
  createDevice('scratch', `0 8192 linear /dev/mapper/${group}-h1-cow 0`)
  reloadDevice(`${group}-h1`, table('/dev/mapper/scratch', 'N'))
  t.is(await refusal('h1', 'h2'), 'DM_COW_TRANSIENT')
  reloadDevice(`${group}-h1`, table(own, 'P'))
  removeDevice('scratch')
  t.is((await delta('h1', 'h2')).length, 1)
})

test.serial('tables of two stores swapped: a list does not begin as it did', async (t) => {
  t.timeout(600_000)
  const device = volume('swap')
  snapshot('swap', 'w1')
  write(device, 1)
  await serve('w1')
  snapshot('swap', 'w2')
  const changed = write(device, 2)
  snapshot('swap', 'w3')
  t.deepEqual(await delta('w1', 'w3'), [[4096, 4096 + changed[1]]])
  const stores = ['w1', 'w2'].map((name) => run('dmsetup', ['table', `${group}-${name}-cow`]).trim())
  lvm('lvchange', '--activate', 'n', handle('swap'))
  lvm('lvchange', '--activate', 'y', handle('swap'))
  for (const [i, name] of ['w1', 'w2'].entries()) {
    run('dmsetup', ['suspend', `${group}-${name}`])
    reloadDevice(`${group}-${name}-cow`, stores[1 - i])
    run('dmsetup', ['resume', `${group}-${name}`])
  }
  // The kernel goes on with the list that it has in memory, so that its count may not be that of the other store either.
  const code = await refusal('w1', 'w3')
  t.true(code === 'DM_BASE_CHANGED' || code === 'DM_METADATA_DAMAGED', code)
  lvm('lvchange', '--activate', 'n', handle('swap'))
  lvm('lvchange', '--activate', 'y', handle('swap'))
})

test.serial('snapshots of a thin volume made with a size; a pair of the two kinds', async (t) => {
  t.timeout(600_000)
  lvm('lvcreate', '--type', 'thin-pool', '--size', '16m', '--chunksize', '64k', '--name', 'pool', group)
  lvm('lvcreate', '--type', 'thin', '--virtualsize', '4m', '--thinpool', 'pool', '--name', 'thin', group)
  const device = `/dev/${group}/thin`
  write(device, 0, 100)
  snapshot('thin', 't1')
  await serve('t1')
  const changed = write(device, 50, 2)
  snapshot('thin', 't2')
  t.deepEqual(await delta('t1', 't2'), [changed])
  lvm('lvcreate', '--snapshot', '--setactivationskip', 'y', '--name', 't3', handle('thin'))
  t.is(await refusal('t1', 't3'), 'DM_POOLS_DIFFER')
})

test.serial('a store that overflows, before and in the middle of an answer', async (t) => {
  t.timeout(600_000)
  lvm('lvcreate', '--size', '64m', '--wipesignatures', 'n', '--name', 'full', group)
  const device = `/dev/${group}/full`
  lvm(
    'lvcreate',
    '--snapshot',
    '--size',
    '40m',
    '--chunksize',
    '4k',
    '--permission',
    'r',
    '--name',
    'f1',
    handle('full')
  )
  // Every other chunk, so that the answer has many extents.
  for (let chunk = 0; chunk < 4000; chunk += 2) write(device, chunk)
  await serve('f1')
  lvm(
    'lvcreate',
    '--snapshot',
    '--size',
    '60m',
    '--chunksize',
    '4k',
    '--permission',
    'r',
    '--name',
    'f2',
    handle('full')
  )
  const options = { baseSnapshotId: handle('f1'), targetSnapshotId: handle('f2'), maxResults: 1 }
  const batches = (await client.delta(options)).batches[Symbol.asyncIterator]()
  t.false((await batches.next()).done)
  for (let at = 16; at < 64; at++) write(device, at * 256, 256)
  const rest = async () => {
    for (let next = await batches.next(); !next.done; next = await batches.next());
  }
  t.is((await failure(rest())).code, 'DM_COW_INVALID')
  t.is(await refusal('f1', 'f2'), 'DM_COW_INVALID')
})

test.serial('while its origin is put back to a snapshot, none is a base', async (t) => {
  t.timeout(600_000)
  const device = volume('merged')
  snapshot('merged', 'g1')
  snapshot('merged', 'g2')
  write(device, 7)
  await serve('g1')
  snapshot('merged', 'g3')
  const file = openSync(device, 'r')
  // It waits for the origin to be closed.
  lvm('lvconvert', '--merge', '--background', handle('g2'))
  t.is(await refusal('g1', 'g3'), 'DM_COW_MERGING')
  t.is((await failure(answerTo(client, { target: handle('g2') }))).code, 'DM_COW_MERGING')
  closeSync(file)
  t.true(contentOf(`/dev/${group}/g1`).length > 0)
})
