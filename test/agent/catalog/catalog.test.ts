import { execFile, spawn } from 'node:child_process'
import diagnostics from 'node:diagnostics_channel'
import { once } from 'node:events'
import { readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import type { Worker } from 'node:worker_threads'
import test from 'ava'
import { lineage } from '../../../src/agent/catalog/admission.ts'
import { openCatalog } from '../../../src/agent/catalog/catalog.ts'
import { openDatabase } from '../../../src/agent/catalog/database.ts'
import { checkBase } from '../../../src/agent/catalog/fingerprint.ts'
import { remember } from '../../../src/agent/catalog/served-targets.ts'
import { DeltamapperError } from '../../../src/errors.ts'
import { Random } from '../../support/random.ts'
import { contentOf, fill, newPool, servedTarget, testFolder } from './examples.ts'
import { carryOut, handles, operations } from './operations.ts'

const catalogSource = new URL('../../../src/agent/catalog/catalog.ts', import.meta.url).href
/** How often the writer is killed; more for a longer run. */
const KILLS = Number(process.env['DELTAMAPPER_CATALOG_KILLS'] ?? 20)
const SEED = Number(process.env['DELTAMAPPER_CATALOG_SEED'] ?? 1)

test('from nothing to a refused base, across threads and runs', async (t) => {
  const path = join(testFolder(t), 'deltamapper', 'catalog.db')
  let catalog = await openCatalog(path)
  t.true((await catalog.opening()).created)
  const target = servedTarget()
  t.is(await catalog.served.remember(target, 5), 'new')
  await catalog.close()

  catalog = await openCatalog(path)
  t.false((await catalog.opening()).created)
  const [record] = await catalog.served.find(target)
  t.deepEqual(record, { ...target, role: 'target', firstServedAt: 5, lastServedAt: 5 })
  t.is(checkBase([record], target), 'unchanged')
  t.throws(() => checkBase([record], { ...target, mappedBlocks: 42 }), { code: 'DM_BASE_CHANGED' })
  await catalog.close()
})

test('calls are answered in the order in which they are made, whatever becomes of them', async (t) => {
  const catalog = await openCatalog(join(testFolder(t), 'catalog.db'))
  const order: number[] = []
  const calls = Array.from({ length: 60 }, (_, index) => {
    const call =
      index % 3 === 0
        ? catalog.served.remember(servedTarget({ handle: `vg/${index}` }), index)
        : index % 3 === 1
          ? catalog.ownedPools.rollBack('none')
          : catalog.served.find({ handle: `vg/${index - 2}`, identity: '' })
    return call.then(
      (value) => {
        order.push(index)
        return value
      },
      (error: unknown) => {
        order.push(index)
        return error
      }
    )
  })
  const answers = await Promise.all(calls)
  t.deepEqual(order, [...order.keys()])
  for (const [index, answer] of answers.entries()) {
    if (index % 3 === 0) t.is(answer, 'new')
    else if (index % 3 === 1) {
      t.true(answer instanceof DeltamapperError)
      t.is((answer as DeltamapperError).code, 'DM_INTERNAL')
    } else t.like(answer, [{ handle: `vg/${index - 2}` }])
  }
  await catalog.close()
})

test('closing waits for what is under way, and refuses the rest', async (t) => {
  const path = join(testFolder(t), 'catalog.db')
  const catalog = await openCatalog(path)
  const answers = Array.from({ length: 20 }, (_, index) =>
    catalog.served.remember(servedTarget({ handle: `vg/${index}` }), 0)
  )
  const closing = catalog.close()
  await t.throwsAsync(catalog.ownedPools.view(), { code: 'DM_SHUTTING_DOWN' })
  t.deepEqual(new Set(await Promise.all(answers)), new Set(['new']))
  await closing
  await catalog.close()
  t.deepEqual(readdirSync(dirname(path)), ['catalog.db'])
  const database = openDatabase(path, { lockWaitMs: 0 })
  t.is(database.statistics().rows['served'], 20)
  database.close()
})

test('what cannot be sent fails by itself, and nothing behind it', async (t) => {
  const catalog = await openCatalog(join(testFolder(t), 'catalog.db'))
  const target = { ...servedTarget(), extra: () => 0 }
  const [failed, next] = [catalog.served.remember(target, 0), catalog.served.remember(servedTarget(), 0)]
  await t.throwsAsync(failed, { name: 'DataCloneError' })
  t.is(await next, 'new')
  await catalog.close()
})

test('lineage: what a volume was before another device took its place is forgotten', async (t) => {
  const database = openDatabase(join(testFolder(t), 'catalog.db'))
  const volume = servedTarget({ handle: 'vg/vol', identity: 'lvm:vol', creationTime: 5 })
  const snapshot = servedTarget({ handle: 'vg/snap', identity: 'lvm:snap', creationTime: 9 })
  for (const each of [volume, snapshot]) remember(database, each, 0)
  t.is(lineage(database, snapshot, volume), 'after')
  // lvconvert --merge: a snapshot that was taken later goes by the volume's UUID.
  t.is(lineage(database, snapshot, { ...volume, creationTime: 12 }), 'unknown')
  database.close()
})

test('owned pools and leases, by name', async (t) => {
  const catalog = await openCatalog(join(testFolder(t), 'catalog.db'))
  await catalog.ownedPools.begin({ kind: 'create-pool', pool: newPool('a') })
  await catalog.ownedPools.complete('a')
  const volume = { pool: 'a', name: 'v', thinId: 0, dmName: 'a-v', sizeBytes: 1, transactionId: 0n }
  await catalog.ownedPools.begin({ kind: 'create-volume', ...volume })
  await catalog.ownedPools.rollBack('a')
  await catalog.ownedPools.begin({ kind: 'create-volume', ...volume })
  await catalog.ownedPools.complete('a', { creationTime: 3 })
  const v = await catalog.ownedPools.findThinByName('a', 'v')
  t.deepEqual(await catalog.ownedPools.findThin(v?.id ?? ''), v)
  const adopted = await catalog.ownedPools.adoptThin({
    ...volume,
    name: 'w',
    thinId: 1,
    creationTime: 4,
    origin: v?.id
  })
  t.is(v?.id, adopted.volume)
  await catalog.ownedPools.forgetThin(adopted.id)
  await catalog.ownedPools.acceptTransactionId('a', 9n)
  t.like(await catalog.ownedPools.view(), { pools: [{ name: 'a', transactionId: 9n }], thins: [v], intents: [] })

  await catalog.leases.begin({ device: 'dm:a', purpose: 'x', factsBefore: 'y' })
  await catalog.leases.confirm('dm:a', { heldRoot: 1, factsHeld: 'z' })
  await catalog.leases.beginRelease('dm:a')
  t.like(await catalog.leases.find('dm:a'), { state: 'releasing', heldRoot: 1 })
  t.is((await catalog.leases.list()).length, 1)
  await catalog.leases.clear('dm:a')
  t.deepEqual(await catalog.leases.list(), [])
  t.is(await catalog.served.forget(5), 0)
  t.deepEqual((await catalog.statistics()).rows, {
    ...{ served: 0, pools: 1, thins: 1, intents: 0, leases: 0 },
    ...{
      era_volumes: 0,
      era_intents: 0,
      era_snapshots: 0,
      era_writes: 0,
      bases: 0,
      era_names: 0,
      pool_clocks: 0,
      classic_served: 0
    }
  })
  await catalog.close()
})

// What goes wrong

/** The worker threads that are started from now on. */
function watchThreads(): { threads: Worker[]; stop: () => void } {
  const threads: Worker[] = []
  const started = (message: unknown) => threads.push((message as { worker: Worker }).worker)
  diagnostics.subscribe('worker_threads', started)
  return { threads, stop: () => diagnostics.unsubscribe('worker_threads', started) }
}

test.serial('a thread that dies fails the calls under way; the next call finds what was acknowledged', async (t) => {
  const path = join(testFolder(t), 'catalog.db')
  const watched = watchThreads()
  t.teardown(watched.stop)
  const catalog = await openCatalog(path)
  t.is(await catalog.served.remember(servedTarget({ handle: 'vg/first' }), 0), 'new')
  const underWay = Array.from({ length: 30 }, (_, index) =>
    catalog.served.remember(servedTarget({ handle: `vg/${index}` }), 0).then(
      () => true,
      (error: unknown) => error
    )
  )
  await watched.threads[0].terminate()
  const answers = await Promise.all(underWay)
  const failed = answers.filter((each) => each !== true)
  t.true(failed.length > 0)
  for (const error of failed) {
    t.is((error as DeltamapperError).code, 'DM_CATALOG_UNAVAILABLE')
    t.regex((error as DeltamapperError).message, /not known/)
  }
  t.is((await catalog.served.find({ handle: 'vg/first', identity: '' })).length, 1)
  for (const [index, answer] of answers.entries()) {
    if (answer !== true) continue
    t.is((await catalog.served.find({ handle: `vg/${index}`, identity: '' })).length, 1)
  }
  t.is(watched.threads.length, 2)
  await catalog.close()
})

test.serial('a thread that does not answer fails the call in time, blocks nobody, and is replaced', async (t) => {
  const path = join(testFolder(t), 'catalog.db')
  const watched = watchThreads()
  t.teardown(watched.stop)
  // Opening waits for the lock: a call that does not come back until it is let go.
  const holder = openDatabase(path)
  fill(holder)
  let ticks = 0
  const timer = setInterval(() => ticks++, 10)
  const opening = openCatalog(path, { lockWaitMs: 24 * 3_600_000, deadlineMs: 400 })
  await t.throwsAsync(opening, { code: 'DM_CATALOG_UNAVAILABLE', message: /has not answered for 2 seconds/ })
  t.true(ticks > 0, 'the main thread went on meanwhile')
  // Given up, it does not keep the process alive; the timer does until it has ended.
  t.not(watched.threads[0].threadId, -1, 'it waits for the lock still')
  const exited = once(watched.threads[0], 'exit')
  holder.close()
  await exited
  clearInterval(timer)

  const catalog = await openCatalog(path, { deadlineMs: 300_000 })
  t.is((await catalog.ownedPools.view()).thins.length, 3)
  const blocker = watched.threads[1]
  await catalog.close()
  t.is(blocker.threadId, -1)
})

test('in use, damaged, newer: the errors cross the thread', async (t) => {
  const path = join(testFolder(t), 'catalog.db')
  const catalog = await openCatalog(path)
  const error = await t.throwsAsync(openCatalog(path, { lockWaitMs: 10 }), { code: 'DM_CATALOG_IN_USE' })
  t.true(error instanceof DeltamapperError)
  t.true(error?.message.includes(path))
  // The other's attempt does not touch ours.
  t.is(await catalog.served.remember(servedTarget(), 0), 'new')
  await catalog.close()

  const bytes = readFileSync(path)
  writeFileSync(path, bytes.subarray(0, 9000))
  await t.throwsAsync(openCatalog(path), { code: 'DM_CATALOG_DAMAGED' })
  writeFileSync(path, bytes)
  await t.notThrowsAsync(openCatalog(path).then((again) => again.close()))
})

test('a full disk fails calls with the reason; once there is space, everything acknowledged is there', async (t) => {
  const path = join(testFolder(t), 'catalog.db')
  await (await openCatalog(path)).close()
  // A limit on the size of files stands in for a full disk. In units of 512 bytes: room for a few more blocks.
  const limited = `trap '' XFSZ; ulimit -f ${statSync(path).size / 512 + 40}; exec "$0" "$@"`
  const program = `
    const { openCatalog } = await import(process.argv[1])
    const catalog = await openCatalog(process.argv[2])
    const target = JSON.parse(process.argv[3], (key, value) => key === 'transactionId' ? BigInt(value) : value)
    let served = 0
    try {
      for (;; served++) await catalog.served.remember({ ...target, handle: 'vg/' + served, identity: String(served) }, 0)
    } catch (error) {
      console.log(served)
      console.log(error.line)
    }
    console.log(await catalog.ownedPools.view().then(() => 'works', ({ code }) => code))
    await catalog.close()`
  const target = JSON.stringify({ ...servedTarget(), transactionId: '7' })
  const node = [process.execPath, '--input-type=module', '-e', program, catalogSource, path, target]
  const { stdout } = await promisify(execFile)('sh', ['-c', limited, ...node])
  const [served, line, next] = stdout.split('\n')
  t.true(Number(served) > 10, stdout)
  t.regex(line, /^DM_CATALOG_UNAVAILABLE: the catalog .* cannot be read or written: .*; see that its file system/)
  t.true(['works', 'DM_CATALOG_UNAVAILABLE'].includes(next), next)
  const catalog = await openCatalog(path)
  const { rows } = await catalog.statistics()
  t.true(rows['served'] === Number(served) || rows['served'] === Number(served) + 1)
  await catalog.close()
})

test('an idle catalog does not keep a process alive', async (t) => {
  const program = `
    const { openCatalog } = await import(process.argv[1])
    const catalog = await openCatalog(process.argv[2])
    await catalog.ownedPools.view()
    console.log('done')`
  const path = join(testFolder(t), 'catalog.db')
  const options = { timeout: 20_000 }
  const node = ['--input-type=module', '-e', program, catalogSource, path]
  const { stdout } = await promisify(execFile)(process.execPath, node, options)
  t.is(stdout, 'done\n')
  await (await openCatalog(path, { lockWaitMs: 0 })).close()
})

// Killed at any moment

test('killed at random moments, it opens, is sound, and holds everything that was acknowledged', async (t) => {
  const folder = testFolder(t)
  const writer = fileURLToPath(new URL('./catalog-writer.ts', import.meta.url))
  const random = new Random(SEED)
  const path = join(folder, 'catalog.db')
  const replica = await openCatalog(join(folder, 'replica.db'))
  const sequence = operations(SEED)
  let done = 0
  const advance = async () => {
    await carryOut(sequence.next().value, replica)
    done++
  }
  const look = async (of: Awaited<ReturnType<typeof openCatalog>>) => JSON.stringify(await contentOf(of, handles))
  const moments: Record<string, number> = { opening: 0, writing: 0 }
  for (let kill = 0; kill < KILLS; kill++) {
    const child = spawn(process.execPath, [writer, path, String(SEED), String(done)], {
      stdio: ['ignore', 'pipe', 'inherit']
    })
    let output = ''
    child.stdout.setEncoding('utf8').on('data', (chunk: string) => (output += chunk))
    const closed = once(child, 'close')
    // Now and then while it is being opened, or made.
    if (!random.chance(0.2)) await once(child.stdout, 'data')
    await sleep(random.integer(0, 120))
    child.kill('SIGKILL')
    await closed

    t.false(output.includes('!'), output)
    moments[output === '' ? 'opening' : 'writing']++
    const acknowledged = done + output.replace(/^o/, '').length
    const catalog = await openCatalog(path, { lockWaitMs: 0 })
    const found = await look(catalog)
    await catalog.close()
    while (done < acknowledged) await advance()
    let content = await look(replica)
    // The one operation that was under way may have been carried out.
    if (content !== found) {
      await advance()
      content = await look(replica)
    }
    t.is(found, content, `kill ${kill}, ${acknowledged} acknowledged, seed ${SEED}`)
  }
  await replica.close()
  t.log(`${done} operations, ${JSON.stringify(moments)}`)
  t.true(done > KILLS)
})
