import { setTimeout as sleep } from 'node:timers/promises'
import test from 'ava'
import { probe, SingleLook } from '../../../src/agent/inventory/probe.ts'
import { DeltamapperError } from '../../../src/errors.ts'

test('an answer, an error and no answer at all: there is always a result', async (t) => {
  t.deepEqual(await probe('it', 1000, async () => 5), { value: 5 })
  t.deepEqual(await probe('it', 1000, async () => undefined), { value: undefined })
  const error = new DeltamapperError('DM_LVM_FAILED', 'LVM said no', 'ask it')
  t.deepEqual(await probe('it', 1000, () => Promise.reject(error)), {
    problem: { code: 'DM_LVM_FAILED', message: 'LVM said no', remedy: 'ask it' }
  })
  t.like((await probe('it', 1000, () => Promise.reject(new TypeError('x is undefined')))).problem, {
    code: 'DM_INTERNAL',
    message: 'x is undefined'
  })
  const never = await probe('the disk', 50, () => new Promise(() => undefined))
  t.like(never.problem, { code: 'DM_CALL_STUCK', message: 'the disk has not answered for 0.05 s' })
})

test('what throws at once is a result as well', async (t) => {
  const thrown = await probe('it', 1000, () => {
    throw new Error('at once')
  })
  t.is(thrown.problem?.message, 'at once')
})

test('a look that is late is not begun again, and its answer serves whoever asks meanwhile', async (t) => {
  let looks = 0
  const look = new SingleLook(async () => {
    looks++
    await sleep(100)
    return looks
  })
  const late = await probe('it', 10, () => look.take())
  t.truthy(late.problem)
  t.deepEqual(await Promise.all([look.take(), look.take()]), [1, 1])
  t.is(await look.take(), 2)
  t.is(looks, 2)
})

test('a look that failed is tried again', async (t) => {
  let looks = 0
  const look = new SingleLook(async () => {
    if (looks++ === 0) throw new Error('not yet')
    return 'now'
  })
  await t.throwsAsync(look.take(), { message: 'not yet' })
  t.is(await look.take(), 'now')
})
