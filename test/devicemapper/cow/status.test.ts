import test from 'ava'

import { placeOf } from '../../../src/devicemapper/cow/areas.ts'
import { countedEntries, parseCowStatus } from '../../../src/devicemapper/cow/status.ts'

const header = { chunkBytes: 8192, chunkSectors: 16 }

test('a snapshot that works: sectors given out, in all, and of areas and header', (t) => {
  const status = parseCowStatus('4400/16384 32')
  t.deepEqual(status, { state: 'working', allocatedSectors: 4400, totalSectors: 16384, metadataSectors: 32 })
  t.is(status.state === 'working' && countedEntries(status, header), 273)
  t.deepEqual(parseCowStatus('16/2048 16'), {
    state: 'working',
    allocatedSectors: 16,
    totalSectors: 2048,
    metadataSectors: 16
  })
})

test('entries are counted by the next free chunk, also while the last entry of an area waits to be written', (t) => {
  const perArea = header.chunkBytes / 16
  // As prepare_exception gives chunks out (drivers/md/dm-snap-persistent.c): areas are skipped at once.
  let nextFree = 2
  for (let entries = 0; entries < 5 * perArea; entries++) {
    const allocatedSectors = nextFree * header.chunkSectors
    const status = { state: 'working', allocatedSectors, totalSectors: 1e9, metadataSectors: 0 } as const
    if (countedEntries(status, header) !== entries) t.fail(`${entries} entries, next free is ${nextFree}`)
    if (placeOf(entries, perArea) !== nextFree) t.fail(`entry ${entries} is at ${nextFree}`)
    nextFree++
    if (nextFree % (perArea + 1) === 1) nextFree++
  }
  t.pass()
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
