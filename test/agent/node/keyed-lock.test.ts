import test from 'ava'
import { KeyedLock } from '../../../src/agent/node/keyed-lock.ts'

/** Work that ends when it is told to. */
function gate() {
  const { promise, resolve, reject } = Promise.withResolvers<void>()
  return { work: () => promise, open: resolve, fail: reject }
}

test('one after the other in a pool, in the order in which they came', async (t) => {
  const turns = new KeyedLock()
  const gates = [gate(), gate(), gate()]
  const begun: number[] = []
  const all = gates.map(({ work }, index) =>
    turns.take('tank', () => {
      begun.push(index)
      return work()
    })
  )
  // Opened in the other order: the first keeps the others waiting all the same.
  gates[2].open()
  gates[1].open()
  await turns.take('other', () => Promise.resolve())
  t.deepEqual(begun, [0])
  gates[0].open()
  await Promise.all(all)
  t.deepEqual(begun, [0, 1, 2])
})

test('what fails, fails for whoever asked for it, and for nobody else', async (t) => {
  const turns = new KeyedLock()
  const first = gate()
  const [failing, next] = [turns.take('tank', first.work), turns.take('tank', () => Promise.resolve('done'))]
  first.fail(new Error('no'))
  await t.throwsAsync(failing, { message: 'no' })
  t.is(await next, 'done')
})

test('when it closes, what is under way ends, and what waits is refused', async (t) => {
  const turns = new KeyedLock()
  const first = gate()
  const running = turns.take('tank', first.work)
  const waiting = turns.take('tank', () => Promise.resolve('too late'))
  // Only then has the first one begun.
  await turns.take('other', () => Promise.resolve())
  const refused = t.throwsAsync(waiting, { code: 'DM_SHUTTING_DOWN' })
  let closed = false
  const closing = turns.close().then(() => (closed = true))
  await t.throwsAsync(
    turns.take('other', () => Promise.resolve()),
    { code: 'DM_SHUTTING_DOWN' }
  )
  t.false(closed)
  first.open()
  await Promise.all([closing, running, refused])
  t.true(closed)
})
