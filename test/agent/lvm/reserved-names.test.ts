/** Names that LVM keeps for itself; that the real one refuses them is seen in test/kernel/era-snapshots.test.ts. */
import test from 'ava'
import { refuseReservedName } from '../../../src/agent/lvm/reserved-names.ts'

test('what LVM refuses, by its begin or anything in it', (t) => {
  for (const name of ['snapshot', 'snapshot-1', 'pvmove0', 'x_tmeta', 'a_rimage_0', '_vorigin']) {
    t.throws(() => refuseReservedName(name), { code: 'DM_ARGUMENT_INVALID' }, name)
  }
  for (const name of ['monday', 'my-snapshot', 'a-pvmove', 'tmeta', 'x_data', 'Snapshot']) {
    t.notThrows(() => refuseReservedName(name), name)
  }
})
