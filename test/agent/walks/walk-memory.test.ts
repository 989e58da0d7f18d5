import test from 'ava'
import { WalkMemory } from '../../../src/agent/walks/walk-memory.ts'

test('walks get less as more of them are under way, and all of it is there again afterwards', (t) => {
  const memory = new WalkMemory(800, 'cow.memoryMebibytes')
  for (let round = 0; round < 2; round++) {
    const over = new AbortController()
    const { signal } = over
    t.is(memory.take(10, 50, signal), 50)
    t.is(memory.take(10, 1000, signal), 93)
    let taken = 143
    const refused = t.throws(() => {
      for (;;) {
        const bytes = memory.take(10, 1000, signal)
        t.true(bytes >= 10)
        taken += bytes
      }
    })
    t.like(refused, { code: 'DM_TOO_MANY_STREAMS' })
    t.true(taken > 790 && taken <= 800, String(taken))
    over.abort(new Error('over'))
    t.throws(() => memory.take(10, 50, signal), { message: 'over' })
  }
})
