/** Lives of owned pools in which the product was wrong once, made small. */
import test from 'ava'
import { Catalogs, live } from './run.ts'
import type { Action, Life } from './world/life.ts'

type Told = readonly (readonly [kind: string, a: number, b: number, c: number, d: number])[]

function lifeOf(seed: number, isCalm: boolean, told: Told): Life {
  const actions = told.map(([kind, ...numbers]): Action => ({ kind, numbers }))
  return { world: 'owned', seed, isCalm, actions }
}

const small = {
  'a volume that is renamed while all devices are looked at is suspended when a snapshot of it is taken': lifeOf(
    2,
    false,
    [
      ['createVolume', 0, 1, 0, 0],
      ['quiet', 0, 1, 0, 0],
      ['createSnapshot', 0, 1, 0, 0],
      ['foreignRename', 0, 1, 0, 0]
    ]
  ),
  'a volume of a pool that is not active is not grown, and nothing of it is begun': lifeOf(17, true, [
    ['createVolume', 1120188926, 4014455892, 447291601, 983605464],
    ['createVolume', 261534893, 631708663, 3111469068, 2175797536],
    ['reactivate', 2521412767, 166179560, 3842624490, 792374841],
    ['grow', 2812521621, 6801990, 1778543214, 2829374345]
  ]),
  'a second device of a volume that has another size is named': lifeOf(112, false, [
    ['createVolume', 1618650450, 2017662324, 451209641, 1930637419],
    ['foreignDevice', 4186892686, 629755815, 1361666131, 1746422402]
  ])
}

for (const [title, life] of Object.entries(small)) {
  test(title, async (t) => {
    using catalogs = new Catalogs()
    t.is((await live(life, catalogs.next())).violation, undefined)
  })
}
