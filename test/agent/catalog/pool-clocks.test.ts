/** How it shows that a pool was restored to an earlier state, and what is refused from then on. */
import { join } from 'node:path'
import test from 'ava'
import { openDatabase } from '../../../src/agent/catalog/database.ts'
import {
  checkSinceWentBack,
  type PoolClock,
  poolWentBack,
  sawPoolClock
} from '../../../src/agent/catalog/pool-clocks.ts'
import { howWentBack, packDevices } from '../../../src/devicemapper/thin/base-record/pool-moment.ts'
import { DeltamapperError } from '../../../src/errors.ts'
import { testFolder } from './examples.ts'

type Device = [id: number, creationTime: number, transactionId?: bigint]

function clock(time: number, devices: Device[], transactionId = 0n): PoolClock {
  const listed = devices.map(([id, creationTime, created = 0n]) => ({ id, creationTime, transactionId: created }))
  return { pool: 'pool', time, transactionId, devices: packDevices(listed) }
}

const before = clock(
  5,
  [
    [0, 0],
    [3, 2],
    [7, 5, 2n]
  ],
  3n
)

/** What happens to a pool that goes on. */
const wentOn: [what: string, now: PoolClock][] = [
  ['nothing', before],
  [
    'a snapshot was taken',
    clock(
      6,
      [
        [0, 0],
        [3, 2],
        [7, 5, 2n],
        [8, 6, 3n]
      ],
      4n
    )
  ],
  [
    'a volume was made, which does not move the clock',
    clock(
      5,
      [
        [0, 0],
        [1, 5, 3n],
        [3, 2],
        [7, 5, 2n]
      ],
      4n
    )
  ],
  ['snapshots were removed', clock(5, [[0, 0]], 5n)],
  [
    'an id was given out again',
    clock(
      6,
      [
        [0, 0],
        [3, 6, 3n],
        [7, 5, 2n]
      ],
      4n
    )
  ],
  [
    'everything was removed, and much made',
    clock(
      90,
      [
        [1, 80, 9n],
        [2, 90, 10n]
      ],
      11n
    )
  ]
]
for (const [what, now] of wentOn) {
  test(`a pool that went on: ${what}`, (t) => {
    t.is(howWentBack(before, now), undefined)
  })
}

/** What happens to one that was put back, or made anew. */
const wentBack: [what: string, now: PoolClock, says: RegExp][] = [
  [
    'its clock is behind',
    clock(
      4,
      [
        [0, 0],
        [3, 2]
      ],
      3n
    ),
    /clock was 5 before, and is 4/
  ],
  [
    'its transaction is behind',
    clock(
      5,
      [
        [0, 0],
        [3, 2],
        [7, 5, 2n]
      ],
      2n
    ),
    /transaction id was 3 before, and is 2/
  ],
  [
    'a device is back that was removed',
    clock(
      9,
      [
        [0, 0],
        [2, 1],
        [3, 2]
      ],
      9n
    ),
    /thin device 2 is of time 1/
  ],
  [
    'an id is of another time, before',
    clock(
      9,
      [
        [0, 0],
        [3, 3, 9n]
      ],
      9n
    ),
    /thin device 3 is of time 3/
  ],
  [
    'a new device is of an old transaction',
    clock(
      9,
      [
        [0, 0],
        [9, 6, 2n]
      ],
      9n
    ),
    /thin device 9 is of time 6 and transaction 2/
  ],
  [
    'a device beyond the last known one',
    clock(
      5,
      [
        [0, 0],
        [99, 4, 9n]
      ],
      9n
    ),
    /thin device 99/
  ]
]
for (const [what, now, says] of wentBack) {
  test(`a pool that went back: ${what}`, (t) => {
    t.regex(howWentBack(before, now) ?? '', says)
  })
}

test('of too many devices only the clock is kept', (t) => {
  const many = clock(
    5,
    Array.from({ length: 70_000 }, (_, id): Device => [id, 1])
  )
  t.is(many.devices.length, 0)
  t.is(howWentBack(many, clock(6, [[1, 1]])), undefined)
  t.regex(howWentBack(many, clock(4, [[1, 1]])) ?? '', /clock/)
})

test('a pool that went back is remembered as such, and each pool for itself', (t) => {
  const database = openDatabase(join(testFolder(t), 'catalog'))
  t.teardown(() => database.close())
  t.is(sawPoolClock(database, before, 1000), undefined)
  t.is(sawPoolClock(database, before, 2000), undefined)
  const back = sawPoolClock(database, clock(4, [[0, 0]], 3n), 3000)
  t.is(back?.at, 3000)
  t.deepEqual(sawPoolClock(database, clock(8, [[0, 0]], 3n), 4000), back)
  t.deepEqual(poolWentBack(database, 'pool'), back)
  t.is(poolWentBack(database, 'other'), undefined)
  t.is(sawPoolClock(database, { ...clock(1, []), pool: 'other' }, 5000), undefined)
  // A wall clock that was put back makes no base of before one of after.
  t.true(sawPoolClock(database, clock(7, [[0, 0]], 3n), 500)!.at >= 4000)
})

test('what was not served for the first time since then is no base', (t) => {
  const at = { at: 1000, how: 'its clock went back' }
  t.notThrows(() => checkSinceWentBack('vg/s', [], undefined))
  t.notThrows(() => checkSinceWentBack('vg/s', [{ firstServedAt: 1001 }], at))
  for (const recorded of [[], [1000], [999], [1001, 5]]) {
    const records = recorded.map((firstServedAt) => ({ firstServedAt }))
    const error = t.throws(() => checkSinceWentBack('vg/s', records, at), { instanceOf: DeltamapperError })
    t.is(error.code, 'DM_POOL_WENT_BACK')
  }
})
