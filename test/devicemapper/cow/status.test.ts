import test from 'ava'

import { countedEntries, parseCowStatus } from '../../../src/devicemapper/cow/status.ts'

test('a snapshot that works: sectors given out, in all, and of areas and header', (t) => {
  const status = parseCowStatus('4400/16384 32')
  t.deepEqual(status, { state: 'working', allocatedSectors: 4400, totalSectors: 16384, metadataSectors: 32 })
  t.is(status.state === 'working' && countedEntries(status, 16), 273)
  t.deepEqual(parseCowStatus('16/2048 16'), {
    state: 'working',
    allocatedSectors: 16,
    totalSectors: 2048,
    metadataSectors: 16
  })
})

test('what the kernel says of snapshots that do not work', (t) => {
  t.deepEqual(parseCowStatus('Invalid'), { state: 'invalid' })
  t.deepEqual(parseCowStatus('Overflow'), { state: 'overflow' })
  t.deepEqual(parseCowStatus('Merge failed'), { state: 'merge failed' })
  t.deepEqual(parseCowStatus('Unknown'), { state: 'unknown' })
})

for (const line of ['', 'Fail', '1/2', '3/2 1', '1/2 x', '1/2 1 7', 'Invalid 1']) {
  test(`no status: ${JSON.stringify(line)}`, (t) => {
    t.throws(() => parseCowStatus(line), { code: 'DM_STATUS_UNKNOWN' })
  })
}
