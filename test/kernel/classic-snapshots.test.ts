/**
 * Classic LVM snapshots through the agent: every incremental restore is byte-exact or refused with the right code,
 * whatever becomes of snapshots, names, tables and stores. Runs inside the kernel lab: node test/lab/run.ts
 * test/kernel/classic-snapshots.test.ts
 *
 * A question costs six LVM commands, and a lab's are slow. So lives are lived in step (rounds.ts), and ask together.
 */
import { closeSync, openSync } from 'node:fs'
import test, { type ExecutionContext } from 'ava'
import { askForExamination } from '../../src/agent/inventory/ask.ts'
import type { Extent } from '../support/expected.ts'
import { answerTo, beginSlowly, failure } from './ask.ts'
import { askAgent, serve as serveClassic } from './classic-agent.ts'
import { scenesBelow } from './classic-below.ts'
import {
  activate,
  agent,
  client,
  delta,
  everyOther,
  fresh,
  group,
  handle,
  loopDevice,
  monitoring,
  refusal,
  refusalOf,
  type Scenes,
  serve,
  snapshot,
  tableOf,
  volume,
  write,
  writeEach
} from './classic-lab.ts'
import { contentOf, CowLife, MEBIBYTE } from './cow-life.ts'
import { createDevice, reloadDevice, removeDevice, run } from './dmsetup.ts'
import { labRun } from './lab-run.ts'
import { createGroup, lvm } from './lvm-setup.ts'
import { type InStep, liveInStep } from './rounds.ts'

/** Seconds. */
const DAY = 86_400

/** A raw life; classic-lives.ts has many more. */
async function randomLife(t: ExecutionContext, inStep: InStep): Promise<void> {
  const { random, again } = labRun(1)
  const life = new CowLife(group, 'life', random, { prefix: 'life-' })
  const ask = askAgent(client, group)
  try {
    life.live(4)
    await inStep(() => life.check(ask))
    if (life.mergeable.length > 0) life.merge(random.pick(life.mergeable))
    life.take()
    life.write()
    await inStep(() => life.check(ask))
  } catch (error) {
    throw new Error(`${again}: ${(error as Error).stack}`, { cause: error })
  }
  t.log(JSON.stringify(life.counts))
  life.end()
}

/** What a snapshot can meet with, each on a volume of its own. */
const scenes: Scenes = {
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
    write(device, 21)
    t.deepEqual(await inStep(() => Promise.all([delta('e1', 'e2'), delta('e2', 'e3')])), [
      [changed, [later[0], 2 * 4096]],
      [later]
    ])
  },

  async 'to LVM a base is read-only, and the kernel lets writes through'(t, inStep) {
    const device = volume('loose')
    snapshot('loose', 'l1')
    const changed = write(device, 10)
    snapshot('loose', 'l2')
    const last = write(device, 11)
    await inStep(() => serve('l1'))
    t.deepEqual(await inStep(() => delta('l1', 'l2')), [changed])
    const [, , ...table] = run('dmsetup', ['table', `${group}-l1`])
      .trim()
      .split(' ')
    reloadDevice(`${group}-l1`, `0 8192 ${table.join(' ')}`)
    t.deepEqual(await inStep(() => delta('l1', 'l2')), [[changed[0], changed[1] + last[1]]])
  },

  async 'a base is made read-only, and what stands on it since before goes on writing'(t, inStep) {
    const device = volume('above')
    snapshot('above', 'b1', { permission: 'rw' })
    createDevice('on-b1', `0 8192 linear /dev/${group}/b1 0`)
    lvm('lvchange', '--permission', 'r', handle('b1'))
    await inStep(() => serve('b1'))
    const fill = fresh()
    const changed = write(device, 10, 1, fill)
    snapshot('above', 'b2')
    write(device, 10)
    t.deepEqual(await inStep(() => delta('b1', 'b2')), [changed])
    // The target's own content.
    write('/dev/mapper/on-b1', 10, 1, fill)
    t.deepEqual(await inStep(() => Promise.all([delta('b1', 'b2'), delta('b1', 'b1')])), [[changed], [changed]])
    // The kernel has counted it since the device is there; what was seen stands.
    removeDevice('on-b1')
    activate('above', 'n')
    activate('above', 'y')
    t.deepEqual(await inStep(() => Promise.all([delta('b1', 'b2'), delta('b1', 'b1')])), [[changed], [changed]])
  },

  async 'a read-only snapshot that was never served may have been written to when it was backed up'(t, inStep) {
    const device = volume('unserved')
    snapshot('unserved', 'u1', { permission: 'rw' })
    const changed = write(`/dev/${group}/u1`, 3)
    lvm('lvchange', '--permission', 'r', handle('u1'))
    write(device, 3)
    t.deepEqual(await inStep(() => delta('u1', 'u1')), [changed])
    t.true(agent.log.some(({ code, base }) => code === 'DM_BASE_UNRECORDED' && base === handle('u1')))
  },

  async 'split off and joined again: refused, also where it was never served'(t, inStep) {
    const device = volume('split')
    const split = ['p1', 'p2', 'p3']
    for (const name of split) snapshot('split', name)
    await inStep(() => serve('p1'))
    // LVM's times are by a clock that may be put forward, and back. (By more than this file takes.)
    for (const [i, seconds] of [0, DAY, -DAY].entries()) {
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
    const beside = volume('hand')
    const stores = volume('hand2')
    for (const [origin, device, first, second] of [
      ['hand', beside, 'h1', 'h2'],
      ['hand2', stores, 'h3', 'h4']
    ]) {
      snapshot(origin, first)
      write(device, 3)
      snapshot(origin, second)
    }
    const changed: Extent = [3 * 4096, 4096]
    await inStep(() => Promise.all(['h1', 'h3'].map(serve)))
    const refused = () => refusal('h1', 'h2')
    // Something on the untouched origin, beside the origin; the store of another snapshot, in memory.
    createDevice('beside', `0 8192 linear /dev/mapper/${group}-hand-real 0`)
    const table = (store: string, kind: string) => `0 8192 snapshot /dev/mapper/${group}-hand2-real ${store} ${kind} 8`
    const own = `/dev/mapper/${group}-h3-cow`
    createDevice('scratch', `0 8192 linear ${own} 0`)
    reloadDevice(`${group}-h3`, table('/dev/mapper/scratch', 'N'))
    const first = await inStep(() => Promise.all([refused(), refusal('h3', 'h4')]))
    t.deepEqual(first, ['DM_COW_DETACHED', 'DM_COW_TRANSIENT'])
    // The origin without its snapshot-origin target: writes are in no store.
    removeDevice('beside')
    reloadDevice(`${group}-hand`, `0 8192 linear /dev/mapper/${group}-hand-real 0`)
    reloadDevice(`${group}-h3`, table(own, 'P'))
    removeDevice('scratch')
    // A snapshot that is of something else, and has the untouched origin as its store: what is written to it is there.
    createDevice('elsewhere', '0 8192 zero')
    createDevice('over', `0 8192 snapshot /dev/mapper/elsewhere /dev/mapper/${group}-hand2-real N 8`)
    const second = await inStep(() => Promise.all([refused(), refusal('h3', 'h4')]))
    t.deepEqual(second, ['DM_COW_DETACHED', 'DM_COW_DETACHED'])
    for (const name of ['over', 'elsewhere']) removeDevice(name)
    reloadDevice(`${group}-hand`, `0 8192 snapshot-origin /dev/mapper/${group}-hand-real`)
    const answers = await inStep(() => Promise.all([delta('h1', 'h2'), delta('h3', 'h4')]))
    t.deepEqual(answers, [[changed], [changed]])
  },

  async "extended while inactive: from the base's end on everything is changed, before it what differs"(t, inStep) {
    const device = volume('grown')
    snapshot('grown', 'x1')
    const changed = write(device, 4)
    await inStep(() => serve('x1'))
    activate('grown', 'n')
    lvm('lvextend', '--size', '+1m', handle('grown'))
    activate('grown', 'y')
    snapshot('grown', 'x2', { size: '6m' })
    write(device, 6)
    write(device, 1025)
    t.deepEqual(await inStep(() => delta('x1', 'x2')), [changed, [4 * MEBIBYTE, MEBIBYTE]])
  },

  async 'a group on two disks: the first without metadata, then the second is missing'(t, inStep) {
    createGroup('two', ...[0, 1].map((number) => loopDevice(number, '40M')))
    lvm('pvchange', '--metadataignore', 'y', '/dev/loop0')
    const take = (origin: string, name: string, disk: string) => {
      const options = ['--size', '5m', '--chunksize', '4k', '--permission', 'r', '--name', name]
      lvm('lvcreate', '--snapshot', ...options, `two/${origin}`, disk)
    }
    const pairOf = (base: string, target: string) => answerTo(client, { base: `two/${base}`, target: `two/${target}` })
    // One volume on both disks; another of which a store is on the second.
    lvm('lvcreate', '--size', '4m', '--stripes', '2', '--wipesignatures', 'n', '--name', 'striped', 'two')
    lvm('lvcreate', '--size', '4m', '--wipesignatures', 'n', '--name', 'whole', 'two', '/dev/loop0')
    take('striped', 'p1', '/dev/loop0')
    take('whole', 'p3', '/dev/loop1')
    const changed = write('/dev/two/striped', 0)
    write('/dev/two/whole', 0)
    await inStep(() => Promise.all(['p1', 'p3'].map((name) => serveClassic(client, 'two', name))))
    take('striped', 'p2', '/dev/loop0')
    take('whole', 'p4', '/dev/loop0')
    t.deepEqual(await inStep(() => Promise.all([pairOf('p1', 'p2'), pairOf('p3', 'p4')])), [[changed], [changed]])
    lvm('pvchange', '--metadataignore', 'n', '/dev/loop0')
    lvm('vgchange', '--activate', 'n', 'two')
    run('losetup', ['--detach', '/dev/loop1'])
    // What is on the missing disk cannot be written to, and the stores are whole.
    lvm('lvchange', '--activate', 'y', '--activationmode', 'partial', 'two/striped')
    write('/dev/two/striped', 1)
    // A store that is missing keeps its origin from being activated, so that nothing can be missing from it.
    t.throws(() => lvm('lvchange', '--activate', 'y', '--activationmode', 'partial', 'two/whole'))
    const [extents, { code }] = await inStep(() => Promise.all([pairOf('p1', 'p2'), failure(pairOf('p3', 'p4'))]))
    t.deepEqual(extents, [changed])
    t.is(code, 'DM_COW_INACTIVE')
    // Something else in the place of the missing disk.
    createDevice('instead', '0 8192 zero')
    reloadDevice('two-striped-real', tableOf('two-striped-real').replace(/\S+ 0$/, '/dev/mapper/instead 0'))
    const { code: instead, message } = await inStep(() => failure(pairOf('p1', 'p2')))
    t.is(instead, 'DM_COW_DETACHED')
    t.regex(message, /a disk that LVM misses/)
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

  async 'tables of two stores swapped, or what is in them: a list does not begin as it did'(t, inStep) {
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
    t.is(await inStep(() => refusal('w1', 'w3')), 'DM_COW_DETACHED')
    activate('swap', 'n')
    activate('swap', 'y')
    // The same by writing: the kernel goes on with the list that it has in memory, so that its count may not be that of
    // the other store either.
    const options = ['bs=4k', 'count=2', 'oflag=direct', 'iflag=direct', 'status=none']
    run('dd', [`if=/dev/mapper/${group}-w2-cow`, `of=/dev/mapper/${group}-w1-cow`, ...options])
    const code = await inStep(() => refusal('w1', 'w3'))
    t.true(code === 'DM_BASE_CHANGED' || code === 'DM_METADATA_DAMAGED', code)
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
    // What shows through where the thin volume has nothing is none of LVM's.
    createDevice('external', '0 8192 zero')
    const real = `${group}-thin-real`
    const table = tableOf(real)
    reloadDevice(real, `${table} /dev/mapper/external`)
    t.is(await inStep(() => refusal('t1', 't2')), 'DM_COW_DETACHED')
    reloadDevice(real, table)
    removeDevice('external')
    t.deepEqual(await inStep(() => delta('t1', 't2')), [changed])
  },

  async 'a store that overflows, before and in the middle of an answer'(t, inStep) {
    const device = volume('full', '24m')
    snapshot('full', 'f1', { size: '12m' })
    writeEach(device, everyOther(600))
    await inStep(() => serve('f1'))
    snapshot('full', 'f2', { size: '30m' })
    const rest = await inStep(() => beginSlowly(agent.address, handle('f1'), handle('f2')))
    for (let at = 8; at < 18; at++) write(device, at * 256, 256)
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
  const lives = Object.entries({ ...scenes, ...scenesBelow }).map(
    ([name, live]) =>
      (inStep: InStep) =>
        live(t, inStep).catch((error: unknown) => {
          throw new Error(`${name}: ${(error as Error).stack}`, { cause: error })
        })
  )
  await liveInStep([...lives, (inStep) => randomLife(t, inStep)])
})

test.serial('doctor and metrics: how full stores are, how long they last, which can be a base', async (t) => {
  const device = volume('filled')
  snapshot('filled', 'y1', { size: '2m' })
  write(device, 0, 220)
  write(device, 256, 220)
  const { findings } = await askForExamination(agent.address, { deadlineMs: 540_000 })
  const about = (name: string) => {
    const found = findings.find((each) => each.about === handle(name) && each.kind !== 'volumes-untracked')
    return found ? `${found.severity} ${found.kind}: ${found.what}; ${found.remedy}` : 'nothing'
  }
  t.regex(
    about('y1'),
    /^warning store-nearly-full: .* 8\d % full, and lasts about .* never served.*snapshot_autoextend/
  )
  t.regex(about('x1'), /^note classic-snapshot: .* \d+ % full, and lasts .*it was served, and can be a base/)
  t.regex(about('p1'), /^note classic-snapshot: .* it is not what it was when it was served/)
  t.regex(about('f1'), /^problem store-lost: .*snapshot_autoextend/)
  // (A first look may come too late for a page, which is then without.)
  let page = ''
  while (!page.includes(`snapshot="${group}-y1"`)) page = await (await fetch(`http://${monitoring}/metrics`)).text()
  const sample = (name: string, snapshot: string) =>
    Number(new RegExp(`^${name}{snapshot="${group}-${snapshot}"} (\\S+)$`, 'm').exec(page)?.[1])
  t.is(sample('deltamapper_cow_store_bytes', 'y1'), 2 * MEBIBYTE)
  t.is(sample('deltamapper_cow_store_used_bytes', 'y1'), (440 + 3) * 4096)
  t.is(sample('deltamapper_cow_store_lost', 'y1'), 0)
  t.is(sample('deltamapper_cow_store_lost', 'f1'), 1)
  t.regex(page, /^deltamapper_cow_doubtful_bytes_total \d+$/m)
})
