import { once } from 'node:events'
import { join } from 'node:path'
import { Worker } from 'node:worker_threads'

import test from 'ava'
import type { ExecutionContext } from 'ava'

import type { ThinQuestion } from '../../../src/agent/walks/thin-walk.ts'
import type { SeenDevices } from '../../../src/agent/walks/seen-devices.ts'
import type { FromWalker, ToWalker, WalkerData } from '../../../src/agent/walks/walk-messages.ts'
import { DeltamapperError } from '../../../src/errors.ts'
import { testFolder } from '../../support/test-folder.ts'
import { decode, writeBigPool } from '../sample-pool.ts'
import { fromPortable, toPortable } from '../../../src/portable-error.ts'

const folder = testFolder(test)
const big = writeBigPool(join(folder, 'big'), 20_000)

test('an error is the same on the other side of a thread', (t) => {
  const cause = new TypeError('x is undefined')
  for (const error of [
    new DeltamapperError('DM_BASE_LOST', 'what', 'remedy'),
    new DeltamapperError('DM_INTERNAL', 'what', 'remedy', { cause })
  ]) {
    const received = fromPortable(structuredClone(toPortable(error)))
    t.true(received instanceof DeltamapperError)
    t.is(received.line, error.line)
    t.is(received.status, error.status)
    // The stack that leads to the defect, for the log.
    t.is(received.stack, error.cause === undefined ? error.stack : cause.stack)
  }
})

/** A walker thread without its keeper. */
class Thread {
  // On a machine with much to do a turn would be overdue before its message is made, and the next walk begin beside it.
  readonly worker = new Worker(new URL('../../../src/agent/walker-thread.ts', import.meta.url), {
    workerData: { reads: 'auto', overdueMs: 1e9 } satisfies WalkerData
  })
  readonly said: FromWalker[] = []

  constructor(t: ExecutionContext) {
    this.worker.on('message', (message: FromWalker) => {
      if (message.kind !== 'ready') this.said.push(message)
    })
    t.teardown(() => this.worker.terminate())
  }

  say(message: ToWalker): void {
    this.worker.postMessage(message)
  }

  /** Waits until it has said this so often, and gives back the last time. */
  async hears(kind: FromWalker['kind'], id: number, times = 1): Promise<FromWalker> {
    for (;;) {
      const found = this.said.filter((each) => each.kind === kind && each.id === id)
      if (found.length >= times) return found[found.length - 1]
      await once(this.worker, 'message')
    }
  }

  start(id: number, request: ThinQuestion, client = ''): void {
    this.say({ kind: 'start', id, task: { target: 'thin', request }, reading: { direct: false }, messages: 0, client })
  }

  /** Says that nothing is known of the walk's devices, once it asks, and lets it send so many messages. */
  allow(id: number, messages: number): void {
    void this.hears('ask', id).then((asked) => {
      this.say({ kind: 'answer', id, ask: asked.kind === 'ask' ? asked.ask : NaN, value: undefined })
    })
    this.say({ kind: 'credit', id, messages })
  }

  count(kind: FromWalker['kind'], id: number): number {
    return this.said.filter((each) => each.kind === kind && each.id === id).length
  }
}

const quiet = () => new Promise((resolve) => setTimeout(resolve, 60))

async function request(maxResults: number) {
  const target = { ...(await big).snapshot('big'), live: true }
  return { target, startingOffset: 0, maxResults }
}

test('a walk says what it is about, then a message for each credit, then that it has ended', async (t) => {
  const thread = new Thread(t)
  thread.start(7, await request(1000))
  const seen = await thread.hears('ask', 7)
  t.is(seen.kind === 'ask' && seen.aside, 'seen')
  t.is((seen.kind === 'ask' && (seen.value as SeenDevices).target.snapshot.handle) || '', 'sample/big')
  await quiet()
  t.is(thread.said.length, 1, 'no message without credit')

  thread.say({ kind: 'credit', id: 7, messages: 1 })
  await quiet()
  t.is(thread.said.length, 1, 'nor before it is known what is known of the devices')
  thread.allow(7, 2)
  await thread.hears('message', 7, 3)
  await quiet()
  t.is(thread.count('message', 7), 3)
  thread.say({ kind: 'credit', id: 7, messages: 1 })
  thread.say({ kind: 'credit', id: 7, messages: 1 })
  await thread.hears('message', 7, 5)
  await quiet()
  t.is(thread.count('message', 7), 5)
  t.is(thread.count('end', 7), 0)

  thread.say({ kind: 'credit', id: 7, messages: 1000 })
  const end = await thread.hears('end', 7)
  t.is(thread.said.at(-1), end)
  t.deepEqual(
    thread.said.flatMap((each) => (each.kind === 'message' ? decode(each.message).extents.length : [])),
    new Array<number>(20).fill(1000)
  )
  t.is(end.kind === 'end' && end.statistics.extents, 20_000)
})

test('a client with many walks leaves their share to others', async (t) => {
  const thread = new Thread(t)
  const { target } = await request(100)
  const asked = { target: { ...target, live: false }, startingOffset: 0, maxResults: 100 }
  // All may send everything at once: who comes first is for the thread to decide, not for who takes the messages.
  const modest = 1000
  for (let id = 0; id < 150; id++) {
    thread.start(id, asked, 'greedy')
    thread.say({ kind: 'credit', id, messages: 1e6 })
  }
  await thread.hears('message', 149)
  thread.start(modest, asked, 'modest')
  thread.say({ kind: 'credit', id: modest, messages: 1e6 })
  await thread.hears('end', modest)
  const messages = thread.said.filter(({ kind }) => kind === 'message')
  const [first, last] = [
    messages.findIndex(({ id }) => id === modest),
    messages.findLastIndex(({ id }) => id === modest)
  ]
  const own = thread.count('message', modest)
  t.is(own, 200)
  const others = last - first + 1 - own
  // Were all walks alike, it would be 150 times as many.
  t.true(others < 5 * own, `${others} messages of others, ${own} of its own`)
})

test('a walk that is cancelled ends with the reason, whenever that is', async (t) => {
  const thread = new Thread(t)
  const reason = toPortable(new DeltamapperError('DM_DEADLINE_EXCEEDED', 'too late', 'be earlier'))
  // In the same breath as its start, while it waits for credit, and on its way.
  thread.start(1, await request(10))
  thread.say({ kind: 'cancel', id: 1, error: reason })
  thread.start(2, await request(10))
  await thread.hears('ask', 2)
  thread.say({ kind: 'cancel', id: 2, error: reason })
  thread.start(3, await request(10))
  thread.allow(3, 1000)
  await thread.hears('message', 3)
  thread.say({ kind: 'cancel', id: 3, error: reason })
  for (const id of [1, 2, 3]) {
    const error = await thread.hears('error', id)
    t.is(error.kind === 'error' && error.error.code, 'DM_DEADLINE_EXCEEDED')
    t.is(error.kind === 'error' && error.error.message, 'too late')
    t.is(thread.count('end', id), 0)
  }
  t.true(thread.count('message', 3) < 2000)
})

test('what concerns a walk that has ended, or never was, is ignored', async (t) => {
  const thread = new Thread(t)
  const reason = toPortable(new DeltamapperError('DM_CANCELLED', 'gone', 'nothing'))
  thread.say({ kind: 'credit', id: 99, messages: 1 })
  thread.say({ kind: 'cancel', id: 99, error: reason })
  thread.start(1, await request(0))
  thread.allow(1, 1000)
  await thread.hears('end', 1)
  const { length } = thread.said
  thread.say({ kind: 'credit', id: 1, messages: 1 })
  thread.say({ kind: 'cancel', id: 1, error: reason })
  await quiet()
  t.is(thread.said.length, length)
})

test('whatever is thrown in a walk becomes its error, and the thread goes on', async (t) => {
  const thread = new Thread(t)
  const good = await request(0)
  thread.start(1, { ...good, target: { ...good.target, metadataPath: '/nowhere' } })
  // A defect: no such request is ever made.
  thread.start(2, { ...good, target: undefined as never })
  thread.start(3, good)
  thread.allow(3, 1000)
  const [one, two] = [await thread.hears('error', 1), await thread.hears('error', 2)]
  t.is(one.kind === 'error' && one.error.code, 'DM_READ_FAILED')
  t.is(two.kind === 'error' && two.error.code, 'DM_INTERNAL')
  t.regex((two.kind === 'error' && two.error.stack) || '', /TypeError.*\n\s+at /)
  await thread.hears('end', 3)
})
