import test from 'ava'

import { parseWriteset, WRITESET_SIZE } from '../../../src/devicemapper/era/writeset.ts'

test('a record is 12 bytes, packed, little endian', (t) => {
  const bytes = Buffer.from('ff_01000080_0201000000000000'.replaceAll('_', ''), 'hex')
  t.is(bytes.length, 1 + WRITESET_SIZE)
  t.deepEqual(parseWriteset(bytes, 1), { bits: 0x80000001, root: 0x102 })
})
