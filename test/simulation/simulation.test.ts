/**
 * A slice of lives: what fails is told by its seed. More of them: `npm run simulate`, `npm run soak -- --section simulation`.
 */
import test from 'ava'
import { Catalogs, live, liveOn } from './run.ts'
import type { Life } from './world/life.ts'

const FIRST_SEED = 421

for (const [world, lives, outcome] of [
  ['thin', 300, 'well'],
  ['leases', 1500, 'held'],
  ['era', 40, 'well'],
  ['owned', 60, 'well']
] as const) {
  test(`${lives} lives of the world ${world}`, async (t) => {
    // (On a machine with much else to do.)
    t.timeout(1_200_000)
    using catalogs = new Catalogs()
    let answered = 0
    for (let seed = FIRST_SEED; seed < FIRST_SEED + lives; seed += 20) {
      const { failed, outcomes } = await liveOn(world, seed, 20, catalogs)
      t.is(
        failed?.result.violation,
        undefined,
        `npm run simulate -- --world ${world} --lives 1 --seed ${failed?.life.seed}`
      )
      answered += outcomes.get(outcome) ?? 0
    }
    // A world in which nothing is answered shows nothing.
    t.true(answered > lives)
  })
}

test('a life is the same each time', async (t) => {
  // (A catalog in which a life has been is another world for the same life.)
  using catalogs = new Catalogs()
  using others = new Catalogs()
  for (const world of ['thin', 'leases', 'era', 'owned'] as const) {
    const [first, second] = [await liveOn(world, 77, 5, catalogs), await liveOn(world, 77, 5, others)]
    t.deepEqual(first, second)
  }
})

test('a pool that is deactivated and activated while it is looked up is asked again about, not refused', async (t) => {
  const numbers = (a: number, b: number, c: number, d: number) => [a, b, c, d] as const
  const life: Life = {
    ...{ world: 'thin', seed: 1140, isCalm: true },
    actions: [
      { kind: 'write', numbers: numbers(303410900, 1917307695, 1412672748, 594310104) },
      { kind: 'snapshot', numbers: numbers(1939121441, 2361653623, 1497234965, 4126613901) },
      { kind: 'snapshot', numbers: numbers(1997437227, 3139357777, 84998134, 949660829) },
      { kind: 'backup', numbers: numbers(2199457646, 4083600610, 2654520820, 2890239679) },
      { kind: 'reload', numbers: numbers(3736202629, 3470294090, 3731702158, 213425000) },
      { kind: 'backup', numbers: numbers(2121649973, 3952519979, 2227872711, 1425999141) },
      { kind: 'reload', numbers: numbers(3736202629, 3470294090, 3731702158, 213425000) }
    ]
  }
  using catalogs = new Catalogs()
  t.is((await live(life, catalogs.next())).violation, undefined)
})
