import test from 'ava'
import { CallTurns } from '../../src/grpc/call-turns.ts'

const never = new AbortController().signal

/** Takes turns, and lists those that began. */
function taking(turns: CallTurns, begun: string[]) {
  return async (client: string, name: string, signal = never) => {
    await turns.take(client, signal)
    begun.push(name)
  }
}

test('of many calls of one client, another client’s waits for one only', async (t) => {
  const begun: string[] = []
  const take = taking(new CallTurns(), begun)
  const flood = Array.from({ length: 200 }, (_, i) => take('flood', `flood ${i}`))
  await Promise.all([...flood, take('other', 'other'), take('third', 'third')])
  t.deepEqual(begun.slice(0, 5), ['flood 0', 'flood 1', 'other', 'third', 'flood 2'])
  t.is(begun.length, 202)
})

test('one call begins in each turn of the event loop, and the first at once', async (t) => {
  const begun: string[] = []
  const take = taking(new CallTurns(), begun)
  void take('one', 'a')
  void take('one', 'b')
  void take('one', 'c')
  await Promise.resolve()
  t.deepEqual(begun, ['a'])
  for (const count of [2, 3]) {
    await new Promise((resolve) => setImmediate(resolve))
    t.is(begun.length, count)
  }
  await new Promise((resolve) => setImmediate(resolve))
  await new Promise((resolve) => setImmediate(resolve))
  await take('one', 'd')
  t.is(begun.length, 4, 'and when nobody waits any more, the next is a first again')
})

test('a call that is given up while it waits never begins, and holds up nobody', async (t) => {
  const begun: string[] = []
  const take = taking(new CallTurns(), begun)
  const leaving = new AbortController()
  const [, gone, other] = [take('one', 'first'), take('two', 'gone', leaving.signal), take('three', 'other')]
  leaving.abort(new Error('gone'))
  await t.throwsAsync(gone, { message: 'gone' })
  await other
  t.deepEqual(begun, ['first', 'other'])
  await t.throwsAsync(take('two', 'gone', leaving.signal), { message: 'gone' })
})
