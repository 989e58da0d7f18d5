import { once } from 'node:events'
import { open } from 'node:fs/promises'
import { join } from 'node:path'
import { setImmediate, setTimeout } from 'node:timers/promises'
import type { Worker } from 'node:worker_threads'

import test from 'ava'
import type { ExecutionContext } from 'ava'

import type { DeviceKnowledge } from '../../../src/agent/answers/served-target.ts'
import { thinPlan } from '../../../src/agent/answers/thin-snapshots.ts'
import type { WalkRequest } from '../../../src/agent/walks/thin-walk.ts'
import type { FromWalker } from '../../../src/agent/walks/walk-messages.ts'
import { Walkers } from '../../../src/agent/walks/walkers.ts'
import { DeltamapperError, type ErrorCode } from '../../../src/errors.ts'
import { testFolder } from '../../support/test-folder.ts'
import { decode, type Extent, writeBigPool, writeSamplePool } from '../sample-pool.ts'

const folder = testFolder(test)
const sample = writeSamplePool(join(folder, 'sample'))
const EXTENTS = 50_000
const big = writeBigPool(join(folder, 'big'), EXTENTS)

type Asked = Pick<WalkRequest, 'target'> & Partial<WalkRequest>

/** Walkers, and the threads that they have started so far. */
class Watched {
  readonly threads: Worker[] = []
  readonly walkers: Walkers

  private constructor(walkers: Walkers) {
    this.walkers = walkers
  }

  static async start(t: ExecutionContext, count: number): Promise<Watched> {
    const watched = new Watched(new Walkers(count))
    const started = (worker: Worker) => watched.threads.push(worker)
    process.on('worker', started)
    // Walkers do not keep a process alive; in an agent the server does.
    const alive = setInterval(() => undefined, 1000)
    t.teardown(async () => {
      process.off('worker', started)
      await watched.walkers.close()
      clearInterval(alive)
    })
    // The event comes in the tick after.
    await setImmediate()
    return watched
  }

  walk(request: Asked, signal = new AbortController().signal, knowledge?: DeviceKnowledge, client?: string) {
    const plan = thinPlan({ base: undefined, startingOffset: 0, maxResults: 0, ...request }, knowledge)
    const { messages, statistics, capacityBytes } = this.walkers.stream(plan, signal, client)
    return { messages: messages[Symbol.asyncIterator](), statistics, capacityBytes }
  }

  /** Resolves once no walk is under way. */
  async idle(t: ExecutionContext): Promise<void> {
    for (let waited = 0; this.walkers.active > 0; waited += 5) {
      if (waited > 30_000) return t.fail(`${this.walkers.active} walks have not ended`)
      await setTimeout(5)
    }
  }
}

async function rest(messages: AsyncIterator<Uint8Array>): Promise<Extent[]> {
  const extents: Extent[] = []
  for (let next = await messages.next(); !next.done; next = await messages.next()) {
    extents.push(...decode(next.value).extents)
  }
  return extents
}

async function fails(t: ExecutionContext, what: Promise<unknown>, code: ErrorCode, says = /./) {
  const error = await t.throwsAsync<DeltamapperError>(what, { instanceOf: DeltamapperError })
  t.is(error?.code, code, error?.message)
  t.regex(error?.message ?? '', says)
}

// Serial: threads are watched through an event of the process, which does not say whose they are.

test.serial('many walks at once on one thread, each complete and right', async (t) => {
  const watched = await Watched.start(t, 1)
  const pool = await sample
  const names = ['mon', 'tue', 'wed', 'thu']
  const walks = Array.from({ length: 60 }, async (_, i) => {
    const target = names[i % 4]
    const base = i % 3 === 0 ? undefined : names[Math.floor(i / 3) % ((i % 4) + 1)]
    const { messages, capacityBytes } = watched.walk({
      ...(base !== undefined && { base: pool.snapshot(base) }),
      target: pool.snapshot(target),
      maxResults: 1 + (i % 7)
    })
    t.is(capacityBytes, pool.listed(target).size_bytes)
    t.deepEqual(await rest(messages), await pool.extents(base, target), `${base} to ${target}`)
  })
  await Promise.all(walks)
  t.is(watched.threads.length, 1)
  await watched.idle(t)
})

test.serial('walks are spread over the threads', async (t) => {
  const watched = await Watched.start(t, 3)
  const pool = await big
  t.is(watched.threads.length, 3)
  const used = new Set<Worker>()
  for (const worker of watched.threads) worker.on('message', () => used.add(worker))
  const walks = Array.from({ length: 3 }, () => watched.walk({ target: pool.snapshot('big'), maxResults: 10 }).messages)
  for (const messages of walks) t.false((await messages.next()).done)
  t.is(used.size, 3)
  t.is(watched.walkers.active, 3)
  for (const messages of walks) await messages.return?.()
  await watched.idle(t)
})

test.serial('a walk begins when it is asked for its first message', async (t) => {
  const watched = await Watched.start(t, 1)
  const { messages, statistics } = watched.walk({ target: (await big).snapshot('big') })
  await setTimeout(50)
  t.is(watched.walkers.active, 0)
  t.deepEqual(statistics?.(), {
    nodesRead: 0,
    bytesRead: 0,
    readCalls: 0,
    extents: 0,
    extentBytes: 0,
    volumeBytes: 0,
    walkMs: 0
  })
  await messages.return?.()
})

test.serial('a walk runs no further ahead of who takes its messages than two, and holds up no other', async (t) => {
  const watched = await Watched.start(t, 1)
  const pool = await big
  const arrivals = new Map<number, number>()
  watched.threads[0].on('message', ({ kind, id }: FromWalker) => {
    if (kind === 'message') arrivals.set(id, (arrivals.get(id) ?? 0) + 1)
  })
  const { messages, statistics } = watched.walk({ target: pool.snapshot('big'), maxResults: 100 })
  const extents: Extent[] = []
  for (let taken = 1; taken <= 20; taken++) {
    const { value } = (await messages.next()) as { value: Uint8Array }
    extents.push(...decode(value).extents)
    if (taken % 5 !== 0) continue
    for (let waited = 0; (arrivals.get(0) ?? 0) < taken + 2 && waited < 300_000; waited += 5) await setTimeout(5)
    await setTimeout(40)
    t.is(arrivals.get(0), taken + 2)
  }
  const cost = statistics?.().nodesRead ?? 0
  t.true(cost > 0 && cost < EXTENTS / 126, `${cost} nodes were read`)

  const other = watched.walk({ target: pool.snapshot('big') })
  t.is((await rest(other.messages)).length, EXTENTS)
  t.is(arrivals.get(0), 22)

  extents.push(...(await rest(messages)))
  t.deepEqual(extents, await pool.extents(undefined, 'big'))
  t.is(statistics?.().extents, EXTENTS)
  await watched.idle(t)
})

test.serial('beside many walks of another client, an answer comes to its end', async (t) => {
  const watched = await Watched.start(t, 1)
  const pool = await big
  const request = { target: pool.snapshot('big'), maxResults: 100 }
  const controller = new AbortController()
  const greedy = Array.from(
    { length: 150 },
    () => watched.walk(request, controller.signal, undefined, 'greedy').messages
  )
  let taken = 0
  const all = greedy.map(async (messages) => {
    // For ever: who has come to the end begins anew.
    for (let walk = messages; !controller.signal.aborted;) {
      const { done } = await walk.next()
      if (done) walk = watched.walk(request, controller.signal, undefined, 'greedy').messages
      else taken++
    }
  })
  while (taken < 1000) await setTimeout(5)
  const { messages } = watched.walk(request, undefined, undefined, 'modest')
  let own = 0
  while (!(await messages.next()).done) own++
  controller.abort(new DeltamapperError('DM_CANCELLED', 'enough', 'nothing'))
  await Promise.allSettled(all)
  t.is(own, EXTENTS / 100)
  await watched.idle(t)
})

test.serial('what walks have cost is counted, while they go on and when they have ended', async (t) => {
  const watched = await Watched.start(t, 2)
  const pool = await sample
  const bigger = (await big).snapshot('big')
  const { messages, statistics } = watched.walk({ target: bigger, maxResults: 100 })
  await messages.next()
  await setTimeout(20)
  const { allocated } = watched.walkers.totals
  t.true(allocated.nodesRead > 0 && allocated.extents > 0 && allocated.bytesRead >= 4096)
  await rest(messages)
  const changed = watched.walk({ base: pool.snapshot('mon'), target: pool.snapshot('wed') })
  const found = (await rest(changed.messages)).length
  await watched.idle(t)
  const { totals } = watched.walkers
  t.is(totals.allocated.extents, EXTENTS)
  t.is(totals.allocated.nodesRead, statistics!().nodesRead)
  t.true(totals.delta.extents >= found)
  t.true(totals.allocated.walkMs > 0 && totals.delta.walkMs > 0)
})

test.serial('threads that have died are alive again once they are looked after', async (t) => {
  const watched = await Watched.start(t, 2)
  t.is(watched.walkers.alive, 2)
  await watched.threads[0].terminate()
  await watched.threads[1].terminate()
  while (watched.walkers.alive > 0) await setTimeout(5)
  watched.walkers.revive()
  t.is(watched.walkers.alive, 0, 'not at once')
  while (watched.walkers.alive < 2) {
    await setTimeout(50)
    watched.walkers.revive()
  }
  await setImmediate()
  t.is(watched.threads.length, 4)
})

test.serial('a walk that is left ends in its thread as well', async (t) => {
  const watched = await Watched.start(t, 1)
  const { messages } = watched.walk({ target: (await big).snapshot('big'), maxResults: 10 })
  await messages.next()
  t.is(watched.walkers.active, 1)
  await messages.return?.()
  await watched.idle(t)
  t.deepEqual(await messages.next(), { done: true, value: undefined })
})

test.serial('an abort ends a walk at once, with its reason, whatever it waits for', async (t) => {
  const watched = await Watched.start(t, 1)
  const target = (await big).snapshot('big')
  const reason = new DeltamapperError('DM_DEADLINE_EXCEEDED', 'too late', 'be earlier')
  // Before it has begun.
  await t.throwsAsync(rest(watched.walk({ target }, AbortSignal.abort(reason)).messages), { is: reason })
  t.is(watched.walkers.active, 0)
  // While the first message is waited for, and after some were taken.
  for (const taken of [0, 3]) {
    const controller = new AbortController()
    const { messages } = watched.walk({ target, maxResults: 10 }, controller.signal)
    for (let i = 0; i < taken; i++) t.false((await messages.next()).done)
    const next = taken === 0 ? messages.next() : undefined
    controller.abort(reason)
    await t.throwsAsync(async () => next ?? messages.next(), { is: reason })
    await watched.idle(t)
  }
})

test.serial('what goes wrong in a walk is told with its code and remedy', async (t) => {
  const watched = await Watched.start(t, 1)
  const pool = await sample
  const [mon, wed, gone] = [pool.snapshot('mon'), pool.snapshot('wed'), pool.snapshot('gone')]
  await fails(t, rest(watched.walk({ target: gone }).messages), 'DM_SNAPSHOT_NOT_FOUND', /no thin device 6/)
  await fails(t, rest(watched.walk({ base: gone, target: wed }).messages), 'DM_BASE_LOST')
  await fails(t, rest(watched.walk({ base: wed, target: mon }).messages), 'DM_ORDER_REVERSED', /was taken after/)
  await fails(t, rest(watched.walk({ target: { ...mon, metadataPath: '/nowhere' } }).messages), 'DM_READ_FAILED')
  t.is(watched.walkers.active, 0)
  t.is(watched.threads.length, 1)
})

test.serial('the devices are told before any message, and whoever is told may refuse', async (t) => {
  const watched = await Watched.start(t, 1)
  const pool = await sample
  const { signal } = new AbortController()
  const live = (name: string) => ({ ...pool.snapshot(name), live: true })
  const request = { base: live('mon'), target: live('tue'), maxResults: 5 }
  const events: string[] = []
  const { messages } = watched.walk(request, signal, {
    async check({ base, target }) {
      await setTimeout(30)
      events.push(`${base?.snapshot.handle} ${target.snapshot.handle} ${typeof target.fingerprint.rootChecksum}`)
    }
  })
  await messages.next()
  events.push('message')
  await rest(messages)
  t.deepEqual(events, ['sample/mon sample/tue number', 'message'])

  const refusal = new DeltamapperError('DM_BASE_CHANGED', 'not what it was', 'take a full backup')
  const refused = watched.walk(request, signal, {
    check: async () => Promise.reject(refusal)
  })
  await t.throwsAsync(refused.messages.next(), { is: refusal })
  await watched.idle(t)
})

test.serial('a thread that is killed fails its walks and no others, and the next walk gets a new one', async (t) => {
  const watched = await Watched.start(t, 2)
  const pool = await big
  const walks = Array.from({ length: 4 }, () => watched.walk({ target: pool.snapshot('big'), maxResults: 10 }).messages)
  for (const messages of walks) await messages.next()
  t.is(watched.walkers.active, 4)
  await watched.threads[0].terminate()
  const outcomes = await Promise.allSettled(walks.map(rest))
  const failures = outcomes.filter((outcome) => outcome.status === 'rejected').map(({ reason }) => reason as unknown)
  t.is(failures.length, 2)
  for (const failure of failures) t.true(failure instanceof DeltamapperError && failure.code === 'DM_INTERNAL')
  await watched.idle(t)
  t.is(watched.threads.length, 2)

  // Not at once: the other thread can do the work.
  await setTimeout(1100)
  for (let i = 0; i < 2; i++) {
    t.is((await rest(watched.walk({ target: pool.snapshot('big') }).messages)).length, EXTENTS)
  }
  t.is(watched.threads.length, 3)
})

test.serial('a thread that throws says why', async (t) => {
  const watched = await Watched.start(t, 1)
  const target = (await big).snapshot('big')
  const { messages } = watched.walk({ target, maxResults: 10 })
  await messages.next()
  // Nothing says this to a walker: it dies of it as of any defect.
  watched.threads[0].postMessage(null)
  await new Promise((resolve) => watched.threads[0].once('exit', resolve))
  await fails(t, rest(messages), 'DM_INTERNAL', /null/)
  t.is((await rest(watched.walk({ target }).messages)).length, EXTENTS)
})

test.serial('a thread that died in idleness is not missed', async (t) => {
  const watched = await Watched.start(t, 1)
  await once(watched.threads[0], 'online')
  await watched.threads[0].terminate()
  await setTimeout(50)
  t.is(watched.threads.length, 1, 'no thread is started for nobody')
  t.is((await rest(watched.walk({ target: (await big).snapshot('big') }).messages)).length, EXTENTS)
})

test.serial('closing ends every walk with DM_SHUTTING_DOWN, and leaves no thread', async (t) => {
  const watched = await Watched.start(t, 2)
  const target = (await big).snapshot('big')
  const walks = Array.from({ length: 5 }, () => watched.walk({ target, maxResults: 10 }).messages)
  for (const messages of walks.slice(0, 4)) await messages.next()
  const waiting = walks[4].next()
  const closed = watched.walkers.close()
  await fails(t, waiting, 'DM_SHUTTING_DOWN')
  for (const messages of walks.slice(0, 4)) await fails(t, rest(messages), 'DM_SHUTTING_DOWN', /stopping/)
  await closed
  await watched.walkers.close()
  t.is(watched.walkers.active, 0)
  t.deepEqual(
    watched.threads.map(({ threadId }) => threadId),
    [-1, -1]
  )
  await fails(t, rest(watched.walk({ target }).messages), 'DM_SHUTTING_DOWN')
  t.is(watched.threads.length, 2)
})

test.serial('images can be read around the page cache', async (t) => {
  const pool = await sample
  const walkers = new Walkers(1, { direct: true })
  const alive = setInterval(() => undefined, 1000)
  t.teardown(async () => {
    await walkers.close()
    clearInterval(alive)
  })
  const target = pool.snapshot('wed')
  const { signal } = new AbortController()
  const walk = walkers.stream(thinPlan({ target, startingOffset: 0, maxResults: 0 }), signal)
  const O_DIRECT = 0o40000
  const takesDirect = await open(pool.metadataPath, O_DIRECT).then(
    (file) => file.close().then(() => true),
    () => false
  )
  const answer = rest(walk.messages[Symbol.asyncIterator]())
  if (takesDirect) t.deepEqual(await answer, await pool.extents(undefined, 'wed'))
  else await fails(t, answer, 'DM_READ_FAILED', /EINVAL/)
})
