import { setImmediate as turn } from 'node:timers/promises'
import test from 'ava'
import fc from 'fast-check'
import { Validity } from '../../src/nbd/validity.ts'

test('every caller gets a look that began after its call, and callers share them', async (t) => {
  await fc.assert(
    fc.asyncProperty(fc.array(fc.nat(3), { minLength: 1, maxLength: 40 }), async (pauses) => {
      let looks = 0
      let begun = 0
      const validity = new Validity(async () => {
        begun = ++looks
        await turn()
        await turn()
      })
      const calls: Promise<void>[] = []
      for (const pause of pauses) {
        const before = looks
        calls.push(validity.confirm().then(() => void t.true(begun > before)))
        for (let i = 0; i < pause; i++) await turn()
      }
      await Promise.all(calls)
      t.true(looks <= pauses.length)
    }),
    { numRuns: 100 }
  )
})

test('a change that comes after a look has begun is found by whoever called after it', async (t) => {
  let changed = false
  const looking = Promise.withResolvers<void>()
  const validity = new Validity(async () => {
    const seen = changed
    await looking.promise
    if (seen) throw new Error('changed')
  })
  const first = validity.confirm()
  changed = true
  const second = validity.confirm()
  looking.resolve()
  await t.notThrowsAsync(first)
  await t.throwsAsync(second, { message: 'changed' })
})

test('what was found to be wrong stays wrong', async (t) => {
  let fails = true
  const validity = new Validity(async () => {
    if (fails) throw new Error('changed')
  })
  await t.throwsAsync(validity.confirm(), { message: 'changed' })
  fails = false
  await t.throwsAsync(validity.confirm(), { message: 'changed' })
  t.is((validity.failure as Error).message, 'changed')
})
