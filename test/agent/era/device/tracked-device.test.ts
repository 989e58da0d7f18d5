/** What two looks at a tracked volume say about what has gone unseen between them. The kernel's part: test/kernel/era-beside.test.ts. */
import test from 'ava'
import type { DeviceMapper } from '../../../../native/device-mapper.ts'
import {
  type ActiveLook,
  type Inactive,
  type LastLook,
  TrackedDevice
} from '../../../../src/agent/era/device/tracked-device.ts'
import { eraVolume } from '../../catalog/examples.ts'

const tracked = new TrackedDevice({} as DeviceMapper, { ...eraVolume('v'), createdAt: 0 })

function look(changes: Partial<ActiveLook> = {}): ActiveLook {
  return {
    ...{ boot: 'boot', instance: 'guard', dataInstance: 'data', openLimit: undefined, discards: 0 },
    ...{ mergeable: [], metadataMergeable: [], dataBytes: tracked.volume.sizeBytes },
    ...{ data: { writtenSectors: 300, discards: 0 }, pastEra: 0, pastGuard: 16, settled: true },
    ...changes
  }
}

const seen = (changes: Partial<ActiveLook> = {}, before: LastLook = { state: 'never' }) =>
  tracked.seenActive(look(changes), before, 'head', 0)

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
  const dataBytes = tracked.volume.sizeBytes - 512
  t.regex(tracked.unseen(look({ dataBytes }), seen()) ?? '', /lower has \d+ bytes, and v has \d+: it was made smaller$/)
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
  const inactive: LastLook = {
    state: 'inactive',
    ...{ boot: 'boot', instance: 'data', writtenSectors: 16, discards: 0, head: '', mergeable: [] }
  }
  t.is(tracked.unseen(look(), inactive), undefined)
  t.regex(tracked.unseen(look({ pastGuard: 24 }), inactive) ?? '', /^8 sectors/)
  t.regex(tracked.unseen(look({ dataInstance: 'another' }), inactive) ?? '', /by another program/)
  for (const other of [{ instance: 'another' }, { boot: 'another' }]) {
    t.regex(tracked.unseen(look(other), seen()) ?? '', /^v was deactivated and activated again by another program$/)
  }
})

/** Both devices of an inactive volume, as they are found. */
function below(changes: Partial<Inactive> = {}): Inactive {
  return {
    ...{ state: 'inactive', boot: 'boot', instance: 'data', writtenSectors: 16, discards: 0, head: 'head' },
    ...{ mergeable: ['snapshot a'], metadataState: 'state', metadataMergeable: ['snapshot b'] },
    metadata: { instance: 'metadata', writtenSectors: 8, discards: 0 },
    ...changes
  }
}

/** What another boot finds, in which nothing was written yet. */
function afterBoot(changes: Partial<Inactive> = {}): Inactive {
  const metadata = { instance: 'new', writtenSectors: 0, discards: 0 }
  return below({ boot: 'next', instance: 'new', writtenSectors: 0, metadata, ...changes })
}

test('in the boot in which it was deactivated, nothing about either device may have changed', (t) => {
  const beside = (now: Inactive) => tracked.writtenBeside(now, below(), false) ?? ''
  t.is(beside(below()), '')
  t.regex(beside(below({ writtenSectors: 17 })), /lower was written to while v was not active/)
  t.regex(beside(below({ discards: 1 })), /lower was written to/)
  t.regex(beside(below({ instance: 'another' })), /lower was itself taken down/)
  t.regex(beside(below({ head: 'another' })), /first 128 KiB/)
  t.regex(beside(below({ mergeable: [] })), /snapshot a is gone, and may have been merged into \S+lower/)
  t.regex(beside(below({ metadataMergeable: [] })), /snapshot b is gone, and may have been merged into \S+metadata/)
  t.regex(beside(below({ metadataState: 'another' })), /the metadata in \S+ is not what it was/)
  t.regex(beside(below({ metadataState: '' })), /the metadata in \S+ is not what it was/)
  const metadata = { instance: 'metadata', writtenSectors: 8, discards: 0 }
  t.regex(beside(below({ metadata: { ...metadata, writtenSectors: 16 } })), /metadata was written to while/)
  t.regex(beside(below({ metadata: { ...metadata, instance: 'another' } })), /metadata was itself taken down/)
})

test('a restart ends what counters say, unless nothing came between the deactivation and the shutdown', (t) => {
  const deactivated = below()
  const shutDown = below({ atShutdown: true })
  const crashed = seen()
  t.regex(tracked.writtenBeside(afterBoot(), deactivated, false) ?? '', /not deactivated at the shutdown/)
  t.regex(tracked.writtenBeside(afterBoot(), crashed, false) ?? '', /the machine stopped while v was active/)
  t.is(tracked.writtenBeside(afterBoot(), shutDown, false), undefined)
  // In a boot between, the volume was not activated, and nobody looked.
  t.is(tracked.writtenBeside(afterBoot(), below({ atShutdown: true, nextBoot: 'next' }), false), undefined)
  const skipped = below({ atShutdown: true, nextBoot: 'another' })
  t.regex(tracked.writtenBeside(afterBoot(), skipped, false) ?? '', /was not activated in the boot before/)
  for (const before of [deactivated, shutDown, skipped]) {
    t.is(tracked.writtenBeside(afterBoot(), before, true), undefined)
    t.regex(tracked.writtenBeside(afterBoot({ head: 'another' }), before, true) ?? '', /first 128 KiB/)
    t.regex(tracked.writtenBeside(afterBoot({ metadataState: 'another' }), before, true) ?? '', /not what it was/)
  }
  const merged = { mergeable: ['snapshot a'], metadataMergeable: ['snapshot b'] }
  for (const before of [shutDown, seen(merged)]) {
    t.regex(tracked.writtenBeside(afterBoot({ writtenSectors: 8 }), before, true) ?? '', /before v was activated/)
    const metadata = { instance: 'new', writtenSectors: 8, discards: 0 }
    t.regex(tracked.writtenBeside(afterBoot({ metadata }), before, true) ?? '', /metadata was written to, before/)
    t.regex(tracked.writtenBeside(afterBoot({ mergeable: [] }), before, true) ?? '', /merged into \S+lower/)
    t.regex(tracked.writtenBeside(afterBoot({ metadataMergeable: [] }), before, true) ?? '', /merged into \S+metadata/)
  }
})
