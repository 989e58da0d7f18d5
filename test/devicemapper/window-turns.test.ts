import { setImmediate } from 'node:timers/promises'
import test from 'ava'
import { WindowTurns } from '../../src/devicemapper/window-turns.ts'

/** Walks that take turns, each until it has had as many as it wants. */
async function run(walks: Record<string, { turns: number; bytesEach: number }>): Promise<string> {
  const turns = new WindowTurns()
  let order = ''
  const walk = async (name: string, { turns: wanted, bytesEach }: { turns: number; bytesEach: number }) => {
    for (let turn = 1; turn <= wanted; turn++) {
      await turns.take(turn * bytesEach)
      order += name
    }
  }
  await Promise.all(Object.entries(walks).map(([name, wants]) => walk(name, wants)))
  return order
}

test('a walk alone has every turn; two that are alike have them by turns', async (t) => {
  t.is(await run({ a: { turns: 5, bytesEach: 128 } }), 'aaaaa')
  const both = await run({ a: { turns: 20, bytesEach: 128 }, b: { turns: 20, bytesEach: 128 } })
  for (let end = 2; end <= both.length; end += 2) {
    const apart = Math.abs([...both.slice(0, end)].filter((name) => name === 'a').length - end / 2)
    t.true(apart <= 2, both)
  }
})

test('a short answer is there long before long ones that began earlier, and does not wait for each of them', async (t) => {
  const long = Object.fromEntries([...'abcdefghijklmnop'].map((name) => [name, { turns: 50, bytesEach: 128 }]))
  const order = await run({ ...long, z: { turns: 10, bytesEach: 1 } })
  // Of any two turns one is the short one's, once the long ones that came before it have had theirs.
  t.true(order.lastIndexOf('z') <= 16 + 2 * 10 + 2, `${order.lastIndexOf('z')} of ${order.length}`)
})

test('short answers that follow each other do not stop a long one', async (t) => {
  const turns = new WindowTurns()
  let long = 0
  let isOver = false
  const shorts = Array.from({ length: 8 }, async () => {
    while (!isOver) await (turns.take(1) ?? setImmediate())
  })
  let rounds = 0
  const count = async () => {
    while (!isOver) {
      rounds++
      await setImmediate()
    }
  }
  const counting = count()
  for (; long < 20; long++) await turns.take(100_000)
  isOver = true
  await Promise.all([...shorts, counting])
  // Each second turn goes to whoever has waited longest: of nine, it is among them every eighteenth time.
  t.true(rounds <= 20 * 2 * 9 + 40, `${rounds} rounds of the event loop for 20 turns`)
})
