import test from 'ava'
import fc from 'fast-check'
import { type Turn, WalkTurns } from '../../../src/agent/walks/walk-turns.ts'

const never = new AbortController().signal
/** Long enough for no turn to be overdue. */
const patient = 1e9

/** Who has a turn, in the order in which they got it. */
class Line {
  readonly turns: WalkTurns
  readonly got: string[] = []
  readonly under: [client: string, turn: Turn][] = []

  constructor(atOnce: number, overdueMs = patient) {
    this.turns = new WalkTurns({ atOnce, overdueMs })
  }

  async ask(client: string, signal = never): Promise<void> {
    const turn = this.turns.take(client, signal)
    const take = (given: Turn) => {
      this.got.push(client)
      this.under.push([client, given])
    }
    if (turn instanceof Promise) void turn.then(take)
    else take(turn)
    await settled()
  }

  async end(index = 0): Promise<void> {
    this.under.splice(index, 1)[0]?.[1].end()
    await settled()
  }

  get now(): string {
    return this.under
      .map(([client]) => client)
      .sort()
      .join('')
  }
}

/** Whatever was granted has been taken. */
async function settled(): Promise<void> {
  await new Promise((resolve) => setImmediate(resolve))
}

test('a client alone has all turns; more of its walks wait, the longest waiting first', async (t) => {
  const line = new Line(3)
  for (let i = 0; i < 5; i++) await line.ask('a')
  t.is(line.now, 'aaa')
  await line.end()
  t.is(line.got.length, 4)
  await line.end()
  await line.end()
  t.is(line.got.length, 5)
})

test('a client that comes later gets a turn at once, whatever others have and want', async (t) => {
  const line = new Line(3)
  for (let i = 0; i < 100; i++) await line.ask('a')
  await line.ask('b')
  t.is(line.now, 'aaab')
  await line.ask('c')
  t.is(line.now, 'aaabc')
})

test('clients with many walks have equal shares', async (t) => {
  const line = new Line(4)
  for (let i = 0; i < 40; i++) await line.ask('a')
  for (let i = 0; i < 40; i++) await line.ask('b')
  for (let i = 0; i < 6; i++) await line.end()
  t.is(line.now, 'aabb')
  line.got.length = 0
  for (let i = 0; i < 20; i++) await line.end()
  t.is(line.got.filter((client) => client === 'a').length, 10)
})

test('at any time: no turn is left unused while somebody may have it, nobody without one waits, and everyone comes to an end', async (t) => {
  const steps = fc.array(fc.oneof(fc.constantFrom('a', 'b', 'c', 'd'), fc.nat({ max: 20 })), { maxLength: 60 })
  await fc.assert(
    fc.asyncProperty(fc.integer({ min: 1, max: 5 }), steps, async (atOnce, ask) => {
      const line = new Line(atOnce)
      let asked = 0
      for (const step of ask) {
        if (typeof step === 'number') await line.end(step % (line.under.length + 1))
        else {
          asked++
          await line.ask(step)
          t.true(line.now.includes(step))
        }
        t.true(line.under.length <= atOnce + 3)
        t.true(line.got.length === asked || line.under.length > 0)
      }
      while (line.under.length > 0) await line.end()
      t.is(line.got.length, asked)
    }),
    { numRuns: 50 }
  )
})

test('whoever no longer wants to does not wait', async (t) => {
  const line = new Line(1)
  const controller = new AbortController()
  await line.ask('a')
  await line.ask('a', controller.signal)
  await line.ask('a')
  controller.abort()
  await settled()
  // It was given a turn that is none.
  t.is(line.got.length, 2)
  await line.end(1)
  t.is(line.got.length, 2, 'which frees none')
  await line.end()
  t.is(line.got.length, 3)
  await line.ask('a', controller.signal)
  t.is(line.got.length, 4)
})

test('a turn that takes long keeps nobody from theirs', async (t) => {
  const line = new Line(2, 20)
  await line.ask('a')
  await line.ask('a')
  await line.ask('a')
  await line.ask('a')
  // Two of them wait, unless this took so long that the first two are overdue already.
  while (line.got.length < 4) await new Promise((resolve) => setTimeout(resolve, 5))
  t.is(line.now, 'aaaa')
})
