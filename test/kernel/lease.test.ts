/**
 * Leases of the metadata snapshots of real pools: shared, bounded, refused, and released however their holder ends. Runs inside the
 * kernel lab: node test/lab/run.ts test/kernel/lease.test.ts
 *
 * The last test kills processes at LAB_COUNT random moments (2 unless given), which follow from LAB_SEED.
 */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, constants, mkdtempSync, openSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import test, { type ExecutionContext } from 'ava'
import { pino } from 'pino'
import { DeviceMapper } from '../../native/device-mapper.ts'
import { startAgent } from '../../src/agent/agent.ts'
import { type Catalog, openCatalog } from '../../src/agent/catalog/catalog.ts'
import { agentConfig } from '../../src/agent/config.ts'
import { keeperAtWork } from '../../src/agent/leases/lease-keeper.ts'
import { type LeaseOptions, MetadataSnapshotLeases } from '../../src/agent/leases/metadata-snapshot-lease.ts'
import { readSlot } from '../../src/agent/leases/pool-slot.ts'
import { parsePoolStatus, type PoolNumbers } from '../../src/devicemapper/thin/status.ts'
import { DeltamapperError } from '../../src/errors.ts'
import { createDevice, createLinear, sendMessage, thinPoolTable, thinTable, zeroStart } from './dmsetup.ts'
import { intercepted } from './intercepted.ts'
import { labRun } from './lab-run.ts'
import { processes } from './live-agent.ts'

const mebibyte = 2 ** 20
const blockBytes = 65536
const folder = mkdtempSync(join(tmpdir(), 'lease-'))
const deviceMapper = new DeviceMapper()
// device-mapper's helper keeps no process alive on its own.
const alive = setInterval(() => undefined, 1000)
test.after.always(async () => {
  clearInterval(alive)
  await deviceMapper.close()
})

let used = 0
let pools = 0
interface Pool {
  name: string
  meta: string
  metadataPath: string
  thin: string
}

/** A pool with a thin volume and a snapshot of it, on a part of the disk that nothing else uses. */
function makePool(t: ExecutionContext, { metaMiB = 4, dataMiB = 8 } = {}): Pool {
  const name = `pool-${pools++}`
  const meta = createLinear(`${name}-meta`, '/dev/ubda', used * mebibyte, metaMiB * mebibyte)
  const data = createLinear(`${name}-data`, '/dev/ubda', (used + metaMiB) * mebibyte, dataMiB * mebibyte)
  used += metaMiB + dataMiB
  zeroStart(meta)
  const pool = { metadataDevice: meta, dataDevice: data, dataBytes: dataMiB * mebibyte, blockBytes }
  createDevice(name, thinPoolTable({ ...pool, features: ['skip_block_zeroing', 'error_if_no_space'] }))
  sendMessage(name, 'create_thin 0')
  const thin = createDevice(`${name}-thin`, thinTable(name, 0, dataMiB * mebibyte))
  write(thin, 0, 8)
  t.teardown(async () => {
    for (const each of [`${name}-thin`, name, `${name}-data`, `${name}-meta`]) {
      if (await deviceMapper.info(each)) await deviceMapper.remove(each, { retry: true })
    }
  })
  return { name, meta: `${name}-meta`, metadataPath: meta, thin }
}

function write(device: string, firstBlock: number, count: number): void {
  const blocks = ['bs=64k', `seek=${firstBlock}`, `count=${count}`]
  execFileSync('dd', ['if=/dev/urandom', `of=${device}`, ...blocks, 'oflag=direct', 'status=none'], { stdio: 'ignore' })
}

async function status(pool: string, flush = false): Promise<PoolNumbers> {
  const [row] = await deviceMapper.status(pool, { flush })
  const parsed = parsePoolStatus(row?.params ?? '')
  if (parsed.state !== 'working') throw new Error(`${pool} is ${parsed.state}`)
  return parsed
}

const heldRoot = async (pool: string) => (await status(pool)).heldRoot

interface Holder {
  leases: MetadataSnapshotLeases
  catalog: Catalog
  log: Record<string, unknown>[]
  close: () => Promise<void>
}

let catalogs = 0
const newCatalog = () => join(folder, `catalog-${catalogs++}.sqlite`)

async function holder(t: ExecutionContext, options: Partial<LeaseOptions> = {}, path = newCatalog()): Promise<Holder> {
  const log: Record<string, unknown>[] = []
  const logger = pino({ level: 'debug' }, { write: (line: string) => log.push(JSON.parse(line) as (typeof log)[0]) })
  const catalog = await openCatalog(path)
  const leases = new MetadataSnapshotLeases(
    catalog,
    deviceMapper,
    { headroom: { percent: 25, blocks: 1024 }, holdMs: 60_000, waitMs: 0, watchMs: 50, retryMs: 100, ...options },
    logger
  )
  const close = async () => {
    await leases.close()
    await catalog.close()
  }
  t.teardown(close)
  return { leases, catalog, log, close }
}

async function failure(promise: Promise<unknown>): Promise<DeltamapperError> {
  const thrown: unknown = await promise.then(
    (result) => new Error(`it succeeded: ${JSON.stringify(result)}`),
    (error: unknown) => error
  )
  if (thrown instanceof DeltamapperError) return thrown
  throw thrown
}

function lost(t: ExecutionContext, { reason }: AbortSignal, says: RegExp): void {
  t.true(reason instanceof DeltamapperError)
  const { code, message } = reason as DeltamapperError
  t.is(code, 'DM_LEASE_LOST')
  t.regex(message, says)
}

async function until(condition: () => boolean | Promise<boolean>, what: string, withinMs = 300_000): Promise<void> {
  const deadline = performance.now() + withinMs
  while (!(await condition())) {
    if (performance.now() > deadline) throw new Error(`after ${withinMs} ms, not yet: ${what}`)
    await sleep(10)
  }
}

test('one lease, many users: the slot is free when the last has left', async (t) => {
  const pool = makePool(t)
  const { leases, catalog } = await holder(t)
  const users = await Promise.all(['a', 'b', 'c'].map((purpose) => leases.acquire(pool.name, { purpose })))
  const [first, ...others] = users
  t.is(await heldRoot(pool.name), first.heldRoot)
  t.is((await readSlot(pool.metadataPath)).held?.time, first.held.time)
  for (const each of others) t.is(each.heldRoot, first.heldRoot)
  t.like(await catalog.leases.find(`dm-name:${pool.name}`), { state: 'held', heldRoot: first.heldRoot })
  t.deepEqual(
    leases.current.map(({ device, purposes }) => [device, purposes]),
    [[`dm-name:${pool.name}`, ['a', 'b', 'c']]]
  )
  for (const each of [first, first, users[1]]) await each.release()
  t.is(await heldRoot(pool.name), first.heldRoot)
  await users[2]?.release()
  t.is(await heldRoot(pool.name), undefined)
  t.deepEqual(await catalog.leases.list(), [])
  t.deepEqual(leases.current, [])
  t.false(await keeperAtWork(`dm-name:${pool.name}`, catalog.path))
  for (const { signal } of users) t.false(signal.aborted)
})

test('who needs a newer one waits for it, and others do not join before', async (t) => {
  const pool = makePool(t)
  const { leases } = await holder(t, { waitMs: 10_000 })
  const old = await leases.acquire(pool.name, { purpose: 'old' })
  sendMessage(pool.name, 'create_snap 1 0')
  const suffices = ({ time }: { time: number }) => time > old.held.time
  const newer = leases.acquire(pool.name, { purpose: 'newer', suffices })
  await sleep(50)
  // It would do for this one, but then it would never end for the other.
  const third = leases.acquire(pool.name, { purpose: 'third' })
  await sleep(300)
  t.is(await heldRoot(pool.name), old.heldRoot)
  await old.release()
  const [one, other] = await Promise.all([newer, third])
  t.is(one.held.time, old.held.time + 1)
  t.is(one.heldRoot, other.heldRoot)
  await Promise.all([one.release(), other.release()])
  t.is(await heldRoot(pool.name), undefined)
})

test('somebody else holds the slot: waited for, named, and never touched', async (t) => {
  const pool = makePool(t)
  const { leases, catalog } = await holder(t)
  sendMessage(pool.name, 'reserve_metadata_snap')
  const foreign = await heldRoot(pool.name)
  sendMessage(pool.name, 'create_snap 1 0')
  const error = await failure(leases.acquire(pool.name, { purpose: 'me', waitMs: 300 }))
  t.is(error.code, 'DM_DEVICE_BUSY')
  t.is(error.status, 'UNAVAILABLE')
  t.regex(
    error.message,
    new RegExp(`another program has reserved it \\(block ${foreign}, 1 snapshots? and 0 transactions`)
  )
  t.regex(error.remedy, new RegExp(`dmsetup message ${pool.name} 0 release_metadata_snap`))
  t.is(await heldRoot(pool.name), foreign)
  t.deepEqual(await catalog.leases.list(), [])

  const waiting = leases.acquire(pool.name, { purpose: 'patient', waitMs: 10_000 })
  await sleep(300)
  sendMessage(pool.name, 'release_metadata_snap')
  await using lease = await waiting
  t.is(await heldRoot(pool.name), lease.heldRoot)
})

test('a caller who goes away leaves nothing behind, waiting or holding', async (t) => {
  const pool = makePool(t)
  const { leases } = await holder(t)
  const gone = new AbortController()
  const lease = await leases.acquire(pool.name, { purpose: 'me', signal: gone.signal })
  gone.abort(new DeltamapperError('DM_CANCELLED', 'the caller went away', 'nothing'))
  t.like(lease.signal.reason, { code: 'DM_CANCELLED' })
  await lease.release()
  t.is(await heldRoot(pool.name), undefined)

  sendMessage(pool.name, 'reserve_metadata_snap')
  const impatient = AbortSignal.timeout(200)
  await t.throwsAsync(leases.acquire(pool.name, { purpose: 'me', waitMs: 60_000, signal: impatient }), {
    name: 'TimeoutError'
  })
  sendMessage(pool.name, 'release_metadata_snap')
  await t.throwsAsync(leases.acquire(pool.name, { purpose: 'me', signal: AbortSignal.abort(new Error('gone')) }), {
    message: 'gone'
  })
  // However early in the reservation.
  for (const afterMs of [0, 5, 50, 100, 150]) {
    const left = new AbortController()
    const acquiring = leases.acquire(pool.name, { purpose: 'me', signal: left.signal, waitMs: 10_000 })
    setTimeout(() => left.abort(), afterMs)
    await acquiring.then(
      async (each) => each.release(),
      () => undefined
    )
    t.is(await heldRoot(pool.name), undefined, `after ${afterMs} ms`)
  }
})

test('its time is up: users are told, and the slot is free whether or not they listen', async (t) => {
  const pool = makePool(t)
  const { leases, log } = await holder(t, { holdMs: 500 })
  const lease = await leases.acquire(pool.name, { purpose: 'slow' })
  await once(lease.signal, 'abort')
  lost(t, lease.signal, /was given back: it was held for 0\.5 s/)
  await until(async () => (await heldRoot(pool.name)) === undefined, 'the slot is free')
  await lease.release()
  t.true(log.some(({ msg }) => msg === 'a metadata snapshot is given back before its users are done'))
  // In the second half of its time nobody joins.
  await using old = await leases.acquire(pool.name, { purpose: 'old' })
  await sleep(300)
  await using young = await leases.acquire(pool.name, { purpose: 'young', waitMs: 10_000 })
  t.true(old.signal.aborted)
  t.not(young, old)
})

test('somebody else releases it: users are told, and what is there afterwards is not touched', async (t) => {
  const pool = makePool(t)
  const { leases, catalog } = await holder(t)
  const lease = await leases.acquire(pool.name, { purpose: 'me' })
  sendMessage(pool.name, 'release_metadata_snap')
  await once(lease.signal, 'abort')
  lost(t, lease.signal, /another program has released it/)
  await until(async () => (await catalog.leases.list()).length === 0, 'the record is cleared')

  // Too quick for the eye: only what is in the slot tells.
  const slow = await holder(t, { watchMs: 60_000 })
  const second = await slow.leases.acquire(pool.name, { purpose: 'me' })
  sendMessage(pool.name, 'release_metadata_snap')
  sendMessage(pool.name, 'create_snap 7 0')
  sendMessage(pool.name, 'reserve_metadata_snap')
  const foreign = await heldRoot(pool.name)
  await second.release()
  t.is(await heldRoot(pool.name), foreign)
  t.deepEqual(await slow.catalog.leases.list(), [])
  sendMessage(pool.name, 'release_metadata_snap')
})

test('too little free metadata: refused; too little while it is held: given back', async (t) => {
  const pool = makePool(t, { metaMiB: 2, dataMiB: 32 })
  // (Blocks that the last transaction has freed count as used until the next.)
  const { usedMetadataBlocks, totalMetadataBlocks } = await status(pool.name, true)
  const free = totalMetadataBlocks - usedMetadataBlocks
  const tight = await holder(t, { headroom: { percent: 100, blocks: free + 1 } })
  const error = await failure(tight.leases.acquire(pool.name, { purpose: 'me' }))
  t.is(error.code, 'DM_LEASE_REFUSED')
  t.regex(error.message, new RegExp(`${free} of its ${totalMetadataBlocks} metadata blocks are free`))
  t.is(await heldRoot(pool.name), undefined)
  t.deepEqual(await tight.catalog.leases.list(), [])

  const wide = await holder(t, { headroom: { percent: 100, blocks: free } })
  const lease = await wide.leases.acquire(pool.name, { purpose: 'me' })
  let given = false
  lease.signal.addEventListener('abort', () => (given = true))
  // Snapshots of ever newer trees fill the metadata.
  const thin = openSync(pool.thin, constants.O_WRONLY | constants.O_SYNC)
  for (let id = 1; id < 500 && !given; id++) {
    await deviceMapper.message(pool.name, `create_snap ${id} 0`)
    writeSync(thin, new Uint8Array(4096), 0, 4096, (id % 100) * blockBytes)
  }
  closeSync(thin)
  lost(t, lease.signal, /metadata blocks are free/)
  await until(async () => (await heldRoot(pool.name)) === undefined, 'the slot is free')
})

/** What a pool says of itself, and what the refusal says. */
async function refused(t: ExecutionContext, { leases, catalog }: Holder, pool: Pool, says: RegExp): Promise<void> {
  const error = await failure(leases.acquire(pool.name, { purpose: 'me' }))
  t.is(error.code, 'DM_LEASE_REFUSED')
  t.regex(error.message, says)
  t.deepEqual(await catalog.leases.list(), [])
}

/** Puts another target in the place of a pool's metadata device. */
async function swapMetadata({ meta }: Pool, targetType: string, params: string): Promise<void> {
  const lengthSectors = (4 * mebibyte) / 512
  await deviceMapper.reload(meta, [{ startSector: 0, lengthSectors, targetType, params }])
  await deviceMapper.suspend(meta, { lockfs: false, flush: false })
  await deviceMapper.resume(meta)
}

test('pools that are full, need a check, have failed or are no pools: refused', async (t) => {
  const pool = makePool(t, { dataMiB: 2 })
  const own = await holder(t)
  await t.throwsAsync(own.leases.acquire(`${pool.name}-thin`, { purpose: 'me' }), { code: 'DM_NOT_TRACKED' })
  await t.throwsAsync(own.leases.acquire('nosuch', { purpose: 'me' }), { code: 'DM_POOL_INACTIVE' })

  sendMessage(pool.name, 'create_snap 1 0')
  t.throws(() => {
    write(pool.thin, 0, 32)
  })
  t.is((await status(pool.name)).mode, 'out-of-data-space')
  await refused(t, own, pool, /is out of data space/)
  sendMessage(pool.name, 'delete 1')
  await until(async () => (await status(pool.name, true)).mode === 'read-write', 'there is space again')

  // Held when the metadata fails: what cannot be released now is released when the pool takes messages again.
  const lease = await own.leases.acquire(pool.name, { purpose: 'me' })
  const [{ params }] = await deviceMapper.table(pool.meta)
  await swapMetadata(pool, 'flakey', `${params} 0 100 1 error_writes`)
  await deviceMapper.message(pool.name, 'create_thin 9').catch(() => undefined)
  t.like(await status(pool.name), { mode: 'read-only', needsCheck: true })
  await lease.release()
  t.is(await heldRoot(pool.name), lease.heldRoot)
  t.like(await own.catalog.leases.find(`dm-name:${pool.name}`), { state: 'held' })
  t.like(await failure(own.leases.acquire(pool.name, { purpose: 'me' })), { code: 'DM_LEASE_REFUSED' })
  await own.close()

  const other = await holder(t)
  await refused(t, other, pool, /its metadata needs to be checked/)

  const gone = makePool(t)
  await swapMetadata(gone, 'error', '')
  try {
    write(gone.thin, 20, 4)
  } catch {
    // It may notice in time.
  }
  await until(async () => {
    const [row] = await deviceMapper.status(gone.name, { flush: true })
    return parsePoolStatus(row?.params ?? '').state === 'failed'
  }, 'failed')
  await refused(t, other, gone, /the pool has failed/)
})

class HolderProcess {
  readonly child: ChildProcess
  readonly said: string[] = []
  readonly exit: Promise<unknown>
  stderr = ''

  constructor(catalog: string, pool: string, mostHeldMs: number, seed: number) {
    const program = new URL('lease-holder.ts', import.meta.url).pathname
    const words = [program, catalog, pool, String(mostHeldMs), String(seed)]
    this.child = spawn(process.execPath, words, { stdio: ['ignore', 'pipe', 'pipe'] })
    this.exit = once(this.child, 'exit')
    createInterface(this.child.stdout!).on('line', (line) => this.said.push(line))
    this.child.stderr?.setEncoding('utf8').on('data', (text: string) => (this.stderr += text))
  }

  async says(what: string, times = 1): Promise<void> {
    await until(
      () => {
        if (this.child.exitCode !== null && !this.said.includes(what)) throw new Error(`it ended: ${this.stderr}`)
        return this.said.filter((each) => each === what).length >= times
      },
      `the holder says ${what}`,
      30_000
    )
  }

  /** The processes that it has started. */
  get children(): number[] {
    return processes().flatMap(({ pid, parent }) => (parent === this.child.pid ? [pid] : []))
  }
}

test('SIGTERM: the slot is free when the process has ended', async (t) => {
  const pool = makePool(t)
  const path = newCatalog()
  const holding = new HolderProcess(path, pool.name, 60_000, 1)
  await holding.says('held')
  t.not(await heldRoot(pool.name), undefined)
  holding.child.kill('SIGTERM')
  await holding.exit
  t.deepEqual([holding.child.exitCode, holding.child.signalCode], [0, null], holding.stderr)
  t.is(await heldRoot(pool.name), undefined)
  const catalog = await openCatalog(path)
  t.deepEqual(await catalog.leases.list(), [])
  await catalog.close()
})

/** An agent's start and end, as after a crash. Returns what it has logged. */
async function startAndStop(catalog: string): Promise<Record<string, unknown>[]> {
  const log: Record<string, unknown>[] = []
  const logger = pino({ level: 'debug' }, { write: (line: string) => log.push(JSON.parse(line) as (typeof log)[0]) })
  const listen = [`unix://${join(folder, `agent-${catalogs++}.sock`)}`]
  const config = agentConfig.parse({ listen, catalog, live: true, walkers: 1, drainSeconds: 0, lvmCommand: ['true'] })
  const agent = await startAgent(config, logger)
  await agent.stop()
  return log
}

async function recover(t: ExecutionContext, path: string): Promise<Record<string, unknown>[]> {
  const { leases, log, close } = await holder(t, {}, path)
  await leases.recover()
  await close()
  return log
}

async function recorded(path: string): Promise<string | undefined> {
  const catalog = await openCatalog(path)
  const [record] = await catalog.leases.list()
  await catalog.close()
  return record?.state
}

/** Kills at once, as far as one processor allows; what has just ended by itself is dead as well. */
function killAll(pids: readonly (number | undefined)[]): void {
  for (const pid of pids) {
    try {
      if (pid !== undefined) process.kill(pid, 'SIGKILL')
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error
    }
  }
}

/** Both are killed where the record cannot tell whether the message was carried out. */
for (const [call, state] of [
  ['leases.confirm', 'reserving'],
  ['leases.beginRelease', 'releasing']
] as const) {
  test(`killed while ${state}: it may be ours or not, and is left to a person`, async (t) => {
    const pool = makePool(t)
    const path = newCatalog()
    const catalog = await openCatalog(path)
    const dead = Promise.withResolvers<void>()
    const dying = intercepted(catalog, async (name, _args, go) => {
      if (name === call && state === 'reserving') return die()
      const result = await go()
      return name === call ? die() : result
    })
    const die = (): Promise<never> => {
      killAll(processes().flatMap(({ pid, words }) => (words.includes('lease-keeper-process') ? [pid] : [])))
      dead.resolve()
      return new Promise(() => undefined)
    }
    const options = { headroom: { percent: 25, blocks: 1024 }, holdMs: 60_000, waitMs: 0 }
    const leases = new MetadataSnapshotLeases(dying, deviceMapper, options, pino({ level: 'silent' }))
    void leases.acquire(pool.name, { purpose: 'me' }).then((lease) => lease.release())
    await dead.promise
    await until(async () => !(await keeperAtWork(`dm-name:${pool.name}`, catalog.path)), 'the keeper has ended')
    await catalog.close()
    const left = await heldRoot(pool.name)
    t.not(left, undefined)

    const next = await holder(t, {}, path)
    await next.leases.recover()
    t.is(await heldRoot(pool.name), left)
    const kept = next.log.find(({ msg }) => msg === 'a metadata snapshot on record is left as it is')
    t.is(kept?.['state'], state)
    t.regex(String(kept?.['because']), new RegExp(`dmsetup message ${pool.name} 0 release_metadata_snap`))
    t.is((await failure(next.leases.acquire(pool.name, { purpose: 'me' }))).code, 'DM_DEVICE_BUSY')
    t.is(await heldRoot(pool.name), left)

    sendMessage(pool.name, 'release_metadata_snap')
    const lease = await next.leases.acquire(pool.name, { purpose: 'me' })
    await lease.release()
    t.deepEqual(await next.catalog.leases.list(), [])
    t.is(await heldRoot(pool.name), undefined)
  })
}

/**
 * `alone`: the agent is killed, its keeper not. `together`: both at once. `foreign`: the agent alone, and somebody else takes the slot
 * before the next start.
 */
test('killed at any moment: no lease of ours is left, and no foreign one touched', async (t) => {
  const { random, count: kills, again } = labRun(2)
  t.timeout(600_000 + kills * 120_000)
  const pool = makePool(t)
  const path = newCatalog()
  const outcomes: Record<string, number> = {}
  let nextId = 1
  for (let kill = 0; kill < kills; kill++) {
    const how = (['alone', 'together', 'foreign'] as const)[kill % 3]
    const holding = new HolderProcess(path, pool.name, random.pick([20, 300, 2000]), kill)
    // Often while it is held or released, and sometimes on the way there.
    await holding.says('held', random.pick(how === 'together' ? [1, 2] : [0, 1, 1, 2]))
    await sleep(random.integer(0, random.pick([30, 100, 300])))
    killAll(how === 'together' ? [...holding.children, holding.child.pid] : [holding.child.pid])
    await holding.exit
    await until(async () => !(await keeperAtWork(`dm-name:${pool.name}`, path)), 'the keeper has ended')
    const left = await heldRoot(pool.name)
    if (how !== 'together') t.is(left, undefined, `round ${kill}: the keeper has not released it`)
    if (how === 'foreign') {
      // In a pool that has changed, and in one that has not.
      if (random.chance(0.5)) await deviceMapper.message(pool.name, `create_snap ${nextId++} 0`)
      await deviceMapper.message(pool.name, 'reserve_metadata_snap')
    }
    const before = { state: await recorded(path), root: await heldRoot(pool.name) }
    // An agent's start is the same with much around it.
    const log = kill % 5 === 0 ? await startAndStop(path) : await recover(t, path)
    const after = { state: await recorded(path), root: await heldRoot(pool.name) }
    const whose = how === 'foreign' ? 'foreign' : before.root === undefined ? 'empty' : 'ours'
    const outcome = `${how}: ${before.state ?? 'no record'}, ${whose}`
    outcomes[outcome] = (outcomes[outcome] ?? 0) + 1
    const shown = `${again}, round ${kill}: ${outcome}: ${JSON.stringify(log)}`
    if (whose === 'empty' || (whose === 'ours' && before.state === 'held')) {
      t.deepEqual(after, { state: undefined, root: undefined }, shown)
      continue
    }
    // Somebody else's, or (both were killed within the moment of a message) what nothing proves to be ours.
    t.is(after.root, before.root, shown)
    t.is(
      after.state !== undefined,
      log.some(({ msg }) => msg === 'a metadata snapshot on record is left as it is'),
      shown
    )
    await deviceMapper.message(pool.name, 'release_metadata_snap')
    await recover(t, path)
    t.is(await recorded(path), undefined)
  }
  t.log(JSON.stringify(outcomes))
})
