/**
 * Classic LVM snapshots through the agent: every incremental restore is byte-exact or refused with the right code,
 * whatever becomes of snapshots, names, tables and stores. Runs inside the kernel lab: node test/lab/run.ts
 * test/kernel/classic-snapshots.test.ts
 *
 * A question costs six LVM commands, and a lab's are slow. So lives are lived in step (rounds.ts), and ask together.
 */
import { closeSync, constants, openSync, writeSync } from 'node:fs'
import test, { type ExecutionContext } from 'ava'
import type { Extent } from '../support/expected.ts'
import { answerTo, failure } from './ask.ts'
import { type AskPair, contentOf, CowLife, MEBIBYTE } from './cow-life.ts'
import { alignedBuffer, createDevice, deviceBytes, reloadDevice, removeDevice, run } from './dmsetup.ts'
import { labRun } from './lab-run.ts'
import { LiveAgent } from './live-agent.ts'
import { createGroup, lvm, prepareLvm } from './lvm-setup.ts'
import { type InStep, liveInStep } from './rounds.ts'

prepareLvm()
const group = 'classic'
createGroup(group, '/dev/ubda')
const agent = await LiveAgent.start({ config: { logLevel: 'info' } })
const client = agent.client()
test.after.always(async () => agent.stop())

const handle = (name: string) => `${group}/${name}`

/** Serves it as a target, as the full backup that makes it a base does. */
async function serve(name: string): Promise<void> {
  const extents = await answerTo(client, { target: handle(name) })
  const size = deviceBytes(`/dev/${group}/${name}`)
  if (JSON.stringify(extents) !== JSON.stringify([[0, size]])) throw new Error(`${name}: ${JSON.stringify(extents)}`)
}

const delta = (base: string, target: string) => answerTo(client, { base: handle(base), target: handle(target) })
const refusal = async (base: string, target: string) => (await failure(delta(base, target))).code
const refusalOf = async (target: string) => (await failure(answerTo(client, { target: handle(target) }))).code

const buffer = alignedBuffer(MEBIBYTE)
let filler = 1

/** Writes what was nowhere before. @returns the chunks of 4 KiB */
function write(device: string, chunk: number, chunks = 1): Extent {
  writeEach(device, [chunk], chunks)
  return [chunk * 4096, chunks * 4096]
}

function writeEach(device: string, places: readonly number[], chunks = 1): void {
  buffer.fill(filler++ % 251)
  const file = openSync(device, constants.O_WRONLY | constants.O_DIRECT)
  for (const chunk of places) writeSync(file, buffer, 0, chunks * 4096, chunk * 4096)
  closeSync(file)
}

function volume(name: string, size = '4m'): string {
  lvm('lvcreate', '--size', size, '--wipesignatures', 'n', '--name', name, group)
  return `/dev/${group}/${name}`
}

function snapshot(origin: string, name: string, { size = '5m', permission = 'r' } = {}): void {
  const options = ['--size', size, '--chunksize', '4k', '--permission', permission]
  lvm('lvcreate', '--snapshot', ...options, '--name', name, handle(origin))
}

const activate = (name: string, yes: 'y' | 'n') => lvm('lvchange', '--activate', yes, handle(name))

const { random: seeds, count, again } = labRun(1)
/** Lives of a campaign that are lived in step. */
const LIVES_AT_ONCE = 4
const served = new Map<string, Promise<void>>()
const ask: AskPair = async (base, target) => {
  for (const { name, lost } of [base, target]) {
    if (lost === undefined && !served.has(name)) served.set(name, serve(name))
    await served.get(name)
  }
  return delta(base.name, target.name)
}

/** The first is raw, every other one with ext4. */
async function randomLife(t: ExecutionContext, round: number, inStep: InStep): Promise<void> {
  const random = seeds.fork()
  const life = new CowLife(group, `o${round}`, random, { ext4: round % 2 === 1, prefix: `r${round}-` })
  try {
    life.live(4)
    await inStep(() => life.check(ask))
    life.merge(random.pick(life.snapshots.filter(({ lost }) => lost === undefined)))
    life.take()
    life.write()
    await inStep(() => life.check(ask))
  } catch (error) {
    throw new Error(`round ${round} of ${again}: ${(error as Error).stack}`, { cause: error })
  }
  t.log(JSON.stringify(life.counts))
  life.end()
}

/** What a snapshot can meet with, each on a volume of its own. */
const scenes: Readonly<Record<string, (t: ExecutionContext, inStep: InStep) => Promise<void>>> = {
  async 'what was written after the target is told apart by its old content, where nobody could write into the base'(
    t,
    inStep
  ) {
    const device = volume('exact')
    snapshot('exact', 'e1')
    snapshot('exact', 'e1w', { permission: 'rw' })
    const changed = write(device, 10)
    await inStep(() => Promise.all(['e1', 'e1w'].map(serve)))
    snapshot('exact', 'e2')
    const later = write(device, 20)
    t.deepEqual(await inStep(() => Promise.all([delta('e1', 'e2'), delta('e1w', 'e2'), delta('e1', 'e1')])), [
      [changed],
      [changed, later],
      []
    ])
    // Somebody who writes the target's content into the base, and makes it read-only again, is not believed.
    lvm('lvchange', '--permission', 'rw', handle('e1'))
    t.deepEqual(await inStep(() => delta('e1', 'e2')), [changed, later])
    lvm('lvchange', '--permission', 'r', handle('e1'))
    snapshot('exact', 'e3')
    t.deepEqual(await inStep(() => Promise.all([delta('e1', 'e2'), delta('e2', 'e3')])), [[changed, later], [later]])
    // Nor is LVM, where the kernel lets writes through.
    const last = write(device, 21)
    t.deepEqual(await inStep(() => delta('e2', 'e3')), [later])
    const [, , ...table] = run('dmsetup', ['table', `${group}-e2`])
      .trim()
      .split(' ')
    reloadDevice(`${group}-e2`, `0 8192 ${table.join(' ')}`)
    t.deepEqual(await inStep(() => delta('e2', 'e3')), [[later[0], later[1] + last[1]]])
  },

  async 'a read-only snapshot that was never served may have been written to when it was backed up'(t, inStep) {
    const device = volume('unserved')
    snapshot('unserved', 'u1', { permission: 'rw' })
    const changed = write(`/dev/${group}/u1`, 3)
    lvm('lvchange', '--permission', 'r', handle('u1'))
    write(device, 3)
    t.deepEqual(await inStep(() => delta('u1', 'u1')), [changed])
  },

  async 'split off and joined again: refused, also where it was never served'(t, inStep) {
    const device = volume('split')
    const split = ['p1', 'p2', 'p3']
    for (const name of split) snapshot('split', name)
    await inStep(() => serve('p1'))
    // LVM's times are by a clock that may be put forward, and back.
    for (const [i, seconds] of [0, 120, -120].entries()) {
      lvm('lvconvert', '--splitsnapshot', handle(split[i]))
      write(device, 30 + i)
      run('date', ['--set', `${seconds} seconds`])
      lvm('lvconvert', '--type', 'snapshot', '-Zn', '--chunksize', '4k', handle('split'), handle(split[i]))
      run('date', ['--set', `${-seconds} seconds`])
    }
    snapshot('split', 'p4')
    const refused = await inStep(() => Promise.all(split.map((name) => refusal(name, 'p4'))))
    t.deepEqual(refused, ['DM_COW_REJOINED', 'DM_COW_REJOINED', 'DM_COW_REJOINED'])
    await inStep(() => serve('p1'))
    t.is(await inStep(() => refusal('p1', 'p4')), 'DM_COW_REJOINED')
  },

  async 'a name that goes to another snapshot'(t, inStep) {
    const device = volume('rotated')
    snapshot('rotated', 'last')
    await inStep(() => serve('last'))
    write(device, 40)
    lvm('lvremove', handle('last'))
    snapshot('rotated', 'last')
    snapshot('rotated', 'next')
    t.is(await inStep(() => refusal('last', 'next')), 'DM_BASE_CHANGED')
    lvm('lvrename', handle('last'), handle('other'))
    const changed = write(device, 41)
    snapshot('rotated', 'third')
    t.deepEqual(await inStep(() => delta('other', 'third')), [changed])
  },

  async 'mixed up, gone, or no snapshot at all'(t, inStep) {
    volume('mixed')
    const device = volume('mixed2')
    snapshot('mixed', 'm1')
    snapshot('mixed2', 'm2')
    const refused = await inStep(() =>
      Promise.all([refusal('m1', 'm2'), refusal('m1', 'nothing'), refusalOf('mixed'), failure(delta('m1', 'mixed'))])
    )
    t.deepEqual(refused.slice(0, 3), ['DM_VOLUMES_DIFFER', 'DM_SNAPSHOT_NOT_FOUND', 'DM_VOLUME_IN_USE'])
    t.like(refused[3], { code: 'DM_VOLUME_IN_USE' })
    t.regex(refused[3].remedy, /lvcreate -s -L/)
    write(device, 1)
    activate('mixed2', 'n')
    t.is(await inStep(() => refusalOf('m2')), 'DM_COW_INACTIVE')
    activate('mixed2', 'y')
    await inStep(() => serve('m2'))
  },

  async 'an answer cannot go on from an offset about another snapshot, or one that can be written to, or could'(
    t,
    inStep
  ) {
    const device = volume('resumed')
    snapshot('resumed', 'r1')
    write(device, 5)
    snapshot('resumed', 'r2')
    snapshot('resumed', 'r3', { permission: 'rw' })
    const from = async (target: string) => {
      const options = { baseSnapshotId: handle('r1'), targetSnapshotId: handle(target), startingOffset: 8192 }
      const extents: Extent[] = []
      for await (const { count, offsets, sizes } of (await client.delta(options)).batches) {
        for (let i = 0; i < count; i++) extents.push([offsets[i], sizes[i]])
      }
      return extents
    }
    const refused = async (target: string) => (await failure(from(target))).code
    t.is(await inStep(() => refused('r2')), 'DM_RESUME_REFUSED')
    await inStep(() => Promise.all([delta('r1', 'r2'), delta('r1', 'r3')]))
    const [extents, writable] = await inStep(() => Promise.all([from('r2'), refused('r3')]))
    t.deepEqual(extents, [[5 * 4096, 4096]])
    t.is(writable, 'DM_RESUME_REFUSED')
    // Written to in front of the offset, and made read-only.
    write(`/dev/${group}/r3`, 0)
    lvm('lvchange', '--permission', 'r', handle('r3'))
    t.is(await inStep(() => refused('r3')), 'DM_RESUME_REFUSED')
  },

  async 'tables changed by hand: refused'(t, inStep) {
    const device = volume('hand')
    snapshot('hand', 'h1')
    write(device, 3)
    snapshot('hand', 'h2')
    await inStep(() => serve('h1'))
    const refused = () => inStep(() => refusal('h1', 'h2'))
    // Something on the untouched origin, beside the origin.
    createDevice('beside', `0 8192 linear /dev/mapper/${group}-hand-real 0`)
    t.is(await refused(), 'DM_COW_DETACHED')
    removeDevice('beside')
    // The origin without its snapshot-origin target: writes are in no store.
    reloadDevice(`${group}-hand`, `0 8192 linear /dev/mapper/${group}-hand-real 0`)
    t.is(await refused(), 'DM_COW_DETACHED')
    reloadDevice(`${group}-hand`, `0 8192 snapshot-origin /dev/mapper/${group}-hand-real`)
    // The store of another snapshot, and one in memory.
    const table = (store: string, kind: string) => `0 8192 snapshot /dev/mapper/${group}-hand-real ${store} ${kind} 8`
    const own = `/dev/mapper/${group}-h1-cow`
    createDevice('scratch', `0 8192 linear /dev/mapper/${group}-h1-cow 0`)
    reloadDevice(`${group}-h1`, table('/dev/mapper/scratch', 'N'))
    t.is(await refused(), 'DM_COW_TRANSIENT')
    reloadDevice(`${group}-h1`, table(own, 'P'))
    removeDevice('scratch')
    t.is((await inStep(() => delta('h1', 'h2'))).length, 1)
  },

  async 'activated apart from its origin with dmsetup: refused'(t, inStep) {
    const device = volume('apart')
    snapshot('apart', 'a1')
    const changed = write(device, 9)
    snapshot('apart', 'a2')
    await inStep(() => serve('a1'))
    const names = ['apart-real', 'a1-cow', 'a1'].map((name) => `${group}-${name}`)
    const uuids = names.map((name) => run('dmsetup', ['info', '--columns', '--noheadings', '-o', 'uuid', name]).trim())
    const tables = names.map((name) => run('dmsetup', ['table', name]).trim())
    activate('apart', 'n')
    // LVM's own names and UUIDs. (Device numbers are those of before, or others: the names stand for them.)
    tables[2] = `0 8192 snapshot /dev/mapper/${names[0]} /dev/mapper/${names[1]} P 8`
    for (const [i, name] of names.entries()) createDevice(name, tables[i], '--uuid', uuids[i])
    t.is(await inStep(() => refusal('a1', 'a2')), 'DM_COW_INACTIVE')
    for (const name of names.toReversed()) removeDevice(name)
    activate('apart', 'y')
    t.deepEqual(await inStep(() => delta('a1', 'a2')), [changed])
  },

  async 'tables of two stores swapped: a list does not begin as it did'(t, inStep) {
    const device = volume('swap')
    snapshot('swap', 'w1')
    write(device, 1)
    await inStep(() => serve('w1'))
    snapshot('swap', 'w2')
    const changed = write(device, 2)
    snapshot('swap', 'w3')
    t.deepEqual(await inStep(() => delta('w1', 'w3')), [[4096, 4096 + changed[1]]])
    const stores = ['w1', 'w2'].map((name) => run('dmsetup', ['table', `${group}-${name}-cow`]).trim())
    activate('swap', 'n')
    activate('swap', 'y')
    for (const [i, name] of ['w1', 'w2'].entries()) {
      run('dmsetup', ['suspend', `${group}-${name}`])
      reloadDevice(`${group}-${name}-cow`, stores[1 - i])
      run('dmsetup', ['resume', `${group}-${name}`])
    }
    // The kernel goes on with the list that it has in memory, so that its count may not be that of the other store
    // either.
    const code = await inStep(() => refusal('w1', 'w3'))
    t.true(code === 'DM_BASE_CHANGED' || code === 'DM_METADATA_DAMAGED', code)
    activate('swap', 'n')
    activate('swap', 'y')
  },

  async 'snapshots of a thin volume made with a size; a pair of the two kinds'(t, inStep) {
    lvm('lvcreate', '--type', 'thin-pool', '--size', '16m', '--chunksize', '64k', '--name', 'pool', group)
    lvm('lvcreate', '--type', 'thin', '--virtualsize', '4m', '--thinpool', 'pool', '--name', 'thin', group)
    const device = `/dev/${group}/thin`
    write(device, 0, 100)
    snapshot('thin', 't1')
    await inStep(() => serve('t1'))
    const changed = write(device, 50, 2)
    snapshot('thin', 't2')
    lvm('lvcreate', '--snapshot', '--setactivationskip', 'y', '--name', 't3', handle('thin'))
    const [extents, code] = await inStep(() => Promise.all([delta('t1', 't2'), refusal('t1', 't3')]))
    t.deepEqual(extents, [changed])
    t.is(code, 'DM_POOLS_DIFFER')
  },

  async 'a store that overflows, before and in the middle of an answer'(t, inStep) {
    const device = volume('full', '24m')
    snapshot('full', 'f1', { size: '12m' })
    // Every other chunk, so that the answer has many extents.
    writeEach(
      device,
      Array.from({ length: 2000 }, (_, i) => 2 * i)
    )
    await inStep(() => serve('f1'))
    snapshot('full', 'f2', { size: '30m' })
    const options = { baseSnapshotId: handle('f1'), targetSnapshotId: handle('f2'), maxResults: 1 }
    const batches = (await inStep(() => client.delta(options))).batches[Symbol.asyncIterator]()
    t.false((await inStep(() => batches.next())).done)
    for (let at = 16; at < 24; at++) write(device, at * 256, 256)
    const rest = async () => {
      for (let next = await batches.next(); !next.done; next = await batches.next());
    }
    const codes = await inStep(() => Promise.all([failure(rest()).then(({ code }) => code), refusal('f1', 'f2')]))
    t.deepEqual(codes, ['DM_COW_INVALID', 'DM_COW_INVALID'])
  },

  async 'while its origin is put back to a snapshot, none is a base'(t, inStep) {
    const device = volume('merged')
    snapshot('merged', 'g1')
    snapshot('merged', 'g2')
    write(device, 7)
    await inStep(() => serve('g1'))
    snapshot('merged', 'g3')
    const file = openSync(device, 'r')
    // It waits for the origin to be closed.
    lvm('lvconvert', '--merge', '--background', handle('g2'))
    const codes = await inStep(() => Promise.all([refusal('g1', 'g3'), refusalOf('g2')]))
    t.deepEqual(codes, ['DM_COW_MERGING', 'DM_COW_MERGING'])
    closeSync(file)
    t.true(contentOf(`/dev/${group}/g1`).length > 0)
  }
}

test.serial('a random life, and whatever a snapshot can meet with', async (t) => {
  const lives = Object.entries(scenes).map(
    ([name, live]) =>
      (inStep: InStep) =>
        live(t, inStep).catch((error: unknown) => {
          throw new Error(`${name}: ${(error as Error).stack}`, { cause: error })
        })
  )
  await liveInStep([...lives, (inStep) => randomLife(t, 0, inStep)])
})

for (let first = 1; first < count; first += LIVES_AT_ONCE) {
  test.serial(`random lives, from ${first} on`, async (t) => {
    const rounds = Array.from({ length: Math.min(LIVES_AT_ONCE, count - first) }, (_, i) => first + i)
    await liveInStep(rounds.map((round) => (inStep) => randomLife(t, round, inStep)))
    t.pass()
  })
}
