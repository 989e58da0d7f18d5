/**
 * Lives in which a base, or a target that is gone on with, is not what it was, and nothing that is easy to look at tells: an answer would be
 * too small. Each ends with an error, or with the exact answer. Runs inside the kernel lab:
 * node test/lab/run.ts test/kernel/missed-blocks-bases.test.ts
 *
 * LAB_COUNT rounds of each life, which follow from LAB_SEED.
 */
import { existsSync, mkdtempSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import type { Extent } from '../support/expected.ts'
import { Random } from '../support/random.ts'
import type { Fingerprint } from '../../src/devicemapper/thin/pool-metadata.ts'
import { cameBack, devicesRootOf, fingerprintOf, Questions, writeCommitted } from './bases-lab.ts'
import { createDevice, createLinear, removeDevice, run, thinTable } from './dmsetup.ts'
import { labRun } from './lab-run.ts'
import { createGroup, createPool, createSnapshot, createThin, lvm, prepareLvm, writeBlocks } from './lvm-setup.ts'
import { blockBytes, expectedAllocated, expectedDelta, RawPool } from './raw-pool.ts'

const mebibyte = 2 ** 20
/** More than a leaf holds: the root is a node above, which can come back while what it leads to does not. */
const MAPPED = 300
const BLOCKS = 320
/** Blocks at the front, all of one leaf. */
const FRONT = 60

const { random: seeds, count, again } = labRun(1)

prepareLvm()
const questions = await Questions.open()
const pool = new RawPool({
  name: 'bases-pool',
  offsetBytes: 0,
  metadataBytes: 2 * mebibyte,
  dataBytes: 2048 * mebibyte,
  withoutData: true,
  disk: '/dev/ubda'
})
const spare = createLinear('bases-spare', '/dev/ubda', 16 * mebibyte, 2 * mebibyte)
const files = mkdtempSync(join(tmpdir(), 'bases-files-'))
test.after.always(async () => {
  await questions.close()
  pool.close()
})

let nextId = 0

/** One life: a volume with snapshots, which are gone when it is over. */
class Life {
  readonly random: Random
  readonly #names: string[] = []
  readonly #round: string

  constructor(name: string, round: number, seed: number) {
    this.random = new Random(seed)
    this.#round = `${name}${round}`
    this.volume('v')
  }

  name(short: string): string {
    return `${this.#round}-${short}`
  }

  handle(short: string): string {
    return pool.handle(this.name(short))
  }

  thin(short: string) {
    return pool.thin(this.name(short))
  }

  id(short: string): number {
    return this.thin(short).thinId
  }

  volume(short: string): void {
    this.createEmpty(short, BLOCKS)
    pool.write(this.name(short), 0, MAPPED)
  }

  createEmpty(short: string, blocks: number): void {
    pool.createVolume(this.name(short), nextId++, blocks)
    this.#names.push(this.name(short))
  }

  /** Read-only; `writable` as whoever does something unusual has it. */
  snapshot(origin: string, short: string, { writable = false } = {}): void {
    pool.snapshot(this.name(origin), this.name(short), nextId++)
    this.#names.push(this.name(short))
    if (writable) this.unlock(short)
  }

  unlock(short: string): void {
    pool.deactivate(this.name(short))
    pool.activate(this.name(short))
  }

  remove(short: string): void {
    pool.remove(this.name(short))
    this.#names.splice(this.#names.indexOf(this.name(short)), 1)
  }

  write(short: string, block: number): void {
    pool.write(this.name(short), block)
    writeCommitted(`/dev/mapper/${this.name(short)}`, block * blockBytes)
  }

  discard(short: string, block: number): void {
    pool.discard(this.name(short), block)
  }

  /** Blocks at the front in some order, each once. */
  blocks(): number[] {
    return this.random.shuffle(Array.from({ length: FRONT }, (_, i) => i))
  }

  async ask(target: string, { base, from = 0 }: { base?: string; from?: number } = {}, strict = false) {
    const asked = { target: this.handle(target), from, ...(base !== undefined && { base: this.handle(base) }) }
    return questions.ask(asked, { strict })
  }

  async fingerprint(short: string) {
    return fingerprintOf(pool.metadata, this.id(short))
  }

  end(): void {
    for (const name of this.#names.toReversed()) pool.remove(name)
  }
}

/** Rounds of a life; what each returns is counted. @param once what one of three or more has to return, or the life shows nothing */
function life(
  title: string,
  name: string,
  rounds: (t: ExecutionContext, life: Life) => Promise<string | void>,
  once?: string
): void {
  test.serial(`${title} (${again})`, async (t) => {
    t.timeout(600_000 + count * 120_000)
    const seen = new Map<string, number>()
    for (let round = 0; round < count; round++) {
      const one = new Life(name, round, seeds.integer(0, 2 ** 31))
      const outcome = (await rounds(t, one)) ?? 'done'
      seen.set(outcome, (seen.get(outcome) ?? 0) + 1)
      one.end()
    }
    t.log(`${name}: ${[...seen].map(([outcome, times]) => `${outcome} ${times}`).join(', ')}`)
    // In a pool that was just made, what is free lies otherwise: one round may not do it.
    if (once !== undefined && count >= 3) t.true(seen.has(once), `not once: ${once}`)
  })
}

/** Deactivates everything and activates it again: the metadata's allocator begins at the lowest free block. */
function reload(whileInactive: () => void = () => undefined): void {
  pool.deactivateAll()
  whileInactive()
  pool.activateAll()
}

/** A repair of the inactive pool's metadata, in place. (The tool reads and writes past the page cache, which files in memory cannot do.) */
function repair(): void {
  run('thin_repair', ['-i', pool.metadata, '-o', spare])
  run('dd', [`if=${spare}`, `of=${pool.metadata}`, 'bs=1M', 'conv=fsync', 'status=none'])
}

/** Blocks that came to the root's tree after it was a leaf: thin_repair leaves the earlier ones' mappings in what the root does not use. */
function lateBlock({ random }: Life): number {
  return random.integer(253, MAPPED - 1)
}

/**
 * A snapshot that was served, of which the front's leaf is its own, and whose nodes were allocated as the same write will have them allocated
 * again: first the tree of devices, then the root, then the leaf.
 */
async function servedWithOwnLeaf(
  t: ExecutionContext,
  one: Life,
  writes: (() => void | Promise<void>)[]
): Promise<Fingerprint> {
  // What the volume writes has to be shared, or it goes where it is without a trace in the metadata.
  one.snapshot('v', 'p')
  for (const write of writes) await write()
  one.snapshot('v', 's')
  // The volume leaves the front's leaf to the snapshot alone.
  one.write('v', FRONT - 1)
  one.remove('p')
  t.deepEqual(await one.ask('s'), expectedAllocated(one.thin('s')))
  return one.fingerprint('s')
}

async function refusedAsBase(t: ExecutionContext, one: Life, back: boolean): Promise<string> {
  one.snapshot('s', 't')
  t.is(await one.ask('t', { base: 's' }), 'DM_BASE_CHANGED')
  return back ? 'came back' : 'did not come back'
}

async function reloads(t: ExecutionContext, one: Life): Promise<string> {
  const [first, second, ...more] = one.blocks().filter((block) => block !== FRONT - 1)
  const inVolume = (block: number) => () => {
    reload()
    one.write('v', block)
  }
  const before = await servedWithOwnLeaf(t, one, [inVolume(first), inVolume(second)])
  for (const block of more.slice(0, 12)) {
    reload()
    one.unlock('s')
    one.write('s', block)
    if (await cameBack(pool.metadata, one.id('s'), before)) return refusedAsBase(t, one, true)
  }
  return refusedAsBase(t, one, false)
}

life('a base that was written to, with reloads of the pool in between', 'reload', reloads, 'came back')

/** Another volume, whose writes move the allocator on. */
class Mover {
  readonly #one: Life
  #next = MAPPED

  constructor(one: Life) {
    this.#one = one
    one.createEmpty('h', 20_000)
    pool.write(one.name('h'), 0, MAPPED)
    pool.write(one.name('h'), 10_000, MAPPED)
  }

  /** @returns where the tree of devices is then */
  async move(): Promise<number> {
    this.#one.write('h', this.#next++)
    return devicesRootOf(pool.metadata)
  }

  /** By one block more, as there is a leaf more. */
  async moveMore(): Promise<void> {
    pool.write(this.#one.name('h'), 10_000 + this.#next)
    await this.move()
  }

  /** Until the allocator is where it was when the tree of devices was there. @returns whether it is */
  async moveTo(wanted: number): Promise<boolean> {
    const before = await this.move()
    let at = await this.move()
    const step = at - before
    for (let moves = 0; moves < 400; moves++) {
      if (at === wanted) return true
      const left = wanted - at
      if (left > 2 * step && left % step !== 0) await this.moveMore()
      at = await this.move()
    }
    return false
  }
}

life(
  'a base that was written to, while the allocator goes round',
  'round',
  async (t, one) => {
    const [first, ...more] = one.blocks().filter((block) => block !== FRONT - 1)
    const mover = new Mover(one)
    let at = 0
    const inVolume = async () => {
      await mover.move()
      at = await mover.move()
      one.write('v', first)
    }
    const before = await servedWithOwnLeaf(t, one, [inVolume])
    one.unlock('s')
    one.write('s', more[0])
    for (const block of more.slice(1, 4)) {
      await mover.moveTo(at)
      one.write('s', block)
      if (await cameBack(pool.metadata, one.id('s'), before)) return refusedAsBase(t, one, true)
    }
    return refusedAsBase(t, one, false)
  },
  'came back'
)

life(
  'a base that was written to, between two repairs of the metadata',
  'repair',
  async (t, one) => {
    one.snapshot('v', 's')
    reload(repair)
    t.deepEqual(await one.ask('s'), expectedAllocated(one.thin('s')))
    const before = await one.fingerprint('s')
    one.unlock('s')
    one.write('s', lateBlock(one))
    reload(repair)
    return refusedAsBase(t, one, await cameBack(pool.metadata, one.id('s'), before))
  },
  'came back'
)

life('a base that was not touched is one after a repair as well', 'mended', async (t, one) => {
  one.snapshot('v', 's')
  t.deepEqual(await one.ask('s'), expectedAllocated(one.thin('s')))
  const block = one.random.integer(0, BLOCKS - 1)
  one.write('v', block)
  reload(repair)
  one.snapshot('v', 't')
  t.deepEqual(await one.ask('t', { base: 's' }), [[block * blockBytes, blockBytes]])
})

life('a base of which a restore was made is one still, and exact', 'restore', async (t, one) => {
  one.snapshot('v', 's')
  t.deepEqual(await one.ask('s'), expectedAllocated(one.thin('s')))
  one.snapshot('s', 'restored', { writable: true })
  for (const block of one.blocks().slice(0, 5)) one.write('restored', block)
  for (const block of one.blocks().slice(0, 5)) one.write('v', block)
  one.discard('v', one.random.integer(FRONT, MAPPED - 1))
  one.snapshot('v', 't')
  t.deepEqual(await one.ask('t', { base: 's' }), expectedDelta(one.thin('s'), one.thin('t')))
})

life(
  'a base that was trimmed and written to elsewhere, before and after snapshots of it',
  'elsewhere',
  async (t, one) => {
    one.snapshot('v', 's')
    // Repaired before and after, its tree is where it was.
    const repaired = one.random.chance(0.5)
    if (repaired) reload(repair)
    one.unlock('s')
    t.deepEqual(await one.ask('s'), expectedAllocated(one.thin('s')))
    const trimmed = lateBlock(one)
    // As many blocks as before; and where it was trimmed, the target has nothing either.
    one.discard('s', trimmed)
    if (one.random.chance(0.5)) one.snapshot('s', 'clone')
    one.write('s', MAPPED + one.random.integer(0, BLOCKS - MAPPED - 1))
    one.discard('v', trimmed)
    if (repaired) reload(repair)
    const descendant = one.random.chance(0.5)
    one.snapshot(descendant ? 's' : 'v', 't')
    t.is(await one.ask('t', { base: 's' }), 'DM_BASE_CHANGED')
  }
)

life('a name that goes to another snapshot, where the first was only ever a base', 'reused', async (t, one) => {
  one.snapshot('v', 's')
  one.write('v', 1)
  one.snapshot('v', 't1')
  t.is(await one.ask('t1', { base: 's' }, true), 'DM_BASE_UNRECORDED')
  t.deepEqual(await one.ask('t1', { base: 's' }), expectedDelta(one.thin('s'), one.thin('t1')))
  t.is(await one.ask('t1', { base: 's' }, true), 'DM_BASE_UNRECORDED', 'that it was a base proves nothing')
  one.remove('s')
  one.write('v', one.random.integer(2, MAPPED - 1))
  one.snapshot('v', 's')
  one.write('v', 0)
  one.snapshot('v', 't2')
  t.is(await one.ask('t2', { base: 's' }), 'DM_BASE_CHANGED')
})

/** Every other block of a target, so that an answer can be left anywhere. */
function ragged(one: Life, short: string): void {
  for (let block = 0; block < FRONT; block += 2) pool.discard(one.name(short), block)
}

life('an answer is gone on with, or begun again', 'resume', async (t, one) => {
  ragged(one, 'v')
  one.snapshot('v', 's')
  for (const block of one.blocks().slice(0, 9)) one.write('v', block)
  one.snapshot('v', 't', { writable: true })
  const base = one.random.chance(0.5) ? 's' : undefined
  const about = base === undefined ? {} : { base }
  const whole = base === undefined ? expectedAllocated(one.thin('t')) : expectedDelta(one.thin('s'), one.thin('t'))
  const at = one.random.integer(0, whole.length - 1)
  const from = whole[at][0] + whole[at][1]
  t.is(await one.ask('t', { ...about, from }), 'DM_RESUME_REFUSED', 'nothing was begun')
  t.deepEqual(await one.ask('t', about), whole)
  t.deepEqual(await one.ask('t', { ...about, from }), whole.slice(at + 1))

  const what = one.random.pick(['written', 'overwritten', 'trimmed', 'retaken'] as const)
  const before = at === 0 ? 0 : Math.floor(whole[at][0] / blockBytes) - 1
  if (what === 'written') one.write('t', BLOCKS - 1)
  else if (what === 'overwritten') one.write('t', Math.max(1, before))
  else if (what === 'trimmed') one.discard('t', MAPPED - 1)
  else {
    one.remove('t')
    one.write('v', Math.max(1, before))
    one.snapshot('v', 't')
  }
  t.is(await one.ask('t', { ...about, from }), 'DM_RESUME_REFUSED', what)
  t.true(Array.isArray(await one.ask('t', about)), 'from the beginning')
  return what
})

life('a volume in use is no target; at rest, or as a snapshot, it is', 'live', async (t, one) => {
  pool.write(one.name('v'), one.random.integer(0, BLOCKS - 1))
  t.is(await one.ask('v'), 'DM_VOLUME_IN_USE')
  one.snapshot('v', 's')
  t.is(await one.ask('v', { base: 's' }), 'DM_ORDER_REVERSED')
  t.deepEqual(await one.ask('s'), expectedAllocated(one.thin('s')))
  pool.deactivate(one.name('v'))
  pool.activate(one.name('v'), { readOnly: true })
  t.deepEqual(await one.ask('v'), expectedAllocated(one.thin('v')))
})

test.serial(
  "a pool's clock that has no room in mappings any more, and external origins that tables exchange",
  async (t) => {
    const old = new RawPool({
      name: 'bases-old',
      offsetBytes: 32 * mebibyte,
      metadataBytes: 2 * mebibyte,
      dataBytes: 64 * mebibyte,
      withoutData: true
    })
    old.createVolume('old-v', 0, BLOCKS)
    old.write('old-v', 0, FRONT)
    old.snapshot('old-v', 'old-first', 1)
    t.deepEqual(await questions.ask({ target: old.handle('old-first') }), expectedAllocated(old.thin('old-first')))

    // The device is the same, and what it holds where it maps nothing is another's.
    old.snapshot('old-v', 'old-second', 2)
    const over = (name: string) => {
      const { thinId, blocks } = old.thin(name)
      old.deactivate(name)
      createDevice(name, `${thinTable(old.name, thinId, blocks * blockBytes)} /dev/ubda`, '--readonly')
    }
    for (const name of ['old-first', 'old-second']) over(name)
    const about = { base: old.handle('old-first'), target: old.handle('old-second') }
    t.is(await questions.ask(about), 'DM_NOT_TRACKED')
    for (const name of ['old-first', 'old-second']) removeDevice(name)

    // As after so many snapshots.
    const image = join(files, 'old.xml')
    old.deactivate('old-v')
    removeDevice(old.name)
    run('bash', ['-c', `thin_dump ${old.metadata} | sed '1,2s/ time="[0-9]*"/ time="${2 ** 24 - 1}"/' > ${image}`])
    run('thin_restore', ['-i', image, '-o', spare])
    run('dd', [`if=${spare}`, `of=${old.metadata}`, 'bs=1M', 'conv=fsync', 'status=none'])
    createDevice(old.name, old.table())
    for (const name of ['old-v', 'old-first', 'old-second']) old.activate(name, { readOnly: name !== 'old-v' })
    t.deepEqual(await questions.ask({ target: old.handle('old-second') }), expectedAllocated(old.thin('old-second')))
    old.snapshot('old-v', 'old-base', 3)
    t.is(await questions.ask({ target: old.handle('old-base') }), 'DM_METADATA_UNSUPPORTED')
    old.deactivate('old-base')
    old.activate('old-base')
    old.write('old-base', 1)
    old.snapshot('old-base', 'old-target', 4)
    const question = { base: old.handle('old-base'), target: old.handle('old-target') }
    t.is(await questions.ask(question), 'DM_METADATA_UNSUPPORTED')
    old.close()
  }
)

/** A volume group with one pool, made anew where a name has changed. */
const group = 'base-vg'

function lvmVolume(blocks = 200): string {
  const disk = run('losetup', ['--find', '--show', loopFile()]).trim()
  createGroup(group, disk)
  createPool(group, 'pool', 64)
  const volume = createThin(group, 'pool', 'data', 24)
  writeBlocks(volume, 0, blocks, 'a')
  return disk
}

function loopFile(): string {
  const file = join(files, 'disk')
  if (!existsSync(file)) run('truncate', ['--size', '128M', file])
  return file
}

/** What can become of the names by which a snapshot was served: commands, and the handles that it then has. */
const renamings = [
  { commands: [['lvrename', group, 'S', 'T']], handles: [`${group}/T`, '*/T', 'base--vg-pool-tpool/base--vg-T'] },
  { commands: [['lvrename', group, 'pool', 'other']], handles: [`${group}/S`, 'base--vg-other-tpool/base--vg-S'] },
  { commands: [['vgrename', group, 'else-vg']], handles: ['else-vg/S', '*/S', 'else--vg-pool-tpool/else--vg-S'] },
  {
    commands: [
      ['lvextend', '--size', '+4m', `${group}/S`],
      ['lvrename', group, 'S', 'T']
    ],
    handles: [`${group}/T`, '*/T']
  }
] as const

test.serial(`a snapshot of LVM's is the same by whatever name (${again})`, async (t) => {
  t.timeout(600_000 + count * 120_000)
  for (let round = 0; round < count; round++) {
    const random = new Random(seeds.integer(0, 2 ** 31))
    const disk = lvmVolume()
    const snapshot = `s${round}`
    createSnapshot(group, 'data', snapshot, { active: true })
    const served = random.pick([`${group}/${snapshot}`, `*/${snapshot}`, `base--vg-pool-tpool/base--vg-${snapshot}`])
    const all = await questions.ask({ target: served })
    t.deepEqual(all, [[0, 200 * blockBytes]] satisfies Extent[])
    const block = random.integer(0, 199)
    const trim = ['--offset', String(block * blockBytes), '--length', String(blockBytes)]
    for (const name of [snapshot, 'data']) run('blkdiscard', [...trim, `/dev/${group}/${name}`])

    const { commands, handles } = renamings[(round + random.integer(0, 3)) % 4]
    const named = (text: string) =>
      text.replace(/\bS\b/, snapshot).replace(/\bT\b/, `${snapshot}-then`.replace('-', ''))
    for (const [command, ...words] of commands) lvm(command, ...words.map(named))
    const now = lvm('vgs', '--noheadings', '--options', 'vg_name', '--select', 'vg_name=~-vg$').trim()
    createSnapshot(now, 'data', `t${round}`)
    const target = `${now}/t${round}`
    for (const handle of handles) {
      t.is(await questions.ask({ base: named(handle), target }), 'DM_BASE_CHANGED', `${served}, then ${named(handle)}`)
    }
    lvm('vgremove', '--force', now)
    run('losetup', ['--detach', disk])
  }
})

test.serial(`a snapshot of LVM's that could be written to for a moment (${again})`, async (t) => {
  t.timeout(600_000 + count * 120_000)
  const disk = lvmVolume()
  t.is(await questions.ask({ target: `${group}/data` }), 'DM_VOLUME_IN_USE')
  lvm('lvchange', '--permission', 'r', `${group}/data`)
  t.deepEqual(await questions.ask({ target: `${group}/data` }), [[0, 200 * blockBytes]])
  lvm('lvchange', '--permission', 'rw', `${group}/data`)
  for (let round = 0; round < count; round++) {
    const random = new Random(seeds.integer(0, 2 ** 31))
    const [base, target] = [`moment${round}`, `after${round}`]
    createSnapshot(group, 'data', base, { active: true })
    lvm('lvchange', '--permission', 'r', `${group}/${base}`)
    t.true(Array.isArray(await questions.ask({ target: `${group}/${base}` })))
    lvm('lvchange', '--permission', 'rw', `${group}/${base}`)
    writeBlocks(`/dev/${group}/${base}`, random.integer(0, 199), 1, 'b')
    lvm('lvchange', '--permission', 'r', `${group}/${base}`)
    createSnapshot(group, base, target)
    t.is(await questions.ask({ base: `${group}/${base}`, target: `${group}/${target}` }), 'DM_BASE_CHANGED')
    lvm('lvremove', `${group}/${target}`, `${group}/${base}`)
  }
  lvm('vgremove', '--force', group)
  run('losetup', ['--detach', disk])
})

test.serial(`a volume of LVM's that has got the device of a snapshot merged into it (${again})`, async (t) => {
  t.timeout(600_000 + count * 120_000)
  const disk = lvmVolume()
  for (let round = 0; round < count; round++) {
    const random = new Random(seeds.integer(0, 2 ** 31))
    const [served, clone, target, renamed] = ['served', 'clone', 'target', 'renamed'].map((each) => `${each}${round}`)
    createSnapshot(group, 'data', served, { active: true })
    t.true(Array.isArray(await questions.ask({ target: `${group}/${served}` })))
    // What is written is older than the clone, whose device is the volume's from then on: its mappings give nothing away.
    writeBlocks(`/dev/${group}/${served}`, random.integer(0, 199), 1, 'b')
    createSnapshot(group, served, clone)
    lvm('lvchange', '--activate', 'n', `${group}/${served}`)
    lvm('lvconvert', '--merge', `${group}/${clone}`)
    // That is when it is done.
    lvm('lvchange', '--activate', 'y', `${group}/${served}`)
    t.is(lvm('lvs', '--noheadings', '--select', `lv_name=${clone}`, group), '', 'the clone is gone')
    createSnapshot(group, served, target)
    const otherwise = random.chance(0.5) ? `*/${served}` : `${group}/${renamed}`
    if (!otherwise.startsWith('*')) lvm('lvrename', group, served, renamed)
    for (const base of otherwise.startsWith('*') ? [otherwise, `${group}/${served}`] : [otherwise]) {
      t.is(await questions.ask({ base, target: `${group}/${target}` }), 'DM_BASE_CHANGED', base)
    }
    lvm('lvremove', `${group}/${target}`, `${group}/${otherwise.startsWith('*') ? served : renamed}`)
  }
  lvm('vgremove', '--force', group)
  run('losetup', ['--detach', disk])
})

test.serial(`a base that was written to, between two repairs by LVM (${again})`, async (t) => {
  t.timeout(600_000 + count * 120_000)
  let back = 0
  for (let round = 0; round < count; round++) {
    const random = new Random(seeds.integer(0, 2 ** 31))
    // More than a leaf.
    const disk = lvmVolume(MAPPED)
    const [base, target] = [`${group}/s${round}`, `${group}/t${round}`]
    createSnapshot(group, 'data', `s${round}`)
    const repair = () => {
      lvm('vgchange', '--activate', 'n', group)
      lvm('lvconvert', '--repair', `${group}/pool`)
      lvm('lvremove', `${group}/pool_meta0`)
      lvm('lvchange', '--activate', 'y', `${group}/data`)
    }
    repair()
    const metadata = '/dev/mapper/base--vg-pool_tmeta'
    t.true(Array.isArray(await questions.ask({ target: base })))
    const before = await fingerprintOf(metadata, 2)
    lvm('lvchange', '--activate', 'y', '--ignoreactivationskip', base)
    writeBlocks(`/dev/${base}`, random.integer(253, MAPPED - 1), 1, 'b')
    lvm('lvchange', '--activate', 'n', base)
    repair()
    if (await cameBack(metadata, 2, before)) back++
    createSnapshot(group, `s${round}`, `t${round}`)
    t.is(await questions.ask({ base, target }), 'DM_BASE_CHANGED')
    lvm('vgremove', '--force', group)
    run('losetup', ['--detach', disk])
  }
  t.log(`lvconvert --repair: came back ${back} of ${count}`)
})
