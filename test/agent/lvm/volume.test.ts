import test from 'ava'
import { DeltamapperError } from '../../../src/errors.ts'
import type { LogicalVolume } from '../../../src/agent/lvm/parse.ts'
import { byName, thinVolume, type ThinVolume, volumeKind, type VolumeKind } from '../../../src/agent/lvm/volume.ts'
import { recordedVolumes, type Scene } from '../../support/recorded-lvm.ts'

function look(scene: Scene, name: string, change: Partial<LogicalVolume> = {}): ThinVolume {
  const volumes = recordedVolumes(scene).map((lv) => (lv.name === name ? { ...lv, ...change } : lv))
  const named = byName(volumes)
  return thinVolume(named.get(name)!, named)
}

function refusal(scene: Scene, name: string, change: Partial<LogicalVolume> = {}): DeltamapperError {
  try {
    look(scene, name, change)
  } catch (error) {
    if (error instanceof DeltamapperError) return error
    throw error
  }
  throw new Error(`${name} was accepted`)
}

test('every kind of volume is recognised', (t) => {
  const volumes = recordedVolumes('volumes')
  const kinds: Record<string, VolumeKind> = {
    data: 'thin volume',
    grown: 'thin volume',
    monday: 'thin snapshot',
    'monday-copy': 'thin snapshot',
    'tue.sd+ay_': 'thin snapshot',
    // Over an external origin, and snapshots of that.
    clone: 'thin volume',
    'clone-monday': 'thin snapshot',
    'clone-copy': 'thin snapshot',
    far: 'thin volume',
    'far-monday': 'thin snapshot',
    'po-ol': 'thin pool',
    second: 'thin pool',
    empty: 'thin pool',
    'thick-cow': 'copy-on-write snapshot',
    'thin-cow': 'copy-on-write snapshot',
    image: 'thick volume',
    thick: 'thick volume',
    'two-segments': 'thick volume',
    striped: 'thick volume',
    raid: 'thick volume',
    cached: 'thick volume'
  }
  for (const lv of volumes) {
    const expected = kinds[lv.name] ?? 'part of another volume'
    t.is(volumeKind(lv, byName(volumes)), expected, lv.name)
    // Without the brackets (report/mark_hidden_devices=0) it is the same.
    const bare = volumes.map((each) => ({ ...each, hidden: false }))
    const named = byName(bare)
    t.is(volumeKind(named.get(lv.name)!, named), expected, lv.name)
  }
  for (const name of Object.keys(kinds)) t.true(byName(volumes).has(name), name)
})

test('a snapshot and its origin, down the chain', (t) => {
  t.like(look('volumes', 'data'), { thinId: 1, transactionId: 0n, origin: undefined, externalOrigin: undefined })
  const monday = look('volumes', 'monday')
  t.is(monday.origin?.name, 'data')
  t.is(monday.pool.name, 'po-ol')
  const copy = look('volumes', 'monday-copy')
  t.is(copy.origin?.name, 'monday')
  t.is(copy.externalOrigin, undefined)
})

test('external origins are followed to the end of the chain', (t) => {
  const found = (scene: Scene, name: string) => {
    const { origin, externalOrigin } = look(scene, name)
    return [origin?.name, externalOrigin?.name]
  }
  t.deepEqual(found('volumes', 'clone'), [undefined, 'image'])
  t.deepEqual(found('volumes', 'clone-monday'), ['clone', 'image'])
  t.deepEqual(found('volumes', 'clone-copy'), ['clone-monday', 'image'])
  // A thin volume of another pool is an external origin as well; its own origins are not of this pool.
  t.deepEqual(found('volumes', 'far'), [undefined, 'monday-copy'])
  t.deepEqual(found('volumes', 'far-monday'), ['far', 'monday-copy'])
  // The snapshot in between was removed: which volume it is of is lost, what shows through is not.
  t.deepEqual(found('origins-removed', 'clone-copy'), [undefined, 'image'])
})

test('an origin that is gone is not known, and no reason to refuse', (t) => {
  t.is(look('origins-removed', 'tue.sd+ay_').origin, undefined)
  t.is(look('merged', 'tue.sd+ay_').origin, undefined)
  t.is(look('merged', 'monday-copy').origin?.name, 'data')
  t.is(look('merging', 'monday-copy').origin?.name, 'monday')
})

test('what cannot be tracked is refused with the reason and the way out', (t) => {
  const refusals: [Scene, string, RegExp][] = [
    ['volumes', 'po-ol', /my-vg\/po-ol is a thin pool.*; name a thin volume/],
    ['volumes', 'po-ol_tmeta', /is a part of another volume.*; name the volume itself/],
    ['volumes', 'lvol0_pmspare', /is a part of another volume/],
    ['volumes', 'thick', /my-vg\/thick is a linear volume, outside of any thin pool; take a snapshot of it/],
    ['volumes', 'raid', /is a raid1 volume/],
    ['volumes', 'cached', /is a writecache volume/],
    ['volumes', 'thick-cow', /classic snapshot.*; ask for it as VG\/LV/],
    ['volumes', 'thin-cow', /classic snapshot/],
    ['merging', 'monday', /being merged back into my-vg\/data.*; take a full backup/]
  ]
  for (const [scene, name, line] of refusals) {
    const error = refusal(scene, name)
    t.is(error.code, 'DM_NOT_TRACKED')
    t.is(error.status, 'FAILED_PRECONDITION')
    t.regex(error.line, line)
  }
})

test('a volume is thin only if all of it is', (t) => {
  t.is(refusal('volumes', 'monday', { segmentTypes: ['thin', 'linear'] }).code, 'DM_NOT_TRACKED')
})

test('a report that contradicts itself is refused', (t) => {
  const { uuid } = recordedVolumes('volumes').find(({ name }) => name === 'monday')!
  const contradictions: Partial<LogicalVolume>[] = [
    { poolLv: undefined },
    { poolLv: 'gone' },
    { poolLv: 'thick' },
    { origin: 'gone' },
    { originUuid: uuid },
    { origin: 'monday', originUuid: uuid }
  ]
  for (const change of contradictions) {
    t.is(refusal('volumes', 'monday', change).code, 'DM_LVM_FAILED', JSON.stringify(change))
  }
})
