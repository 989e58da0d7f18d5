/**
 * Agents that are killed while they change pools of their own: whatever the moment, the next one brings catalog and kernel together.
 * Runs inside the kernel lab: node test/lab/run.ts test/kernel/owned-pools-killed.test.ts
 *
 * - At the calls to the kernel and to the catalog that change something, just before them and just after: LAB_COUNT of them in each
 *   operation (1 unless given), every one if there are not so many.
 * - A real process at LAB_COUNT random moments (2 unless given).
 *
 * Which they are, follows from LAB_SEED.
 */
import { mkdtempSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import test from 'ava'
import { pino } from 'pino'
import { DeviceMapper } from '../../native/device-mapper.ts'
import type { PoolBackend } from '../../src/agent/administration.ts'
import { type Catalog, openCatalog } from '../../src/agent/catalog/catalog.ts'
import { OwnedPools } from '../../src/agent/owned-pools/owned-pools.ts'
import { openPoolMetadata } from '../../src/devicemapper/thin/pool-metadata.ts'
import type { DeltamapperError } from '../../src/errors.ts'
import { labRun } from './lab-run.ts'
import { type Moment, Mortal, never } from './mortal.ts'
import {
  blankDisks,
  blockBytes,
  blocksOf,
  growDisk,
  mebibyte,
  OwnedAgent,
  readWritten,
  startOrderedWriter,
  until
} from './owned-agent.ts'

const deviceMapper = new DeviceMapper()
// device-mapper's helper keeps no process alive on its own.
const alive = setInterval(() => undefined, 1000)
test.after.always(async () => {
  clearInterval(alive)
  await deviceMapper.close()
})

/** Something that changes pools: begun, and then the agent is killed. */
interface Operation {
  what: string
  begin(client: PoolBackend): Promise<unknown>
}

/** What the catalog has, as text: two states are compared whole. */
async function books(client: PoolBackend): Promise<string[]> {
  const { pools } = await client.listPools({})
  const { volumes } = await client.listVolumes({ pool: '' })
  const { snapshots } = await client.listSnapshots({ pool: '' })
  const thins = [...volumes, ...snapshots].map(({ pool, name, sizeBytes }) => `${pool}/${name} ${sizeBytes}`)
  return [...pools.map(({ name }) => name), ...thins].sort()
}

/** What the kernel has of a pool against what the catalog says, and whether anything is left as no device should be. */
async function disagreements(client: PoolBackend): Promise<string[]> {
  const found: string[] = []
  const { settled, findings } = await client.reconcile({ pool: '' })
  // Out of use is a state like any other.
  const wrong = findings.filter(({ kind }) => kind !== 'pool-inactive')
  found.push(...settled.map((each) => `settled late: ${each}`), ...wrong.map(({ what }) => what))
  for (const { name, uuid } of await owned()) {
    const info = await deviceMapper.info(name)
    if (info?.suspended) found.push(`${name} (${uuid}) is suspended`)
    if (!info?.hasLiveTable || info.hasInactiveTable) found.push(`${name} (${uuid}) is half made`)
  }
  for (const pool of (await client.listPools({})).pools) {
    if (pool.state === 'inactive') continue
    if (pool.state !== 'read-write') found.push(`${pool.name} is ${pool.state}: ${pool.problem}`)
    if (pool.underWay !== '') found.push(`${pool.name} is in the middle of ${pool.underWay}`)
    if (pool.usage?.transactionId !== pool.transactionId) found.push(`${pool.name} is at another transaction`)
    const metadata = await openPoolMetadata(pool.metadataDevice, { liveRoot: true })
    const kernel: string[] = []
    for await (const { id, details } of metadata.devices()) kernel.push(thinKey(id, details))
    await metadata.close()
    const { volumes } = await client.listVolumes({ pool: pool.name })
    const { snapshots } = await client.listSnapshots({ pool: pool.name })
    const catalog = [...volumes, ...snapshots].map((each) => thinKey(each.thinId, each))
    if (kernel.sort().join() !== catalog.sort().join())
      found.push(`${pool.name}: ${kernel.join()} and ${catalog.join()}`)
  }
  return found
}

function thinKey(
  id: number,
  { creationTime, transactionId }: { creationTime: number; transactionId: bigint | string }
): string {
  return `${id} created at ${creationTime}/${transactionId}`
}

/** Our own devices. */
async function owned(): Promise<{ name: string; uuid: string }[]> {
  const infos = await Promise.all((await deviceMapper.list()).map(({ name }) => deviceMapper.info(name)))
  return infos.flatMap((info) => (info?.uuid.startsWith('DELTAMAPPER-') ? [{ name: info.name, uuid: info.uuid }] : []))
}

/** Calls that change something: where a process can die with something half done. */
const changing = new Set([
  ...['message', 'create', 'reload', 'clear', 'suspend', 'resume', 'remove'],
  ...['begin', 'complete', 'rollBack', 'acceptTransactionId', 'adoptThin', 'forgetThin'].map(
    (call) => `ownedPools.${call}`
  )
])

const silent = pino({ level: 'silent' })

const deaths = labRun(1)

test(`whichever call is its last, a process leaves nothing that does not agree (${deaths.again})`, async (t) => {
  t.timeout(900_000)
  const path = join(mkdtempSync(join(tmpdir(), 'mortal-')), 'catalog.sqlite')
  let catalog: Catalog = await openCatalog(path)
  t.teardown(() => catalog.close())
  const start = async (through?: Mortal): Promise<OwnedPools> => {
    const [itsCatalog, itsDevices] = [
      through?.mortal(catalog) ?? catalog,
      through?.mortal(deviceMapper) ?? deviceMapper
    ]
    const pools = new OwnedPools({
      catalog: itsCatalog,
      deviceMapper: itsDevices,
      logger: silent,
      watchIntervalMs: 1e8
    })
    await pools.start()
    return pools
  }
  const disks = blankDisks(64, 512)
  const spare = blankDisks(16)
  const asPool = { blockBytes, whenFull: 'error' as const }
  const [p, q] = [
    { name: 'mp', metadataDevice: disks.metadata, dataDevice: disks.data, ...asPool },
    { name: 'mq', metadataDevice: spare.metadata, dataDevice: spare.data, ...asPool }
  ]
  const v = { pool: 'mp', name: 'v' }
  let made = 0
  let dataMebibytes = 64
  let living = await start()
  t.teardown(() => living.close())
  await living.createPool(p)
  await living.createVolume({ ...v, sizeBytes: 8 * mebibyte, inactive: false })

  const other = { pool: 'mp', name: '' }
  const without = async (pools: OwnedPools) => {
    const there = (await pools.listPools({})).pools.find(({ name }) => name === 'mq')
    if (!there) return
    await pools.activatePool({ pool: 'mq', withVolumes: false }).catch(() => undefined)
    for (const { name } of (await pools.listVolumes({ pool: 'mq' })).volumes)
      await pools.deleteVolume({ pool: 'mq', name })
    await pools.removePool({ pool: 'mq', wipe: true })
  }
  const withVolume = async (pools: OwnedPools) => {
    await without(pools)
    await pools.createPool(q)
    await pools.createVolume({ pool: 'mq', name: 'w', sizeBytes: mebibyte, inactive: false })
  }
  /** What it takes beforehand, and what the process dies of. */
  const operations: Record<
    string,
    [prepare: (pools: OwnedPools) => Promise<unknown>, die: (pools: OwnedPools) => Promise<unknown>]
  > = {
    'create a pool': [without, (pools) => pools.createPool(q)],
    'remove a pool': [
      async (pools) => {
        await without(pools)
        await pools.createPool(q)
      },
      (pools) => pools.removePool({ pool: 'mq', wipe: true })
    ],
    'deactivate a pool': [withVolume, (pools) => pools.deactivatePool({ pool: 'mq', withVolumes: true })],
    'activate a pool': [
      async (pools) => {
        await withVolume(pools)
        await pools.deactivatePool({ pool: 'mq', withVolumes: true })
      },
      (pools) => pools.activatePool({ pool: 'mq', withVolumes: true })
    ],
    'enlarge a pool': [
      () => growDisk(deviceMapper, disks.data, (dataMebibytes += 2)),
      (pools) => pools.growPool({ pool: 'mp' })
    ],
    'create a volume': [
      async () => (other.name = `t${made++}`),
      (pools) => pools.createVolume({ ...other, sizeBytes: mebibyte, inactive: false })
    ],
    'grow an active volume': [
      () => Promise.resolve(),
      async (pools) => {
        const [{ sizeBytes }] = (await pools.listVolumes({ pool: 'mp' })).volumes.filter(({ name }) => name === 'v')
        return pools.growVolume({ ...v, sizeBytes: sizeBytes + mebibyte })
      }
    ],
    'take a snapshot of an active volume': [
      async () => (other.name = `t${made++}`),
      (pools) => pools.createSnapshot({ ...other, origin: 'v' })
    ],
    'deactivate a volume': [
      (pools) => pools.activateVolume({ ...v, writable: false }),
      (pools) => pools.deactivateVolume(v)
    ],
    'activate a volume': [
      (pools) => pools.deactivateVolume(v),
      (pools) => pools.activateVolume({ ...v, writable: false })
    ],
    'delete an active volume': [
      async (pools) => {
        other.name = `t${made++}`
        await pools.createVolume({ ...other, sizeBytes: mebibyte, inactive: false })
      },
      (pools) => pools.deleteVolume(other)
    ]
  }
  /** Has one process prepare, another one die of it, and a third one come after. Resolves with the calls of the second. */
  const live = async (what: string, moment: Moment): Promise<number> => {
    const context = `${what}, ${moment.when} call ${moment.call}, ${deaths.again}`
    const [prepare, die] = operations[what]
    await prepare(living)
    const before = await books(living)
    await living.close()

    const mortal = new Mortal(moment, changing)
    const dying = await start(mortal)
    const outcome = await Promise.race([die(dying).then(() => 'done'), mortal.death])
    t.is(outcome, moment === never ? 'done' : 'died', context)
    await catalog.close()
    catalog = await openCatalog(path)
    living = await start()
    t.deepEqual(await disagreements(living), [], context)
    const after = await books(living)
    const difference = [...before, ...after].filter((each) => before.includes(each) !== after.includes(each))
    t.true(difference.length <= (what.startsWith('grow') ? 2 : 1), `${context}: ${difference.join()}`)
    return mortal.calls
  }
  const died: Record<string, string> = {}
  for (const what of Object.keys(operations)) {
    const calls = await live(what, never)
    t.true(calls > 0, what)
    const moments = Array.from({ length: calls }, (_, i) => i + 1).flatMap((call): Moment[] => [
      { call, when: 'before' },
      { call, when: 'after' }
    ])
    const chosen = deaths.random.shuffle(moments).slice(0, deaths.count)
    for (const moment of chosen) await live(what, moment)
    died[what] = `${chosen.length} of ${moments.length}`
  }
  t.log(`died at ${JSON.stringify(died)}`)
  await without(living)
  t.is((await living.growPool({ pool: 'mp' })).usage?.dataTotalBytes, dataMebibytes * mebibyte)
  await living.deactivatePool({ pool: 'mp', withVolumes: true })
})

const { random, count: kills, again } = labRun(2)

test(`killed ${kills} times at any moment, the agent leaves nothing that does not agree (${again})`, async (t) => {
  t.timeout(600_000 + kills * 120_000)
  const agent = await OwnedAgent.start()
  t.teardown(() => agent.kill())
  const disks = blankDisks(256, 512)
  const spare = blankDisks(16)
  const asPool = { blockBytes: blockBytes, whenFull: 'error' as const }
  await agent.client.createPool({ name: 'p', metadataDevice: disks.metadata, dataDevice: disks.data, ...asPool })
  await agent.client.createVolume({ pool: 'p', name: 'v', sizeBytes: 32 * mebibyte, inactive: false })
  // The volume is in use all the time: were it left suspended, the writer would stop.
  const writer = await startOrderedWriter(t, '/dev/mapper/p-v', 16 * mebibyte)

  let made = 0
  let dataMebibytes = 256
  const durations = new Map<string, number>()
  const outcomes = new Map<string, number>()
  const settled: string[] = []
  for (let round = 0; round < kills; round++) {
    const { client } = agent
    const before = await books(client)
    const operation = await chooseOperation(client)
    const context = `kill ${round}, ${operation.what}, ${again}`

    const begun = performance.now()
    const ended = operation.begin(client).then(
      () => 'done',
      (error: unknown) => (error as DeltamapperError).code
    )
    const usual = durations.get(operation.what.split(' ')[0]) ?? 400
    const outcome = await Promise.race([ended, sleep(random.fraction() * usual * 1.2).then(() => 'killed')])
    if (outcome !== 'killed') durations.set(operation.what.split(' ')[0], performance.now() - begun)
    if (outcome !== 'killed' && outcome !== 'done') t.fail(`${context}: it failed: ${outcome}`)
    outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1)

    // Some supervisors kill the helper along with it.
    const helpers = random.chance(0.5) ? agent.live.children().map((each) => Number(each.split(' ')[0])) : []
    agent.live.child.kill('SIGKILL')
    for (const pid of helpers) {
      try {
        process.kill(pid, 'SIGKILL')
      } catch {
        // It has gone with its parent.
      }
    }
    await agent.kill()
    await ended
    await agent.startAgain()

    for (const { because } of agent.live.log) if (typeof because === 'string') settled.push(because)
    t.deepEqual(await disagreements(agent.client), [], context)
    const after = await books(agent.client)
    const difference = [...before, ...after].filter((each) => before.includes(each) !== after.includes(each))
    // A size is two entries: the old and the new.
    t.true(difference.length <= (operation.what.startsWith('grow') ? 2 : 1), `${context}: ${difference.join()}`)
    if (outcome === 'done') t.is(difference.length > 0, operation.changesBooks, context)

    const written = readWritten('/dev/mapper/p-v', 0)
    await until(
      () => Promise.resolve(readWritten('/dev/mapper/p-v', 0)),
      (now) => now !== written
    )
    // The next delta is right: whatever of the two is not the same is in it.
    const { snapshots } = await agent.client.listSnapshots({ pool: 'p' })
    if (snapshots.length >= 2) {
      const [base, target] = snapshots.slice(-2).map(({ name }) => `p/${name}`)
      t.deepEqual(blocksOf(await agent.delta(base, target)), [0, 256], context)
    }
  }
  const told = [...outcomes].map(([outcome, count]) => `${count} ${outcome}`)
  t.log(`${told.join(', ')}; ${settled.length} things settled at start, the last of them: ${settled.at(-1)}`)
  writer.kill('SIGKILL')
  await agent.client.deactivatePool({ pool: 'p', withVolumes: true }).catch(() => undefined)

  async function chooseOperation(client: PoolBackend): Promise<Operation & { changesBooks: boolean }> {
    const { snapshots } = await client.listSnapshots({ pool: 'p' })
    const { volumes } = await client.listVolumes({ pool: 'p' })
    const others = volumes.filter(({ name }) => name !== 'v')
    const pools = (await client.listPools({})).pools.map(({ name }) => name)
    const name = `t${made++}`
    const operations: (Operation & { changesBooks: boolean })[] = [
      {
        what: `snapshot ${name}`,
        changesBooks: true,
        begin: (to) => to.createSnapshot({ pool: 'p', origin: 'v', name })
      },
      {
        what: `volume ${name}`,
        changesBooks: true,
        begin: (to) => to.createVolume({ pool: 'p', name, sizeBytes: mebibyte, inactive: random.chance(0.5) })
      },
      {
        what: 'grow the volume',
        changesBooks: true,
        begin: async (to) => {
          const [{ sizeBytes }] = volumes.filter((each) => each.name === 'v')
          return to.growVolume({ pool: 'p', name: 'v', sizeBytes: sizeBytes + mebibyte })
        }
      },
      {
        what: 'enlarge the pool',
        changesBooks: false,
        begin: async (to) => {
          dataMebibytes = Math.min(dataMebibytes + 4, 512)
          await growDisk(deviceMapper, disks.data, dataMebibytes)
          return to.growPool({ pool: 'p' })
        }
      }
    ]
    if (snapshots.length > 2) {
      const gone = random.pick(snapshots).name
      operations.push({
        what: `delete ${gone}`,
        changesBooks: true,
        begin: (to) => to.deleteSnapshot({ pool: 'p', name: gone })
      })
    }
    if (others.length > 0) {
      const other = random.pick(others)
      operations.push({
        what: `delete ${other.name}`,
        changesBooks: true,
        begin: (to) => to.deleteVolume({ pool: 'p', name: other.name })
      })
      const at = { pool: 'p', name: other.name }
      operations.push({
        what: `switch ${other.name}`,
        changesBooks: false,
        begin: (to) => (other.device ? to.deactivateVolume(at) : to.activateVolume({ ...at, writable: false }))
      })
    }
    operations.push(
      pools.includes('q')
        ? { what: 'remove q', changesBooks: true, begin: (to) => to.removePool({ pool: 'q', wipe: true }) }
        : {
            what: 'create q',
            changesBooks: true,
            begin: (to) =>
              to.createPool({ name: 'q', metadataDevice: spare.metadata, dataDevice: spare.data, ...asPool })
          }
    )
    return random.pick(operations)
  }
})
