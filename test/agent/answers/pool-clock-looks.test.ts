/** Looks at a pool's clock come one after the other, and are shared only by those who asked before they began. */
import { join } from 'node:path'
import test from 'ava'
import { PoolClockLooks } from '../../../src/agent/answers/pool-clock-looks.ts'
import type { PoolClock } from '../../../src/agent/catalog/pool-clocks.ts'
import { testFolder } from '../../support/test-folder.ts'
import { writeSamplePool } from '../sample-pool.ts'

const folder = testFolder(test)
const sample = writeSamplePool(join(folder, 'sample'))

async function samplePlace() {
  return { metadataPath: join((await sample).folder, 'metadata.img'), poolIdentity: 'pool' }
}

test('one at a time, shared while it waits, not while it is under way', async (t) => {
  const place = await samplePlace()
  const told: PoolClock[] = []
  let atOnce = 0
  const release: (() => void)[] = []
  const looks = new PoolClockLooks({
    poolClocks: {
      saw: async (clock) => {
        told.push(clock)
        t.is(++atOnce, 1)
        await new Promise<void>((resolve) => release.push(resolve))
        atOnce--
        return undefined
      }
    }
  })
  const first = looks.look(place)
  while (told.length < 1) await new Promise(setImmediate)
  const later = [looks.look(place), looks.look(place), looks.look(place)]
  for (let turn = 0; turn < 100; turn++) await new Promise(setImmediate)
  t.is(told.length, 1)
  release.splice(0).forEach((each) => each())
  await first
  while (told.length < 2) await new Promise(setImmediate)
  release.splice(0).forEach((each) => each())
  await Promise.all(later)
  t.is(told.length, 2)
  t.true((told[0]?.time ?? 0) > 0)
  t.true((told[0]?.devices.length ?? 0) > 0)
})

test('one that fails holds up nobody, and a snapshot whose pool is not known has no clock', async (t) => {
  const place = await samplePlace()
  let calls = 0
  const looks = new PoolClockLooks({
    poolClocks: {
      saw: async () => {
        if (++calls === 1) throw new Error('the catalog is not there')
        return { at: 5, how: 'its clock went back' }
      }
    }
  })
  const [failed, next] = [
    looks.look(place),
    looks.look({ ...place, metadataPath: place.metadataPath.replace('/metadata', '/./metadata') })
  ]
  await t.throwsAsync(failed, { message: /catalog is not there/ })
  t.deepEqual(await next, { at: 5, how: 'its clock went back' })
  t.is(await looks.look({ metadataPath: '/nowhere' }), undefined)
})

test('it lends what it opened: noted once, open until it is given back, and nobody waits for that', async (t) => {
  const place = await samplePlace()
  const told: PoolClock[] = []
  const looks = new PoolClockLooks({
    poolClocks: {
      saw: async (clock) => {
        told.push(clock)
        return undefined
      }
    }
  })
  const lent = await looks.lend(place, async (metadata) => {
    t.is((await metadata.moment()).time, told[0].time)
    t.is(told.length, 1)
    await looks.look(place)
    t.is(told.length, 2)
    await metadata.moment()
    return metadata
  })
  await t.throwsAsync(lent.device(1))
  await t.throwsAsync(
    looks.lend(place, async () => Promise.reject(new Error('the user has failed'))),
    { message: /user has failed/ }
  )
})

test('what is open has to be the device that was looked up', async (t) => {
  const place = await samplePlace()
  const looks = new PoolClockLooks({ poolClocks: { saw: async () => undefined } })
  const error = await t.throwsAsync(looks.look({ ...place, metadataDevice: { major: 254, minor: 3, uuid: '' } }))
  t.is((error as { code?: string }).code, 'DM_SNAPSHOT_CHANGED')
})
