/**
 * Pools that are full, cannot write or read their metadata, have failed, or do not answer at all: what can still be told is told, and
 * right; everything else is refused by its own code; nobody else is kept waiting; and service resumes when the pool is well again. Runs
 * inside the kernel lab: node test/lab/run.ts test/kernel/failing-pools.test.ts
 */
import { closeSync, constants, openSync, readSync, writeFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import test from 'ava'
import { DeltamapperError, type ErrorCode } from '../../src/errors.ts'
import { type PoolStatus, parsePoolStatus } from '../../src/devicemapper/thin/status.ts'
import { connectAdmin } from '../../src/grpc/admin-client.ts'
import { PlainClient } from '../grpc/plain-client.ts'
import type { Extent } from '../support/expected.ts'
import { answerTo, failure } from './ask.ts'
import { alignedBuffer, createLinear, reloadDevice, removeDevice, run, sectorBytes, sendMessage } from './dmsetup.ts'
import { LiveAgent } from './live-agent.ts'
import { blockBytes, expectedAllocated, expectedDelta, RawPool } from './raw-pool.ts'

const mebibyte = 2 ** 20
const catalog = '/run/tmp/failing-catalog'
/** How long a metadata device may take, in seconds. */
const READ_DEADLINE = 3

let agent: LiveAgent
/** A pool that nothing happens to. */
let well: RawPool

test.before(async () => {
  well = makePool('well', 0)
  agent = await startAgent()
})
test.after.always(async () => {
  if (agent.child.exitCode === null) await agent.kill()
})

const startAgent = () => LiveAgent.start({ config: { catalog, readDeadlineSeconds: READ_DEADLINE, drainSeconds: 0 } })

/** A pool with a volume and two snapshots of it, 64 MiB of disk to itself. */
function makePool(
  name: string,
  slot: number,
  { metadataBytes = 4 * mebibyte, dataBytes = 8 * mebibyte } = {}
): RawPool {
  // Its identity must not depend on tables that come and go below it.
  const pool = new RawPool({ name, uuid: name, offsetBytes: slot * 64 * mebibyte, metadataBytes, dataBytes })
  pool.createVolume(`${name}-volume`, 0, 512)
  pool.write(`${name}-volume`, 0, 20)
  pool.snapshot(`${name}-volume`, `${name}-1`, 1)
  pool.write(`${name}-volume`, 10, 20)
  pool.write(`${name}-volume`, 40, 2)
  pool.snapshot(`${name}-volume`, `${name}-2`, 2)
  return pool
}

/** Another table for a device below a pool, whatever state that is in. */
function swap(device: string, table: string): void {
  run('dmsetup', ['suspend', '--nolockfs', '--noflush', device])
  run('dmsetup', ['load', device, '--table', table])
  run('dmsetup', ['resume', device])
}

function tableOf(device: string): string {
  return run('dmsetup', ['table', device]).trim()
}

/** A pool's metadata as it is on disk. */
function readMetadata({ metadata }: RawPool): Uint8Array {
  const bytes = alignedBuffer(4 * mebibyte)
  const file = openSync(metadata, constants.O_RDONLY | constants.O_DIRECT)
  readSync(file, bytes)
  closeSync(file)
  return bytes
}

function statusOf({ name }: RawPool): PoolStatus {
  return parsePoolStatus(run('dmsetup', ['status', name]).trim().split(' ').slice(3).join(' '))
}

/** Does what may fail or not. */
function attempt(action: () => void): void {
  try {
    action()
  } catch {
    // Either is fine.
  }
}

async function until(condition: () => boolean, what: string): Promise<void> {
  for (const deadline = performance.now() + 300_000; !condition(); await sleep(20)) {
    if (performance.now() > deadline) throw new Error(`still not so after 30 s: ${what}`)
  }
}

async function ask(pool: RawPool, target: string, base?: string, asked = agent): Promise<Extent[]> {
  const client = asked.client()
  try {
    const handles = { target: pool.handle(target), ...(base !== undefined && { base: pool.handle(base) }) }
    return await answerTo(client, handles)
  } finally {
    client.close()
  }
}

/** The answers about two snapshots, and what they have to be. */
async function answers(pool: RawPool, base: string, target: string): Promise<[got: Extent[][], due: Extent[][]]> {
  return [
    [await ask(pool, target, base), await ask(pool, target)],
    [expectedDelta(pool.thin(base), pool.thin(target)), expectedAllocated(pool.thin(target))]
  ]
}

const codeOf = async (answer: Promise<unknown>): Promise<ErrorCode> => (await failure(answer)).code

/** As an administrator would: deactivated, checked, activated. */
function repair(pool: RawPool, metadataTable: string): void {
  swap(`${pool.name}-metadata`, metadataTable)
  pool.deactivateAll()
  run('thin_check', ['--clear-needs-check-flag', pool.metadata])
  pool.activateAll()
}

test('out of data space: everything is answered, also about snapshots taken then', async (t) => {
  const pool = makePool('full', 1, { dataBytes: 64 * blockBytes })
  t.throws(() => pool.write('full-volume', 100, 64), { code: 'ENOSPC' })
  t.like(statusOf(pool), { mode: 'out-of-data-space' })
  t.deepEqual(...(await answers(pool, 'full-1', 'full-2')))
  pool.snapshot('full-volume', 'full-3', 3)
  t.deepEqual(...(await answers(pool, 'full-2', 'full-3')))

  const data = tableOf('full-data').split(' ')
  const larger = 128 * blockBytes
  swap('full-data', [data[0], larger / sectorBytes, ...data.slice(2)].join(' '))
  reloadDevice('full', pool.table(larger))
  t.like(statusOf(pool), { mode: 'read-write' })
  pool.write('full-volume', 300, 20)
  pool.snapshot('full-volume', 'full-4', 4)
  t.deepEqual(...(await answers(pool, 'full-3', 'full-4')))
  pool.close()
})

test('out of metadata space: what was taken before is answered', async (t) => {
  const [metadataBytes, blocks] = [mebibyte, 8000]
  const place = { name: 'crammed', offsetBytes: 2 * 64 * mebibyte, metadataBytes, dataBytes: 20_000 * blockBytes }
  const pool = new RawPool({
    ...place,
    withoutData: true,
    features: ['skip_block_zeroing', 'no_discard_passdown', 'error_if_no_space']
  })
  pool.createVolume('crammed-volume', 0, blocks)
  pool.write('crammed-volume', 0, blocks)
  pool.snapshot('crammed-volume', 'crammed-1', 1)
  for (let block = 0; block < blocks; block += 500) pool.write('crammed-volume', block, 2)
  pool.snapshot('crammed-volume', 'crammed-2', 2)
  // From here on each write takes a metadata block or more, until there are none.
  t.throws(
    () => {
      for (let taken = 3; taken < 10; taken++) {
        for (let block = 0; block < blocks; block += 100) pool.write('crammed-volume', block)
        pool.snapshot('crammed-volume', `crammed-${taken}`, taken)
      }
    },
    { message: /EIO|ENOSPC|ENODATA|exit status/ }
  )
  t.like(statusOf(pool), { mode: 'read-only' })
  t.throws(() => sendMessage('crammed', 'create_snap 100 0'))
  t.deepEqual(...(await answers(pool, 'crammed-1', 'crammed-2')))

  const metadata = tableOf('crammed-metadata').split(' ')
  repair(pool, [metadata[0], (4 * metadataBytes) / sectorBytes, ...metadata.slice(2)].join(' '))
  t.like(statusOf(pool), { mode: 'read-write', needsCheck: false })
  t.deepEqual(...(await answers(pool, 'crammed-1', 'crammed-2')))
  pool.snapshot('crammed-volume', 'crammed-100', 100)
  pool.write('crammed-volume', 77, 5)
  pool.snapshot('crammed-volume', 'crammed-101', 101)
  t.deepEqual(await ask(pool, 'crammed-101', 'crammed-100'), [[77 * blockBytes, 5 * blockBytes]])
  pool.close()
})

test('metadata that cannot be written: read-only and to be checked, and answered', async (t) => {
  const pool = makePool('worn', 3)
  const good = tableOf('worn-metadata')
  swap('worn-metadata', good.replace(/linear (\S+) (\d+)/, 'flakey $1 $2 0 3600 1 error_writes'))
  // They reach the data device, but the pool cannot note where: at its next commit, within a second or when asked for its status.
  attempt(() => pool.write('worn-volume', 60, 4))
  t.like(statusOf(pool), { mode: 'read-only', needsCheck: true })
  t.deepEqual(...(await answers(pool, 'worn-1', 'worn-2')))
  repair(pool, good)
  t.like(statusOf(pool), { mode: 'read-write', needsCheck: false })
  pool.write('worn-volume', 60, 4)
  pool.snapshot('worn-volume', 'worn-3', 3)
  t.deepEqual(...(await answers(pool, 'worn-1', 'worn-2')))
  t.deepEqual(await ask(pool, 'worn-3', 'worn-2'), [[60 * blockBytes, 4 * blockBytes]])
  pool.close()
})

test('metadata that is read wrong, or not at all', async (t) => {
  const pool = makePool('torn', 4)
  const good = tableOf('torn-metadata')
  // A copy of it, with a byte in the middle of each block another one, where the table can be told to look instead.
  run('dmsetup', ['status', 'torn'])
  const copyBytes = readMetadata(pool)
  for (let at = 2000; at < copyBytes.length; at += 4096) copyBytes[at] ^= 1
  const copy = createLinear('torn-copy', '/dev/ubda', (4 * 64 + 32) * mebibyte, copyBytes.length)
  writeFileSync(copy, copyBytes)
  run('sync', [])
  for (const [target, code] of [
    [`linear ${copy} 0`, 'DM_METADATA_DAMAGED'],
    ['flakey /dev/ubda 0 0 3600', 'DM_READ_FAILED'],
    ['error', 'DM_READ_FAILED']
  ] as const) {
    const table = good.replace(/linear .*/, target)
    swap('torn-metadata', table)
    t.is(await codeOf(ask(pool, 'torn-2', 'torn-1')), code, table)
    t.is(await codeOf(ask(pool, 'torn-2')), code, table)
    t.deepEqual(...(await answers(well, 'well-1', 'well-2')))
    swap('torn-metadata', good)
    t.deepEqual(...(await answers(pool, 'torn-1', 'torn-2')))
  }
  pool.close()
  removeDevice('torn-copy')
})

test('metadata that comes and goes: an answer is right, or none', async (t) => {
  const pool = makePool('flaky', 5)
  const good = tableOf('flaky-metadata')
  swap('flaky-metadata', good.replace(/linear (\S+) (\d+)/, 'flakey $1 $2 1 1'))
  const seen = new Map<string, number>()
  const due = expectedDelta(pool.thin('flaky-1'), pool.thin('flaky-2'))
  // On a machine that is busy a question can take as long as the device is away.
  const [least, most] = [performance.now() + 2500, performance.now() + 120_000]
  while (performance.now() < least || (seen.size < 2 && performance.now() < most)) {
    const outcome = await ask(pool, 'flaky-2', 'flaky-1').then(
      (extents) => t.deepEqual(extents, due) && 'answered',
      (error: unknown) => (error instanceof DeltamapperError ? error.code : String(error))
    )
    seen.set(String(outcome), (seen.get(String(outcome)) ?? 0) + 1)
  }
  t.deepEqual([...seen.keys()].sort(), ['DM_READ_FAILED', 'answered'])
  swap('flaky-metadata', good)
  t.deepEqual(...(await answers(pool, 'flaky-1', 'flaky-2')))
  pool.close()
})

test('a pool that has failed', async (t) => {
  const pool = makePool('dead', 6)
  const good = tableOf('dead-metadata')
  swap('dead-metadata', good.replace(/linear .*/, 'error'))
  try {
    pool.write('dead-volume', 60, 4)
  } catch {
    // Whether the write fails already, or only the commit after it, is up to the kernel's clock.
  }
  await until(() => statusOf(pool).state === 'failed', 'the pool has failed')
  const error = await failure(ask(pool, 'dead-2', 'dead-1'))
  t.is(error.code, 'DM_POOL_FAILED')
  t.regex(error.message, /^dead\/dead-[12] is in a pool that has failed$/)
  t.deepEqual(...(await answers(well, 'well-1', 'well-2')))
  repair(pool, good)
  t.deepEqual(...(await answers(pool, 'dead-1', 'dead-2')))
  pool.write('dead-volume', 60, 4)
  pool.snapshot('dead-volume', 'dead-3', 3)
  t.deepEqual(await ask(pool, 'dead-3', 'dead-2'), [[60 * blockBytes, 4 * blockBytes]])
  pool.close()
})

/** Milliseconds that an answer about the pool that is well takes, and one of the health service: the median of some. */
async function usualTimes(health: PlainClient): Promise<{ answer: number; health: number }> {
  const times = { answer: [] as number[], health: [] as number[] }
  for (let round = 0; round < 7; round++) {
    const begun = performance.now()
    await ask(well, 'well-2', 'well-1')
    const answered = performance.now()
    await health.unary('Health', 'Check', { service: '' })
    times.answer.push(answered - begun)
    times.health.push(performance.now() - answered)
  }
  const median = (values: number[]) => values.sort((a, b) => a - b)[3]
  return { answer: median(times.answer), health: median(times.health) }
}

test('a pool that is slow is answered slowly, and delays nobody', async (t) => {
  const pool = makePool('slow', 7)
  const good = tableOf('slow-metadata')
  const health = new PlainClient(t, agent.address.replace('unix://', ''))
  const usual = await usualTimes(health)
  swap('slow-metadata', good.replace(/linear (\S+) (\d+)/, 'delay $1 $2 200'))
  const asked = performance.now()
  const slow = Array.from({ length: 40 }, () => ask(pool, 'slow-2', 'slow-1'))
  await sleep(300)
  const meanwhile = await usualTimes(health)
  t.log({ usual, meanwhile })
  t.true(meanwhile.answer < 2 * usual.answer + 600)
  t.true(meanwhile.health < 2 * usual.health + 600)
  const due = expectedDelta(pool.thin('slow-1'), pool.thin('slow-2'))
  for (const answer of await Promise.all(slow)) t.deepEqual(answer, due)
  t.true(performance.now() - asked > 1000)
  swap('slow-metadata', good)
  pool.close()
})

test('a pool that hangs: its streams end in time, nobody else is delayed', async (t) => {
  const pool = makePool('hung', 8)
  const health = new PlainClient(t, agent.address.replace('unix://', ''))
  await ask(pool, 'hung-2', 'hung-1')
  const usual = await usualTimes(health)
  run('dmsetup', ['suspend', '--nolockfs', '--noflush', 'hung-metadata'])
  // Asked again and again: more often than there are threads to wait for it.
  const client = agent.client()
  t.teardown(() => client.close())
  const handles = { target: pool.handle('hung-2'), base: pool.handle('hung-1') }
  const stuck = Array.from({ length: 150 }, () => codeOf(answerTo(client, handles)))
  await sleep(500)
  const meanwhile = await usualTimes(health)
  t.log({ usual, meanwhile })
  t.true(meanwhile.answer < 2 * usual.answer + 600)
  t.true(meanwhile.health < 2 * usual.health + 600)
  t.deepEqual(new Set(await Promise.all(stuck)), new Set(['DM_READ_FAILED']))

  // A thread that waits for it keeps the process. But what another agent needs is free.
  agent.child.kill('SIGTERM')
  await until(() => agent.log.some(({ msg }) => msg === 'stopping'), 'the agent is stopping')
  let next: LiveAgent | undefined
  for (let attempt = 0; next === undefined; attempt++) {
    next = await startAgent().catch((error: unknown) => {
      if (attempt === 3) throw error
      return undefined
    })
  }
  t.deepEqual(await ask(well, 'well-2', 'well-1', next), expectedDelta(well.thin('well-1'), well.thin('well-2')))
  run('dmsetup', ['resume', 'hung-metadata'])
  t.is((await agent.exit).status, 0)
  agent = next
  t.deepEqual(...(await answers(pool, 'hung-1', 'hung-2')))
  pool.close()
})

test('a device-mapper call that hangs delays nobody', async (t) => {
  const place = 9 * 64 * mebibyte
  const metadataDevice = createLinear('tank-m', '/dev/ubda', place, 4 * mebibyte)
  const dataDevice = createLinear('tank-d', '/dev/ubda', place + 4 * mebibyte, 16 * mebibyte)
  const admin = connectAdmin(agent.address)
  t.teardown(() => admin.close())
  await admin.createPool({ name: 'tank', metadataDevice, dataDevice, blockBytes, whenFull: 'error' })
  await admin.createVolume({ pool: 'tank', name: 'docs', sizeBytes: 8 * mebibyte, inactive: false })
  const health = new PlainClient(t, agent.address.replace('unix://', ''))
  const usual = await usualTimes(health)
  run('dmsetup', ['suspend', '--nolockfs', '--noflush', 'tank-m'])
  const stuck = admin.createSnapshot({ pool: 'tank', origin: 'docs', name: 'monday' })
  let done = false
  void stuck.finally(() => (done = true))
  await sleep(500)
  const meanwhile = await usualTimes(health)
  t.log({ usual, meanwhile })
  t.false(done)
  t.true(meanwhile.answer < 2 * usual.answer + 600)
  t.true(meanwhile.health < 2 * usual.health + 600)
  run('dmsetup', ['resume', 'tank-m'])
  t.is((await stuck).name, 'monday')
})

test('in the end nothing of all that is left in the agent', async (t) => {
  t.deepEqual(...(await answers(well, 'well-1', 'well-2')))
  t.deepEqual(
    agent.log.filter(({ level }) => Number(level) >= 50),
    []
  )
  t.is(await agent.stop(), 0)
})
