import { setImmediate as turn } from 'node:timers/promises'
import test from 'ava'
import { StatusGate } from '../../../../src/agent/era/device/status-gate.ts'

test('a change waits for questions that are under way, and none begin before it is done', async (t) => {
  const quiet = new StatusGate()
  const order: string[] = []
  const [answer, change] = [Promise.withResolvers<string>(), Promise.withResolvers<string>()]
  const asked = quiet.ask('a', () => answer.promise)
  const kept = quiet.keep('a', async () => {
    order.push('begun')
    return change.promise
  })
  await turn()
  t.deepEqual(order, [], 'somebody is asking')
  t.is(await quiet.ask('a', () => Promise.resolve('asked')), undefined, 'and nobody else may')
  t.is(await quiet.ask('b', () => Promise.resolve('asked')), 'asked', 'of another, anybody may')
  answer.resolve('answer')
  t.is(await asked, 'answer')
  await turn()
  t.deepEqual(order, ['begun'])
  t.is(await quiet.ask('a', () => Promise.resolve('asked')), undefined)
  change.resolve('changed')
  t.is(await kept, 'changed')
  t.is(await quiet.ask('a', () => Promise.resolve('asked')), 'asked')
})

test('what fails is over all the same', async (t) => {
  const quiet = new StatusGate()
  const failing = () => Promise.reject(new Error('no'))
  await t.throwsAsync(quiet.ask('a', failing), { message: 'no' })
  await t.throwsAsync(quiet.keep('a', failing), { message: 'no' })
  t.is(await quiet.ask('a', () => Promise.resolve(1)), 1)
})
