/**
 * An agent that tracks a volume of LVM's is killed at any moment: the volume comes back within its deadline, the next agent finishes or undoes
 * what was begun, and nothing that was made for a snapshot that is not recorded is left.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import test from 'ava'
import { DeviceMapper } from '../../native/device-mapper.ts'
import { type AdminClient, connectAdmin } from '../../src/grpc/admin-client.ts'
import { openCatalog } from '../../src/agent/catalog/catalog.ts'
import type { EraVolumes } from '../../src/agent/era/era-volumes.ts'
import { discardLimit } from '../../src/devicemapper/block-queue.ts'
import { collectExtents } from '../support/collect-extents.ts'
import { blockFingerprints } from './block-fingerprints.ts'
import { createDevice, removeDevice, run, zeroStart } from './dmsetup.ts'
import { blockBytes, boundariesOnly, loopDisk, startDriver, watchdogs } from './era-lab.ts'
import { labRun } from './lab-run.ts'
import { LiveAgent, processes } from './live-agent.ts'
import { createGroup, createThick, lvm, prepareLvm } from './lvm-setup.ts'
import { type Moment, Mortal, never } from './mortal.ts'
import { failure, until } from './owned-agent.ts'

run('/run/modprobe', ['dm-era'])
prepareLvm({ mapped: true })
const deviceMapper = new DeviceMapper()
test.after.always(() => deviceMapper.close())

/** Calls that change something: where a process can die with something half done. */
const changing = new Set([
  ...['message', 'create', 'reload', 'clear', 'suspend', 'resume', 'remove'],
  ...['begin', 'complete', 'rollBack', 'saw', 'endHistory'].map((call) => `eraVolumes.${call}`),
  ...['eraSnapshots.record', 'eraSnapshots.delete']
])

const deaths = labRun(1)
/** Of the operations below, how many die where only a few moments are tried. */
const SLICE = 3

test.serial(`whichever call is its last, the next agent puts everything right (${deaths.again})`, async (t) => {
  t.timeout(3_600_000)
  const [data, metadata] = [loopDisk(16), loopDisk(4)]
  const folder = mkdtempSync(join(tmpdir(), 'mortal-'))
  let catalog = await openCatalog(join(folder, 'catalog.sqlite'))
  t.teardown(() => catalog.close())
  const commands = { mortal: { take: ['true'], remove: ['true'] } }
  const start = async (through?: Mortal) => {
    const [itsCatalog, itsDevices] = [
      through?.mortal(catalog) ?? catalog,
      through?.mortal(deviceMapper) ?? deviceMapper
    ]
    const driver = await startDriver(itsCatalog, itsDevices, { recorder: boundariesOnly(itsCatalog), commands })
    return driver.volumes
  }
  const attach = {
    ...{ name: 'mortal', dataDevice: data.path, metadataDevice: metadata.path, blockBytes: 65536 },
    ...{ snapshotSize: '', allowLossyKernel: false }
  }
  const volume = 'mortal'
  const there = async (volumes: EraVolumes) => (await volumes.listEra({ volume: '' })).volumes[0]
  const attached = async (volumes: EraVolumes) => {
    if (!(await there(volumes))) await volumes.attachEra(attach)
    await volumes.activateEra({ volume, startOver: false })
  }
  let mebibytes = 16
  let taken = 0
  /** What it takes beforehand, and what the process dies of. */
  const operations: Record<
    string,
    [prepare: (volumes: EraVolumes) => Promise<unknown>, die: (volumes: EraVolumes) => Promise<unknown>]
  > = {
    attach: [
      async (volumes) => {
        if (await there(volumes)) await volumes.detachEra({ volume })
        zeroStart(metadata.path)
      },
      (volumes) => volumes.attachEra(attach)
    ],
    detach: [attached, (volumes) => volumes.detachEra({ volume })],
    deactivate: [attached, (volumes) => volumes.deactivateEra({ volume, atShutdown: false })],
    activate: [
      async (volumes) => {
        await attached(volumes)
        await volumes.deactivateEra({ volume, atShutdown: false })
      },
      (volumes) => volumes.activateEra({ volume, startOver: false })
    ],
    grow: [
      async (volumes) => {
        await attached(volumes)
        data.grow(++mebibytes)
      },
      (volumes) => volumes.growEra({ volume })
    ],
    snapshot: [attached, (volumes) => volumes.createEraSnapshot({ volume, name: `s${taken++}`, deadlineMs: 0 })],
    'snapshot of a driver': [
      attached,
      async (volumes) => {
        const { token } = await volumes.beginSnapshot({ volume, name: `s${taken++}`, deadlineMs: 0 })
        await volumes.endSnapshot({ token, reference: 'x', abandon: false })
      }
    ]
  }
  let living = await start()
  const live = async (what: string, moment: Moment): Promise<number> => {
    const context = `${what}, ${moment.when} call ${moment.call}, ${deaths.again}`
    const [prepare, die] = operations[what] ?? []
    await prepare?.(living)
    const line = (await there(living))?.line
    await living.close()
    const mortal = new Mortal(moment, changing)
    const dying = await start(mortal)
    const outcome = await Promise.race([die?.(dying).then(() => 'done'), mortal.death])
    t.is(outcome, moment === never ? 'done' : 'died', context)
    // As where everything in a container is killed: nobody but the next agent resumes anything.
    for (const pid of watchdogs()) process.kill(pid, 'SIGKILL')
    await catalog.close()
    catalog = await openCatalog(join(folder, 'catalog.sqlite'))
    living = await start()
    const now = await until(
      () => there(living),
      (volume) => volume === undefined || volume.underWay === ''
    )
    if (now) t.like(now, { underWay: '', suspended: false, problem: '' }, context)
    for (const name of ['mortal', 'mortal-guard']) {
      const info = await deviceMapper.info(name)
      t.false(info?.suspended ?? false, context)
      if (info && now?.active) t.is(await discardLimit(info), 0, context)
      if (!now) t.is(info, undefined, context)
    }
    await attached(living)
    if (['grow', 'activate', 'snapshot', 'snapshot of a driver'].includes(what)) {
      t.is((await there(living))?.line, line, `${context}: nothing went unseen`)
    }
    return mortal.calls
  }
  const died: Record<string, string> = {}
  const all = Object.keys(operations)
  for (const what of deaths.count > 1 ? all : deaths.random.shuffle(all).slice(0, SLICE)) {
    const calls = await live(what, never)
    const moments = Array.from({ length: calls }, (_, i) => i + 1).flatMap((call): Moment[] => [
      { call, when: 'before' },
      { call, when: 'after' }
    ])
    const chosen = deaths.random.shuffle(moments).slice(0, deaths.count)
    for (const moment of chosen) await live(what, moment)
    died[what] = `${chosen.length} of ${moments.length}`
  }
  t.log(`died at ${JSON.stringify(died)}`)
  await living.detachEra({ volume })
  await living.close()
})

test.serial('the watchdog alone dies: the agent resumes at once, and nothing is under way', async (t) => {
  t.timeout(900_000)
  const catalog = await openCatalog(join(mkdtempSync(join(tmpdir(), 'alone-')), 'catalog.sqlite'))
  t.teardown(() => catalog.close())
  const commands = { alone: { take: ['sh', '-c', 'sleep 600'], remove: ['true'] } }
  await using driver = await startDriver(catalog, deviceMapper, { recorder: boundariesOnly(catalog), commands })
  const { volumes } = driver
  const [data, metadata] = [loopDisk(16), loopDisk(4)]
  const below = createDevice('below', `0 32768 linear ${data.path} 0`)
  const volume = 'alone'
  await volumes.attachEra({
    ...{ name: volume, dataDevice: below, metadataDevice: metadata.path, blockBytes },
    ...{ snapshotSize: '', allowLossyKernel: false }
  })
  const isSuspended = async () => (await deviceMapper.info(volume))?.suspended === true
  const kill = () => {
    const pids = watchdogs()
    t.is(pids.length, 1)
    for (const pid of pids) process.kill(pid, 'SIGKILL')
  }
  const deadlineMs = 600_000
  const backAgain = async (what: string) => {
    await until(isSuspended, (is) => !is)
    const { volumes: shown } = await until(
      () => volumes.listEra({ volume }),
      ({ volumes: [each] }) => each?.underWay === ''
    )
    t.like(shown[0], { active: true, problem: '', suspended: false }, what)
  }
  const { token } = await volumes.beginSnapshot({ volume, name: 'a', deadlineMs })
  t.true(await isSuspended())
  kill()
  await backAgain('while a driver takes its snapshot')
  const ended = await failure(volumes.endSnapshot({ token, reference: 'x', abandon: false }))
  t.is(ended.code, 'DM_SNAPSHOT_TOO_SLOW')

  const taking = failure(volumes.createEraSnapshot({ volume, name: 'b', deadlineMs }))
  await until(isSuspended, (is) => is)
  kill()
  t.is((await taking).code, 'DM_CALL_STUCK', 'the command is not waited for')
  await backAgain('while a command takes it')

  // While it suspends, which waits for a write that waits for the device below.
  run('dmsetup', ['suspend', '--noflush', 'below'])
  const writer = spawn('dd', [
    'if=/dev/zero',
    'of=/dev/mapper/alone',
    'bs=4k',
    'count=1',
    'oflag=direct',
    'status=none'
  ])
  const written = once(writer, 'exit')
  await until(
    () => Promise.resolve(readFileSync(`/proc/${writer.pid}/stat`, 'utf8')),
    (stat) => stat.includes(' D ')
  )
  const beginning = failure(volumes.beginSnapshot({ volume, name: 'c', deadlineMs }))
  await until(
    () => Promise.resolve(watchdogs()),
    ([pid]) => processes().some(({ parent, words }) => parent === pid && words.includes('device-mapper-worker'))
  )
  // (It cannot be seen that its call has begun. Killed before that, this shows less.)
  await sleep(2000)
  kill()
  t.is((await beginning).code, 'DM_CALL_STUCK')
  run('dmsetup', ['resume', 'below'])
  t.deepEqual(await written, [0, null])
  await backAgain('while it suspends')
  await volumes.detachEra({ volume })
  removeDevice('below')
})

const kills = labRun(2)
/** How long a suspension may last here, in milliseconds. */
const DEADLINE_MS = 15_000

/** Writes to a few blocks, others every now and then, without end. */
const writeHere = `
const { openSync, writeSync, constants } = require('node:fs')
const file = openSync(process.argv[1], constants.O_WRONLY | constants.O_DIRECT)
const buffer = Buffer.from(new WebAssembly.Memory({ initial: 1 }).buffer, 0, 4096)
const pause = new Int32Array(new SharedArrayBuffer(4))
process.stdout.write('begun')
for (let i = 0, hot; ; i++) {
  if (i % 300 === 0) hot = Array.from({ length: 5 }, () => Math.floor(Math.random() * process.argv[2]))
  buffer.writeUInt32LE(i)
  writeSync(file, buffer, 0, 4096, hot[i % 5] * 65536)
  Atomics.wait(pause, 0, 0, 5)
}`

test.serial(
  `whatever an agent dies of, the volume comes back, and no change is missing (${kills.again})`,
  async (t) => {
    t.timeout(3_600_000)
    const { random, count, again } = kills
    const [disk, metadata] = [loopDisk(1024), loopDisk(4)]
    createGroup('vgk', disk.path)
    createThick('vgk', 'data', 64)
    const catalog = join(mkdtempSync(join(tmpdir(), 'killed-')), 'catalog.sqlite')
    const config = { catalog, walkers: 1, drainSeconds: 1, era: { deadlineSeconds: DEADLINE_MS / 1000 } }
    let agent = await LiveAgent.start({ config })
    let client = connectAdmin(agent.address)
    t.teardown(() => agent.kill())
    const { line } = await client.attachEra({
      ...{ name: 'killed', dataDevice: '/dev/vgk/data', metadataDevice: metadata.path, blockBytes },
      ...{ snapshotSize: '16m', allowLossyKernel: false }
    })
    const writer = spawn(process.execPath, ['-e', writeHere, '/dev/mapper/killed', '1024'], {
      stdio: ['ignore', 'pipe', 'inherit']
    })
    t.teardown(() => writer.kill('SIGKILL'))
    await once(writer.stdout, 'data')
    const isSuspended = async () => (await deviceMapper.info('killed'))?.suspended === true
    /** What is in each snapshot, in the order in which they were taken. */
    const content = new Map<string, string[]>()
    const seen = { suspended: 0, settled: 0, compared: 0, changed: 0, inexact: 0 }
    /** Every block that differs is in the answer. */
    const compare = async (base: string, target: string) => {
      const context = `${base} to ${target}, ${again}`
      const extents = await collectExtents(
        await agent.client().delta({ baseSnapshotId: `killed/${base}`, targetSnapshotId: `killed/${target}` })
      )
      const [was, is] = [content.get(base) ?? [], content.get(target) ?? []]
      for (const [block, fingerprint] of is.entries()) {
        if (fingerprint === was[block]) continue
        const at = block * blockBytes
        t.true(
          extents.some(([offset, size]) => offset <= at && offset + size >= at + blockBytes),
          `block ${block}: ${context}`
        )
        seen.changed++
      }
      const bytes = extents.reduce((sum, [, size]) => sum + size, 0)
      t.true(bytes < is.length * blockBytes, `not everything, or this shows nothing: ${context}`)
      seen.compared++
    }
    /** Takes in snapshots that are recorded, compares some, and leaves LVM some room. */
    const takeIn = async () => {
      const { snapshots } = await client.listEraSnapshots({ volume: 'killed' })
      for (const { name, lower, exact } of snapshots) {
        if (content.has(name) || !lower.startsWith('LVM')) continue
        content.set(name, blockFingerprints(`/dev/vgk/${name}`, blockBytes))
        if (!exact) seen.inexact++
      }
      const names = [...content.keys()]
      if (names.length > 1) await compare(names.at(-2) ?? '', names.at(-1) ?? '')
      const base = random.integer(0, names.length - 1)
      await compare(names[base] ?? '', names[random.integer(base, names.length - 1)] ?? '')
      for (const { name } of snapshots.slice(0, -2)) await client.deleteSnapshot({ pool: 'killed', name })
    }
    for (let i = 0; i < count; i++) {
      await client.createEraSnapshot({ volume: 'killed', name: `whole${i}`, deadlineMs: 0 })
      await takeIn()
      const operations: Record<string, (admin: AdminClient) => Promise<unknown>> = {
        snapshot: (admin) => admin.createEraSnapshot({ volume: 'killed', name: `k${i}`, deadlineMs: 0 }),
        'snapshot of a driver': (admin) => admin.beginSnapshot({ volume: 'killed', name: `k${i}`, deadlineMs: 0 })
      }
      // In turns: a few kills have seen each.
      const [what, begin] = Object.entries(operations)[i % 2] ?? []
      const context = `${what} ${i}, ${again}`
      let ended = false
      const over = () => (ended = true)
      void begin?.(client).then(over, over)
      // In most of them, while it is suspended; else, at any moment.
      if (random.chance(0.7)) {
        while (!ended && !(await isSuspended())) await sleep(2)
        if (random.chance(0.5)) await sleep(random.integer(0, 300))
      } else await sleep(random.integer(0, 2500))
      if (await isSuspended()) seen.suspended++
      client.close()
      await agent.kill()
      // The watchdog resumes it: nobody else does.
      await until(isSuspended, (is) => !is)

      agent = await LiveAgent.start({ config })
      client = connectAdmin(agent.address)
      // (What takes long is settled after the start.)
      const { volumes } = await until(
        () => client.listEra({ volume: 'killed' }),
        ({ volumes: [volume] }) => volume?.underWay === ''
      )
      t.like(volumes[0], { problem: '', active: true, suspended: false, line }, context)
      if (agent.log.some(({ msg }) => msg === 'recovered what was interrupted')) seen.settled++
      const { snapshots } = await client.listEraSnapshots({ volume: 'killed' })
      const listed = lvm('lvs', '--noheadings', '-o', 'lv_name,lv_tags', 'vgk').split('\n')
      const tagged = listed.filter((line) => line.includes('deltamapper_')).map((line) => line.trim().split(/\s+/)[0])
      const recorded = snapshots.filter(({ lower }) => lower.startsWith('LVM')).map(({ name }) => name)
      t.deepEqual(tagged.sort(), recorded.sort(), context)
    }
    t.is(writer.exitCode, null, 'it was never refused a write')
    // What is left works.
    await client.createEraSnapshot({ volume: 'killed', name: 'last', deadlineMs: 0 })
    await takeIn()
    writer.kill('SIGKILL')
    await once(writer, 'exit')
    for (const { name } of (await client.listEraSnapshots({ volume: 'killed' })).snapshots) {
      await client.deleteSnapshot({ pool: 'killed', name })
    }
    const names = [...content.keys()]
    // Those of the lower snapshots that are gone too.
    for (let i = 0; i < 5; i++) {
      const base = random.integer(0, names.length - 1)
      await compare(names[base] ?? '', names[random.integer(base, names.length - 1)] ?? '')
    }
    t.log(seen)
  }
)
