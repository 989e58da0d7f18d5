import { setTimeout as sleep } from 'node:timers/promises'
import test from 'ava'
import { CallBudget } from '../../src/grpc/call-budget.ts'

test('what has been answered costs nothing, what was cancelled is made up for with time', async (t) => {
  const budget = new CallBudget({ calls: 10, perSecond: 1000 })
  t.true(budget.isWhole)
  for (let i = 0; i < 1000; i++) {
    t.true(budget.take())
    budget.giveBack()
  }
  t.is(budget.left, 10)

  const slow = new CallBudget({ calls: 10, perSecond: 0.001 })
  for (let i = 0; i < 10; i++) t.true(slow.take())
  t.false(slow.take())
  t.true(slow.msUntil(5) > 4_000_000)
  slow.giveBack()
  t.true(slow.take())

  while (budget.take());
  t.true(budget.msUntil(10) > 0)
  // A timer may be early by a fraction of a millisecond.
  while (!budget.isWhole) await sleep(1)
})
