/** What two looks at a tracked volume say about what has gone unseen between them. The kernel's part: test/kernel/era-beside.test.ts. */
import test from 'ava'
import type { DeviceMapper } from '../../../native/device-mapper.ts'
import { type ActiveLook, type LowerSeen, TrackedDevice } from '../../../src/agent/era/tracked-device.ts'
import { eraVolume } from '../catalog/examples.ts'

const tracked = new TrackedDevice({} as DeviceMapper, { ...eraVolume('v'), createdAt: 0 })

function look(changes: Partial<ActiveLook> = {}): ActiveLook {
  return {
    ...{ boot: 'boot', instance: 'guard', dataInstance: 'data', openLimit: undefined, discards: 0, mergeable: [] },
    ...{ data: { writtenSectors: 300, discards: 0 }, pastEra: 0, pastGuard: 16, settled: true },
    ...changes
  }
}

const seen = (changes: Partial<ActiveLook> = {}, before: LowerSeen = { state: 'never' }) =>
  tracked.seenActive(look(changes), before)

test('what is more than it was when nothing was in flight came by another way', (t) => {
  t.is(tracked.unseen(look(), seen()), undefined)
  t.regex(
    tracked.unseen(look({ pastGuard: 17 }), seen()) ?? '',
    /^1 sectors were written to \/dev\/disk\/by-id\/lower beside v$/
  )
  t.regex(tracked.unseen(look({ pastEra: 8 }), seen()) ?? '', /^8 sectors were written to v-era-guard beside v$/)
  t.regex(tracked.unseen(look({ discards: 1 }), seen()) ?? '', /^1 discards went through v-era-guard$/)
  const data = { writtenSectors: 300, discards: 2 }
  t.regex(tracked.unseen(look({ data }), seen()) ?? '', /^2 discards went to \/dev\/disk\/by-id\/lower/)
  // What was passed on and refused below.
  t.is(tracked.unseen(look({ pastGuard: 8 }), seen()), undefined)
})

test('while writes are in flight nothing is compared, and what was known before stays known', (t) => {
  const busy = { pastGuard: 4000, pastEra: 4000, settled: false }
  t.is(tracked.unseen(look(busy), seen()), undefined)
  const later = seen(busy, seen())
  t.is(tracked.unseen(look(), later), undefined)
  t.truthy(tracked.unseen(look({ pastGuard: 17 }), later))
  // Never seen at rest: nothing is known, until the first boundary.
  t.is(tracked.unseen(look({ pastGuard: 17 }), seen(busy)), undefined)
})

test('devices that were put up by the last agent, and those that somebody else put up', (t) => {
  const inactive: LowerSeen = {
    state: 'inactive',
    ...{ boot: 'boot', instance: 'data', writtenSectors: 16, discards: 0, head: '', mergeable: [] }
  }
  t.is(tracked.unseen(look(), inactive), undefined)
  t.regex(tracked.unseen(look({ pastGuard: 24 }), inactive) ?? '', /^8 sectors/)
  t.regex(tracked.unseen(look({ dataInstance: 'another' }), inactive) ?? '', /by somebody else/)
  for (const other of [{ instance: 'another' }, { boot: 'another' }]) {
    t.regex(tracked.unseen(look(other), seen()) ?? '', /^v was taken down and put up again by somebody else$/)
  }
})
