/** LVM's names and sizes; the snapshots themselves are taken in test/kernel/era-snapshots.test.ts. */
import test from 'ava'
import { formatSnapshotBy, lvmNames } from '../../../../src/agent/era/boundary/lower-snapshot.ts'

const uuid = `LVM-${'a1'.repeat(32)}`

test('group and volume from a device name, dashes doubled', (t) => {
  t.deepEqual(lvmNames({ name: 'vg0-srv', uuid }), { vg: 'vg0', lv: 'srv' })
  t.deepEqual(lvmNames({ name: 'vg--a-data--1', uuid }), { vg: 'vg-a', lv: 'data-1' })
  t.deepEqual(lvmNames({ name: 'a---b', uuid }), { vg: 'a-', lv: 'b' }, 'a volume begins with no dash')
})

test('what is no volume of LVM’s, or only a part of one', (t) => {
  t.is(lvmNames({ name: 'vg0-srv', uuid: '' }), undefined)
  t.is(lvmNames({ name: 'vg0-srv', uuid: 'CRYPT-LUKS2-1-x' }), undefined)
  t.is(lvmNames({ name: 'vg0-srv-real', uuid: `${uuid}-real` }), undefined)
  t.is(lvmNames({ name: 'vg0', uuid }), undefined)
})

test('sizes as LVM takes them', (t) => {
  t.is(formatSnapshotBy(''), '')
  for (const size of ['10g', '512M', '1.5t', '20%ORIGIN', '100%FREE'])
    t.is(formatSnapshotBy(size), JSON.stringify({ size }))
  for (const size of ['-1', '+10g', '10 g', '20%', '10g --addtag x', 'lots', '1e9']) {
    t.throws(() => formatSnapshotBy(size), { code: 'DM_ARGUMENT_INVALID' }, size)
  }
})
