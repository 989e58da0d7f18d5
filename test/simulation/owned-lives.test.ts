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
  ]),
  'no snapshot is kept of what others have put in the place of its origin while it was taken': lifeOf(20020, false, [
    ['check', 1924855145, 1636285714, 2179050590, 1450375553],
    ['foreignReplace', 2436995042, 1861151887, 43945132, 3487802862],
    ['foreignReplace', 3042392071, 3120285670, 3675245494, 2620238143],
    ['startAgent', 2197559464, 684855886, 3898708984, 2669782227],
    ['createVolume', 1535261349, 2830101298, 1934534736, 3845215916],
    ['deactivate', 201411751, 3554532788, 2592980437, 1124250973],
    ['grow', 1533190854, 1471556899, 2094833115, 1940923402],
    ['createVolume', 40940190, 1586414714, 2344953666, 1878336738],
    ['activate', 3975438394, 2054056527, 4256038405, 3102655298],
    ['createSnapshot', 3237997989, 3112000603, 26534060, 1327783630],
    ['quiet', 4004609059, 74620970, 2881062314, 4177180522],
    ['createSnapshot', 2428375235, 3307863958, 3677153540, 3328592947],
    ['startAgent', 2707461096, 201095977, 3698847671, 3785322442],
    ['foreignReplace', 1895979519, 2629100523, 3765616289, 2549927100],
    ['createSnapshot', 658041738, 3683635127, 1140377715, 2782325145]
  ])
}

for (const [title, life] of Object.entries(small)) {
  test(title, async (t) => {
    using catalogs = new Catalogs()
    t.is((await live(life, catalogs.next())).violation, undefined)
  })
}
