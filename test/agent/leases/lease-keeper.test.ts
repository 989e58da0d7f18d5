/**
 * The keeper of a lease as a process: what it is started for, how it ends, that there is one at a time. What it does to a pool:
 * test/kernel/lease.test.ts.
 */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import test, { type ExecutionContext } from 'ava'
import { keeperAtWork, KeeperLost, LeaseKeeper } from '../../../src/agent/leases/lease-keeper.ts'

let keys = 0

const folder = mkdtempSync(join(tmpdir(), 'keeper-'))
test.after.always(() => rmSync(folder, { recursive: true }))
const catalog = join(folder, 'catalog')
const atWork = (key: string) => keeperAtWork(key, catalog)

/** A key that no other test has. */
const newKey = () => `dm-name:no-such-pool-${keys++}`

async function startKeeper(t: ExecutionContext, device: string): Promise<LeaseKeeper> {
  const keeper = await LeaseKeeper.start({ device, takenAt: 1 }, { path: '/nowhere' }, catalog, 30_000)
  t.teardown(() => keeper.end())
  return keeper
}

test('at work from its start to its end, in a group of its own', async (t) => {
  const key = newKey()
  t.false(await atWork(key))
  const keeper = await startKeeper(t, key)
  t.true(await atWork(key))
  t.false(await atWork(newKey()))
  const fields = readFileSync(`/proc/${keeper.pid}/stat`, 'utf8').split(') ')[1].split(' ')
  t.is(Number(fields[1]), process.pid)
  t.is(Number(fields[2]), keeper.pid!)
  await keeper.end()
  t.false(await atWork(key))
  t.false(keeper.alive)
  await t.throwsAsync(keeper.reserve(), { instanceOf: KeeperLost })
})

test('one keeper for each pool', async (t) => {
  const key = newKey()
  const keeper = await startKeeper(t, key)
  await t.throwsAsync(startKeeper(t, key), { code: 'DM_DEVICE_BUSY' })
  t.true(keeper.alive)
  await keeper.end()
  await startKeeper(t, key)
})

test('politely asked to end, it stays; killed, that is known', async (t) => {
  const key = newKey()
  const keeper = await startKeeper(t, key)
  for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) process.kill(keeper.pid!, signal)
  await sleep(100)
  t.true(await atWork(key))
  const answer = keeper.adopt(1, 'facts')
  await t.notThrowsAsync(answer)
  process.kill(keeper.pid!, 'SIGKILL')
  for (let round = 0; keeper.alive && round < 500; round++) await sleep(10)
  t.false(keeper.alive)
  await t.throwsAsync(keeper.release(), { instanceOf: KeeperLost, message: /ended \(SIGKILL\)/ })
  t.false(await atWork(key))
})

test('what it is not able to do, it says, and is none the worse for it', async (t) => {
  const keeper = await startKeeper(t, newKey())
  // There is no such pool here, or no device-mapper at all.
  const error = await t.throwsAsync(keeper.reserve())
  t.regex(
    (error as { code?: string }).code ?? '',
    /^DM_(NO_SUCH_DEVICE|CONTROL_MISSING|LIBDEVMAPPER_MISSING|PERMISSION)$/
  )
  t.is(await keeper.release(), 'released')
  await keeper.adopt(7, 'facts')
  await t.throwsAsync(keeper.release(), { code: 'DM_READ_FAILED' })
})

test('an answer that does not come in time is given up, and so is the keeper', async (t) => {
  const key = newKey()
  const keeper = await LeaseKeeper.start({ device: key, takenAt: 1 }, { path: '/nowhere' }, catalog, 1)
  process.kill(keeper.pid!, 'SIGSTOP')
  const error = await t.throwsAsync(keeper.adopt(1, 'facts'), { instanceOf: KeeperLost })
  t.like(error, { code: 'DM_CALL_STUCK' })
  t.false(keeper.alive)
  process.kill(keeper.pid!, 'SIGCONT')
  for (let round = 0; (await atWork(key)) && round < 500; round++) await sleep(10)
  t.false(await atWork(key))
})
