import test from 'ava'

import { parseCowTable } from '../../../src/devicemapper/cow/table.ts'

const devices = { originDevice: { major: 253, minor: 1 }, storeDevice: { major: 253, minor: 2 } }

test('lists on disk and in memory, with and without features', (t) => {
  t.deepEqual(parseCowTable('253:1 253:2 P 8'), { ...devices, persistent: true, chunkSectors: 8, features: [] })
  t.deepEqual(parseCowTable('253:1 253:2 PO 128'), { ...devices, persistent: true, chunkSectors: 128, features: [] })
  t.deepEqual(parseCowTable('253:1 253:2 N 16'), { ...devices, persistent: false, chunkSectors: 16, features: [] })
  const features = ['discard_zeroes_cow', 'discard_passdown_origin']
  t.deepEqual(parseCowTable(`253:1 253:2 P 8 2 ${features.join(' ')}`), {
    ...devices,
    ...{ persistent: true, chunkSectors: 8, features }
  })
})

for (const params of [
  '',
  '253:1 253:2',
  '253:1 253:2 X 8',
  '253:1 253:2 P',
  '253:1 253:2 P 8 2 one',
  '253:1 253:2 P 8 0 x'
]) {
  test(`no table: ${JSON.stringify(params)}`, (t) => {
    t.throws(() => parseCowTable(params), { code: 'DM_STATUS_UNKNOWN' })
  })
}
