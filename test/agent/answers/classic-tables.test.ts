import test from 'ava'
import { type LookedBelow, rightBelow } from '../../../src/agent/answers/classic-tables.ts'
import type { TablesBelow } from '../../../src/agent/node/classic-devices.ts'

const table = (params: string) => [{ startSector: 0, lengthSectors: 8, targetType: 'linear', params }]
const tables = (origin: string, store = 'store'): TablesBelow => ({ origin: table(origin), store: table(store) })

/** A look at a group of this state, whose origin has this table; unlike LVM's where that says so. */
function looked(state: number, origin: string, unlike?: 'unlike' | 'leaving'): LookedBelow {
  return {
    ...{ handle: 'vg/s', tables: tables(origin), sequenceNumber: BigInt(state) },
    unlike: unlike ? [{ below: 'origin', why: `it has ${origin}`, isLeaving: unlike === 'leaving' }] : []
  }
}

/** What so many looks one after the other come to: the table that is right, or a code. */
async function outcome(looks: readonly LookedBelow[], options: Parameters<typeof rightBelow>[2] = {}) {
  const [first, ...further] = looks
  const again = async () => [further.shift() ?? first]
  try {
    const [found] = await rightBelow([first], again, { pauseMs: 0, ...options })
    return found.tables.origin[0].params
  } catch (error) {
    return (error as { code?: string }).code
  }
}

test("LVM's own changes, before an answer", async (t) => {
  t.is(await outcome([looked(1, 'old')]), 'old')
  // Its metadata were read before the commit, the table after it.
  t.is(await outcome([looked(1, 'new', 'unlike'), looked(2, 'new')]), 'new')
  // The other way round: the device is suspended, with the new table loaded.
  t.is(await outcome([looked(2, 'old', 'leaving'), looked(2, 'new')]), 'new')
  t.is(await outcome([looked(2, 'old', 'leaving'), looked(2, 'old', 'leaving'), looked(2, 'new')]), 'new')
  // It takes its time: nothing is refused for good.
  const slow = looked(2, 'old', 'leaving')
  t.is(await outcome([slow, slow, slow]), 'DM_SNAPSHOT_CHANGED')
  // Two changes between two looks: nobody knows what the first table was.
  t.is(await outcome([looked(1, 'first', 'unlike'), looked(3, 'second')]), 'DM_SNAPSHOT_CHANGED')
})

test("a table that is none of LVM's is refused, also where it is gone at the next look", async (t) => {
  t.is(await outcome([looked(1, 'zero', 'unlike'), looked(1, 'own')]), 'DM_COW_DETACHED')
  t.is(await outcome([looked(1, 'zero', 'unlike'), looked(1, 'zero', 'unlike'), looked(1, 'own')]), 'DM_COW_DETACHED')
  t.is(
    await outcome([looked(1, 'zero', 'unlike'), looked(1, 'zero', 'unlike'), looked(1, 'zero', 'unlike')]),
    'DM_COW_DETACHED'
  )
})

test("in the middle of an answer, only the table of the last look may be LVM's no more", async (t) => {
  const good = [looked(1, 'own')]
  t.is(await outcome([looked(2, 'own', 'unlike'), looked(2, 'new')], { good }), 'new')
  t.is(await outcome([looked(1, 'zero', 'unlike'), looked(1, 'own')], { good }), 'DM_COW_DETACHED')
  t.is(await outcome([looked(1, 'zero', 'leaving'), looked(1, 'own')], { good }), 'DM_SNAPSHOT_CHANGED')
  t.is(await outcome([looked(2, 'zero', 'unlike'), looked(2, 'new')], { good }), 'DM_SNAPSHOT_CHANGED')
})

test("a table that was seen under way has to be LVM's, or that of the last look", async (t) => {
  const good = [looked(1, 'own')]
  t.is(await outcome([looked(2, 'new')], { good, seen: [tables('new')] }), 'new')
  t.is(await outcome([looked(2, 'new')], { good, seen: [tables('own', 'store')] }), 'new')
  t.is(await outcome([looked(1, 'own')], { good, seen: [tables('zero')] }), 'DM_COW_DETACHED')
  t.is(await outcome([looked(1, 'own')], { good, seen: [tables('own', 'zero')] }), 'DM_COW_DETACHED')
  // LVM has gone on meanwhile: nobody knows whether it was its own.
  t.is(await outcome([looked(3, 'last')], { good, seen: [tables('new')] }), 'DM_SNAPSHOT_CHANGED')
  // One that stays, and is unlike, has its three looks.
  const zero = looked(1, 'zero', 'unlike')
  t.is(await outcome([zero, zero, zero], { good, seen: [tables('zero')] }), 'DM_COW_DETACHED')
})

test('what is unlike is told, once for each further look', async (t) => {
  const told: string[] = []
  const onUnlike = ({ handle }: LookedBelow) => void told.push(handle)
  await outcome([looked(1, 'new', 'unlike'), looked(2, 'new')], { onUnlike })
  t.deepEqual(told, ['vg/s'])
})
