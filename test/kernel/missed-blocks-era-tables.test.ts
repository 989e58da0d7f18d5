/**
 * Lives of tracked volumes whose tables, or whose rows in the catalog, were not what they were taken for. Each of these ended in an answer that
 * lacked blocks, or in an agent that did not start; now it ends in everything that differs, or in a refusal.
 */
import { closeSync, constants, mkdtempSync, openSync, writeFileSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import { DeviceMapper } from '../../native/device-mapper.ts'
import { type Catalog, openCatalog } from '../../src/agent/catalog/catalog.ts'
import { forgetHistory } from '../../src/agent/catalog/retention.ts'
import { countResumes } from '../../src/agent/era/boundary/resumes.ts'
import { eraUuid } from '../../src/agent/node/era-devices.ts'
import { asDeltamapperError } from '../../src/errors.ts'
import type { Random } from '../support/random.ts'
import { blockFingerprints } from './block-fingerprints.ts'
import { alignedBuffer, createDevice, reloadDevice, removeDevice, run } from './dmsetup.ts'
import { EraAnswers, recorderOf } from './era-answers.ts'
import { blockBytes, type Driver, loopDisk, mebibyte, startDriver, watchdogs } from './era-lab.ts'
import { intercepted, type Interception } from './intercepted.ts'
import { labRun } from './lab-run.ts'
import { failure } from './owned-agent.ts'

run('/run/modprobe', ['dm-era'])
const deviceMapper = new DeviceMapper()
const answers = new EraAnswers(deviceMapper)
test.after.always(async () => {
  await answers.close()
  await deviceMapper.close()
})

const buffer = alignedBuffer(blockBytes)
/** Only blocks below this one are written to, so that a range that has grown does not hide them. */
const WRITTEN_BLOCKS = 256
const MEBIBYTES = (WRITTEN_BLOCKS * blockBytes) / mebibyte
const sectorsOf = (mebibytes: number) => (mebibytes * mebibyte) / 512

/** A tracked volume, and what is in it at each of its snapshots. */
class Life implements AsyncDisposable {
  readonly name: string
  /** What is done when a snapshot's intent is on record, and nothing is suspended yet. */
  beforeSuspension: (() => unknown) | undefined
  /** Of the era device. */
  eraNow = { uuid: '' }
  /** What is done once the agent has suspended the volume, and not looked at it yet; once. */
  onceSuspended: (() => unknown) | undefined
  /** What is done once the catalog has done something, and before whoever asked goes on; once. */
  afterCall: [name: string, work: () => Promise<unknown>] | undefined
  /** What is done instead of loading another table into the era device. */
  aroundLoad: ((load: () => Promise<unknown>) => Promise<unknown>) | undefined
  catalog!: Catalog
  #driver!: Driver
  readonly #disk = loopDisk(MEBIBYTES)
  readonly #random: Random
  readonly #catalogPath = join(mkdtempSync(join(tmpdir(), 'missed-')), 'catalog.sqlite')
  readonly #content = new Map<string, string[]>()
  #mebibytes = MEBIBYTES
  #snapshots = 0
  /** Which agent may still do something; those before it were killed. */
  #agent = 0

  private constructor(name: string, random: Random) {
    this.name = name
    this.#random = random
  }

  static async begin(name: string, random: Random): Promise<Life> {
    const life = new Life(name, random)
    createDevice(life.below, life.#belowTable(), '--uuid', `TEST-${name}`)
    await life.startAgent()
    await life.volumes.attachEra({
      ...{ name, dataDevice: `/dev/mapper/${life.below}`, metadataDevice: loopDisk(4).path, blockBytes },
      ...{ snapshotSize: '', allowLossyKernel: false }
    })
    return life
  }

  get below(): string {
    return `${this.name}-below`
  }

  get volumes() {
    return this.#driver.volumes
  }

  /** The part of an agent that tracks volumes; what one before it has left unfinished is settled. */
  async startAgent(): Promise<void> {
    this.catalog = await openCatalog(this.#catalogPath)
    const agent = ++this.#agent
    const isAlive = () => agent === this.#agent
    const meddled = <T extends object>(target: T, change: Interception) =>
      intercepted(target, (...call) => (isAlive() ? change(...call) : new Promise(() => undefined)))
    const catalog = meddled(this.catalog, async (name, [intent], go) => {
      const result = await go()
      if (name === 'eraVolumes.begin' && (intent as { kind: string }).kind === 'snapshot')
        await this.beforeSuspension?.()
      if (this.onceSuspended && (await deviceMapper.info(this.name))?.suspended) {
        const work = this.onceSuspended
        this.onceSuspended = undefined
        work()
      }
      const [awaited, work] = this.afterCall ?? []
      if (name !== awaited) return result
      this.afterCall = undefined
      await work?.()
      return result
    })
    const devices = meddled(deviceMapper, async (name, [device], go) => {
      const isEra = name === 'reload' && JSON.stringify(device) === JSON.stringify(await this.era())
      return isEra && this.aroundLoad ? this.aroundLoad(() => go() as Promise<unknown>) : go()
    })
    const recorder = recorderOf(catalog, devices)
    this.#driver = await startDriver(catalog, devices, { recorder })
  }

  /** Ends it in order, and the catalog too. */
  async stopAgent(): Promise<void> {
    await this.#driver[Symbol.asyncDispose]()
    await this.catalog.close()
  }

  /** As where everything in a container is killed. It never goes on. */
  async killAgent(): Promise<void> {
    this.#agent++
    for (const pid of watchdogs()) process.kill(pid, 'SIGKILL')
    await this.catalog.close()
  }

  async era(): Promise<{ uuid: string }> {
    return { uuid: eraUuid({ id: (await this.catalog.eraVolumes.find(this.name))?.id ?? '' }) }
  }

  /** Of the volume, as it is on record; and of what is below. */
  async sizeBytes(): Promise<number> {
    return (await this.catalog.eraVolumes.find(this.name))?.sizeBytes ?? 0
  }

  get belowBytes(): number {
    return this.#mebibytes * mebibyte
  }

  async line(): Promise<string | undefined> {
    return (await this.catalog.eraVolumes.find(this.name))?.line
  }

  /** Writes something new to some blocks. */
  write(): void {
    const file = openSync(`/dev/mapper/${this.name}`, constants.O_WRONLY | constants.O_DIRECT)
    try {
      for (let i = 0; i < 4; i++) {
        buffer.fill(this.#random.integer(1, 255))
        buffer[this.#random.integer(0, buffer.length - 1)] ^= this.#random.integer(1, 255)
        writeSync(file, buffer, 0, blockBytes, this.#random.integer(0, WRITTEN_BLOCKS - 1) * blockBytes)
      }
    } finally {
      closeSync(file)
    }
  }

  /** Has what is written go past the era device, until what this returns is called. */
  exchangeForLinear(): () => void {
    const table = run('dmsetup', ['table', this.name]).trim()
    reloadDevice(this.name, `0 ${table.split(' ')[1]} linear /dev/mapper/${this.name}-guard 0`)
    return () => reloadDevice(this.name, table)
  }

  /** Takes a snapshot. @param meanwhile what is done while the volume is suspended */
  async snapshot(meanwhile: () => unknown = () => undefined, name = `s${++this.#snapshots}`): Promise<string> {
    const volume = this.name
    const { token } = await this.volumes.beginSnapshot({ volume, name, deadlineMs: 0 })
    this.#content.set(name, blockFingerprints(this.#disk.path, blockBytes, WRITTEN_BLOCKS * blockBytes))
    await meanwhile()
    await this.volumes.endSnapshot({ token, reference: 'x', abandon: false })
    return name
  }

  /** Enlarges what is below, and then the volume. */
  async grow(): Promise<void> {
    this.enlarge()
    await this.volumes.growEra({ volume: this.name })
  }

  enlarge(): void {
    this.#disk.grow(++this.#mebibytes)
    reloadDevice(this.below, this.#belowTable())
  }

  /** Whether every block that differs is in the answer. @returns how many differ */
  async compare(t: ExecutionContext, base: string, target: string, context: string): Promise<number> {
    const extents = await answers.delta(this.catalog, `${this.name}/${base}`, `${this.name}/${target}`)
    const [was, is] = [this.#content.get(base) ?? [], this.#content.get(target) ?? []]
    const differing = is.flatMap((each, block) => (each === was[block] ? [] : [block]))
    const missed = differing.filter((block) => {
      const at = block * blockBytes
      return !extents.some(([offset, size]) => offset <= at && offset + size >= at + blockBytes)
    })
    t.deepEqual(missed, [], `of ${differing.length} blocks from ${base} to ${target}: ${context}`)
    return differing.length
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.volumes.detachEra({ volume: this.name })
    await this.stopAgent()
    removeDevice(this.below)
  }

  #belowTable(): string {
    return `0 ${sectorsOf(this.#mebibytes)} linear ${this.#disk.path} 0`
  }
}

/** What something is refused with. */
async function codeOf(promise: Promise<unknown>): Promise<string> {
  return promise.then(
    () => 'done',
    (error: unknown) => asDeltamapperError(error).code
  )
}

test.serial('the kernel announces each resume of a device once, and nothing else but a rename as one', (t) => {
  const disk = loopDisk(4)
  const table = (sectors: number) => `0 ${sectors} linear ${disk.path} 0`
  createDevice('announced', table(2048), '--uuid', 'TEST-announced')
  const [major, minor] = run('dmsetup', ['info', '-c', '--noheadings', '-o', 'major,minor', 'announced'])
    .trim()
    .split(':')
    .map(Number)
  const resumes = countResumes()
  const counted = (act: () => unknown) => {
    const before = resumes.of({ major, minor })
    act()
    return resumes.of({ major, minor }) - before
  }
  const dmsetup = (...words: string[]) => run('dmsetup', words)
  t.is(
    counted(() => dmsetup('suspend', 'announced')),
    0
  )
  t.is(
    counted(() => dmsetup('resume', 'announced')),
    1
  )
  t.is(
    counted(() => dmsetup('resume', 'announced')),
    0,
    'it is not suspended'
  )
  t.is(
    counted(() => dmsetup('load', 'announced', '--table', table(4096))),
    0
  )
  t.is(
    counted(() => dmsetup('resume', 'announced')),
    1,
    'with another size'
  )
  t.is(
    counted(() => dmsetup('load', '--readonly', 'announced', '--table', table(4096))),
    0
  )
  t.is(
    counted(() => dmsetup('resume', 'announced')),
    1,
    'made read-only'
  )
  t.is(
    counted(() => writeFileSync(`/sys/dev/block/${major}:${minor}/uevent`, 'change')),
    0,
    'udevadm trigger'
  )
  t.is(
    counted(() => {
      // Nobody fetches meanwhile: the event loop has no turn.
      for (let i = 0; i < 2000; i++) writeFileSync('/sys/block/ubda/uevent', 'change')
      dmsetup('suspend', 'announced')
      dmsetup('resume', 'announced')
      for (let i = 0; i < 1000; i++) writeFileSync(`/sys/dev/block/${major}:${minor}/uevent`, 'change')
    }),
    1,
    'among thousands of others'
  )
  t.is(
    counted(() => dmsetup('rename', 'announced', 'announced-anew') + dmsetup('rename', 'announced-anew', 'announced')),
    2,
    'a rename looks like one'
  )
  resumes.close()
  t.is(
    counted(() => dmsetup('suspend', 'announced') + dmsetup('resume', 'announced')),
    0,
    'nobody counts any more'
  )
  removeDevice('announced')
})

const grows = labRun(1)

/** What becomes of a grow whose deadline passes before its table is loaded. */
const delays = [
  'goes on',
  'goes on, suspended by somebody else',
  'goes on, resumed by somebody else',
  'is killed'
] as const

test.serial(`a grow that passes its deadline loses nothing (${grows.again})`, async (t) => {
  const { random, count, again } = grows
  t.timeout(600_000 + count * 120_000)
  await using life = await Life.begin('late', random)
  const ended: Record<string, number> = {}
  const first = random.integer(0, delays.length - 1)
  // (The target of one round is the base of the next: snapshots are what takes long.)
  let before = await life.snapshot()
  for (let i = 0; i < count; i++) {
    const delay = delays[(first + i) % delays.length] ?? 'goes on'
    const context = `the agent ${delay}, round ${i}, ${again}`
    life.write()
    const line = await life.line()
    const killed = Promise.withResolvers<'killed'>()
    life.aroundLoad = async (load) => {
      life.aroundLoad = undefined
      // As its watchdog does when the deadline has passed.
      await deviceMapper.resume(await life.era())
      life.write()
      if (delay === 'goes on, suspended by somebody else') run('dmsetup', ['suspend', life.name])
      const loaded = await load()
      if (delay !== 'goes on, suspended by somebody else') life.write()
      if (delay === 'goes on, resumed by somebody else') run('dmsetup', ['resume', life.name])
      if (delay !== 'is killed') return loaded
      killed.resolve('killed')
      return new Promise(() => undefined)
    }
    life.enlarge()
    let refused = 'DM_SNAPSHOT_TOO_SLOW'
    const growing = life.volumes.growEra({ volume: life.name })
    if (delay === 'is killed') {
      t.is(await Promise.race([growing, killed.promise]), 'killed', context)
      await life.killAgent()
      life.write()
      await life.startAgent()
      // (What takes long is settled after the start.)
      t.like(await life.volumes.activateEra({ volume: life.name, startOver: false }), {
        underWay: '',
        suspended: false
      })
      t.not(await life.line(), line, context)
    } else {
      refused = await codeOf(growing)
      if (delay === 'goes on') t.is(await life.line(), line, context)
      else t.not(await life.line(), line, context)
    }
    t.like(await deviceMapper.info(life.name), { suspended: false, hasInactiveTable: false }, context)
    if ((await life.sizeBytes()) < life.belowBytes) await life.volumes.growEra({ volume: life.name })
    life.write()
    const after = await life.snapshot()
    let outcome = 'all that differs'
    if (delay !== 'goes on') {
      outcome = (await failure(life.compare(t, before, after, context))).code
      t.is(outcome, 'DM_HISTORY_BROKEN', context)
    } else t.true((await life.compare(t, before, after, context)) > 0, context)
    t.is(refused, delay === 'goes on, resumed by somebody else' ? 'done' : 'DM_SNAPSHOT_TOO_SLOW', context)
    ended[`${delay}: ${outcome}`] = (ended[`${delay}: ${outcome}`] ?? 0) + 1
    before = after
  }
  t.log(ended)
})

const loads = labRun(2)

test.serial(`what another program has loaded is not put in place (${loads.again})`, async (t) => {
  const { random, count, again } = loads
  t.timeout(600_000 + count * 120_000)
  await using life = await Life.begin('loaded', random)
  const elsewhere = loopDisk(4 * MEBIBYTES).path
  const guard = `${life.name}-guard`
  const ended: Record<string, number> = {}
  const moments = ['before', 'after the look', 'while suspended', 'before a grow', 'killed while suspended'] as const
  const first = random.integer(0, moments.length - 1)
  let before = await life.snapshot()
  for (let i = 0; i < count; i++) {
    const live = run('dmsetup', ['table', life.name]).trim()
    const sectors = Number(live.split(' ')[1])
    const tables: Record<string, [device: string, table: string]> = {
      'the same era table': [life.name, live],
      'an era table of half the size': [life.name, live.replace(`0 ${sectors} `, `0 ${sectors / 2} `)],
      'past the era device': [life.name, `0 ${sectors} linear /dev/mapper/${guard} 0`],
      'another disk below the era device': [guard, `0 ${sectors} linear ${elsewhere} 0`],
      'another disk below the guard': [life.below, `0 ${sectors} linear ${elsewhere} 0`]
    }
    const what = random.pick(Object.keys(tables))
    const moment = moments[(first + i) % moments.length] ?? 'before'
    const [device, table] = tables[what] ?? ['', '']
    const context = `${what}, ${moment}, round ${i}, ${again}`
    const load = () => run('dmsetup', ['load', device, '--table', table])
    life.write()
    let outcome = 'done'
    if (moment === 'before' || moment === 'before a grow') {
      load()
      life.write()
      if (moment === 'before a grow') life.enlarge()
      outcome = await codeOf(moment === 'before' ? life.snapshot() : life.volumes.growEra({ volume: life.name }))
      const left = (await deviceMapper.info(device))?.hasInactiveTable
      if (left) run('dmsetup', ['clear', device])
      if ((await life.sizeBytes()) < life.belowBytes) await life.volumes.growEra({ volume: life.name })
    } else if (moment === 'after the look') {
      life.beforeSuspension = () => {
        load()
        life.write()
      }
      outcome = await codeOf(life.snapshot())
      life.beforeSuspension = undefined
    } else if (moment === 'while suspended') {
      await life.snapshot(load)
    } else {
      await life.volumes.beginSnapshot({ volume: life.name, name: `k${i}`, deadlineMs: 0 })
      load()
      await life.killAgent()
      await life.startAgent()
      outcome = 'given up'
    }
    // (What stands below is looked at before, and not resumed by us.)
    if (device === life.below) run('dmsetup', ['clear', device])
    life.write()
    const after = await life.snapshot()
    if (moment === 'after the look' && device === life.name)
      t.is((await failure(life.compare(t, before, after, context))).code, 'DM_HISTORY_BROKEN', context)
    else await life.compare(t, before, after, context)
    for (const each of [life.name, guard]) {
      t.like(await deviceMapper.info(each), { suspended: false, hasInactiveTable: false }, context)
    }
    t.regex(run('dmsetup', ['table', life.name]), /^0 \d+ era /, context)
    if (moment === 'before' || moment === 'before a grow') t.is(outcome, 'DM_DEVICE_BUSY', context)
    ended[`${moment}: ${outcome}`] = (ended[`${moment}: ${outcome}`] ?? 0) + 1
    before = after
  }
  t.log(ended)
})

const owns = labRun(1)

/** What leaves the agent with eras that it said it would begin, and has not. */
const allowances: Record<string, (life: Life, exchange: () => void) => Promise<unknown>> = {
  'an agent killed while the volume is suspended': async (life, exchange) => {
    await life.volumes.beginSnapshot({ volume: life.name, name: 'killed', deadlineMs: 0 })
    await life.killAgent()
    await life.startAgent()
    exchange()
  },
  'an agent killed once its snapshot is on record': async (life, exchange) => {
    const killed = Promise.withResolvers<void>()
    life.afterCall = ['eraSnapshots.record', () => (killed.resolve(), new Promise(() => undefined))]
    void life.snapshot().catch(() => undefined)
    await killed.promise
    await life.killAgent()
    await life.startAgent()
    exchange()
  },
  'a grow that fails': async (life, exchange) => {
    life.aroundLoad = () => {
      life.aroundLoad = undefined
      return Promise.reject(new Error('not today'))
    }
    life.enlarge()
    await codeOf(life.volumes.growEra({ volume: life.name }))
    exchange()
    await life.volumes.growEra({ volume: life.name }).catch(() => undefined)
    if ((await life.sizeBytes()) < life.belowBytes) await life.volumes.growEra({ volume: life.name })
  },
  'while a snapshot is recorded': async (life, exchange) => {
    life.afterCall = ['leases.begin', () => Promise.resolve(exchange())]
    await life.snapshot().catch(() => undefined)
  },
  'right before a suspension, and back after it': async (life) => {
    let back: (() => void) | undefined
    life.beforeSuspension = () => {
      life.beforeSuspension = undefined
      back = life.exchangeForLinear()
    }
    await failure(life.snapshot())
    life.write()
    back?.()
  }
}

test.serial(`eras that the agent begins itself hide no other's (${owns.again})`, async (t) => {
  const { random, count, again } = owns
  t.timeout(600_000 + count * 120_000)
  await using life = await Life.begin('allowed', random)
  const ended: Record<string, number> = {}
  let deck: string[] = []
  for (let i = 0; i < count; i++) {
    if (deck.length === 0) deck = random.shuffle(Object.keys(allowances))
    const what = deck.pop() ?? ''
    const context = `${what}, round ${i}, ${again}`
    await life.snapshot()
    const before = await life.snapshot()
    life.write()
    await allowances[what]?.(life, () => {
      const back = life.exchangeForLinear()
      life.write()
      back()
    })
    const after = await life.snapshot().catch(() => life.snapshot())
    const outcome = await life.compare(t, before, after, context).then(
      () => 'answered',
      (error: unknown) => asDeltamapperError(error).code
    )
    t.is(outcome, 'DM_HISTORY_BROKEN', context)
    ended[`${what}: ${outcome}`] = (ended[`${what}: ${outcome}`] ?? 0) + 1
  }
  t.log(ended)
})

const exchanges = labRun(1)

/** What somebody else does within the agent's own suspension; the device is suspended again in the end. */
const disturbances: Record<string, (life: Life) => void> = {
  'other tables, and back': (life) => {
    const back = life.exchangeForLinear()
    life.write()
    back()
    run('dmsetup', ['suspend', life.name])
  },
  'another device in its place, and back by another number': (life) => {
    const { uuid } = life.eraNow
    const table = run('dmsetup', ['table', life.name]).trim()
    run('dmsetup', ['remove', life.name])
    createDevice(life.name, `0 ${table.split(' ')[1]} linear /dev/mapper/${life.name}-guard 0`, '--uuid', uuid)
    life.write()
    run('dmsetup', ['remove', life.name])
    createDevice(`${life.name}-in-the-way`, `0 8 zero`)
    createDevice(life.name, table, '--uuid', uuid)
    run('dmsetup', ['suspend', life.name])
    run('dmsetup', ['remove', `${life.name}-in-the-way`])
  },
  'a table that was loaded before': (life) => {
    run('dmsetup', ['resume', life.name])
    life.write()
    run('dmsetup', ['suspend', life.name])
  }
}

test.serial(
  `tables that are exchanged while the agent has it suspended hide no write (${exchanges.again})`,
  async (t) => {
    const { random, count, again } = exchanges
    t.timeout(600_000 + count * 120_000)
    await using life = await Life.begin('exchanged', random)
    const ended: Record<string, number> = {}
    const kinds = Object.keys(disturbances)
    for (let i = 0; i < kinds.length * count; i++) {
      const what = kinds[i % kinds.length] ?? ''
      life.eraNow = await life.era()
      const context = `${what}, round ${i}, ${again}`
      await life.snapshot()
      const before = await life.snapshot()
      life.write()
      if (what === 'a table that was loaded before') {
        life.beforeSuspension = () => {
          life.beforeSuspension = undefined
          run('dmsetup', ['load', life.name, '--table', run('dmsetup', ['table', life.name]).trim()])
          life.write()
        }
      }
      life.onceSuspended = () => disturbances[what]?.(life)
      const taken = await codeOf(life.snapshot())
      t.true(life.onceSuspended === undefined, context)
      const after = await life.snapshot().catch(() => life.snapshot())
      const outcome = await life.compare(t, before, after, context).then(
        () => 'answered',
        (error: unknown) => asDeltamapperError(error).code
      )
      t.is(outcome, 'DM_HISTORY_BROKEN', context)
      ended[`${what}: ${taken}, ${outcome}`] = (ended[`${what}: ${taken}, ${outcome}`] ?? 0) + 1
    }
    t.log(ended)
  }
)

const forgets = labRun(1)

test.serial(`retention and names that are used again lose nothing (${forgets.again})`, async (t) => {
  const { random, count, again } = forgets
  t.timeout(600_000 + count * 120_000)
  await using life = await Life.begin('forgetful', random)
  const volume = life.name
  for (let i = 0; i < count; i++) {
    const context = `round ${i}, ${again}`
    const names = ['a', 'b', 'c', 'd'].map((each) => `${each}${i}`)
    const grown = random.integer(1, 3)
    for (const [at, name] of names.entries()) {
      if (at === grown) await life.grow()
      await life.snapshot(undefined, name)
      life.write()
    }
    const [a = '', b = '', c = '', d = ''] = names
    await life.compare(t, a, d, context)
    for (const name of random.shuffle([b, c])) await life.volumes.deleteSnapshot(volume, name)
    await forgetHistory(life.catalog, { keptMs: Number.MAX_SAFE_INTEGER, keep: 2 })
    await life.stopAgent()
    await life.startAgent()
    await life.compare(t, a, d, context)

    // Asked about as base only, or never.
    const reused = random.pick([a, b])
    if (reused === a) await life.volumes.deleteSnapshot(volume, a)
    life.write()
    await life.snapshot(undefined, reused)
    life.write()
    const last = await life.snapshot()
    t.is((await failure(life.compare(t, reused, last, context))).code, 'DM_BASE_CHANGED', context)
    await life.compare(t, d, last, context)
    for (const name of [d, reused, last, ...(reused === a ? [] : [a])]) await life.volumes.deleteSnapshot(volume, name)
  }
})
