import { join } from 'node:path'
import test from 'ava'
import { checkHolds, keyedPool, poolKey, readSlot, wantedBlocks } from '../../../src/agent/leases/pool-slot.ts'
import { parsePoolStatus, type PoolNumbers } from '../../../src/devicemapper/thin/status.ts'
import { DeltamapperError } from '../../../src/errors.ts'
import { unpackRecordedPool } from '../../fixtures/recorded-pool.ts'

test('a key names the same pool for as long as it exists', (t) => {
  t.is(poolKey({ name: 'tank', uuid: '' }), 'dm-name:tank')
  t.is(poolKey({ name: 'vg-pool-tpool', uuid: 'LVM-abc-tpool' }), 'dm-uuid:LVM-abc-tpool')
  t.is(keyedPool('dm-name:tank'), 'tank')
  t.is(keyedPool('dm-name:a:b\nc'), 'a:b\nc')
  t.deepEqual(keyedPool('dm-uuid:LVM-abc-tpool'), { uuid: 'LVM-abc-tpool' })
  for (const wrong of ['', 'tank', 'dm-name:', 'era:vol']) {
    t.throws(() => keyedPool(wrong), { code: 'DM_INTERNAL' }, wrong)
  }
})

const headroom = { percent: 25, blocks: 1024 }
const working = (used: number, total: number) =>
  `5 ${used}/${total} 20/200 - rw discard_passdown error_if_no_space - 256`

/** What the kernel says of a pool, and why nothing is taken of it then. */
for (const [line, refused] of [
  [working(300, 1024), undefined],
  // A quarter of a small pool, 1,024 blocks of a large one.
  [working(768, 1024), undefined],
  [working(769, 1024), /255 of its 1024 metadata blocks are free, and 256 should be/],
  [working(99_000, 100_024), undefined],
  [working(99_001, 100_024), /1023 of its 100024 metadata blocks are free, and 1024 should be/],
  ['Fail', /has failed/],
  ['Error', /could not tell/],
  ['5 1/1024 20/200 - ro discard_passdown error_if_no_space needs_check 256', /needs to be checked/],
  ['5 1/1024 20/200 - ro discard_passdown error_if_no_space - 256', /read-only/],
  ['5 1/1024 20/200 - ro discard_passdown error_if_no_space', /read-only/],
  ['5 1/1024 200/200 - out_of_data_space discard_passdown error_if_no_space - 256', /out of data space/],
  ['5 1/1024 20/200 - rw discard_passdown error_if_no_space needs_check 256', /needs to be checked/]
] as const) {
  test(`${line}: ${refused === undefined ? 'may hold one' : 'refused'}`, (t) => {
    const check = () => {
      checkHolds('tank', parsePoolStatus(line), headroom)
    }
    if (refused === undefined) {
      t.notThrows(check)
      return
    }
    const error = t.throws(check, { instanceOf: DeltamapperError, code: 'DM_LEASE_REFUSED' })
    t.regex(error.message, refused)
    t.regex(error.message, /^no metadata snapshot is taken of tank: /)
  })
}

test('how much has to be free, by configuration', (t) => {
  const status = parsePoolStatus(working(0, 1000)) as PoolNumbers
  t.is(wantedBlocks(status, { percent: 10, blocks: 5000 }), 100)
  t.is(wantedBlocks(status, { percent: 0.05, blocks: 5000 }), 1)
  t.is(wantedBlocks(status, { percent: 100, blocks: 50 }), 50)
  t.is(wantedBlocks(status, { percent: 0, blocks: 50 }), 0)
  t.is(wantedBlocks(status, { percent: 50, blocks: 0 }), 0)
})

test('what a real pool held', async (t) => {
  const { heldRoot, facts, live, held } = await readSlot(join(await unpackRecordedPool(), 'metadata.img'))
  t.true(heldRoot > 0)
  t.is(live.heldRoot, heldRoot)
  t.is(held?.heldRoot, 0)
  t.is(
    facts,
    `thin-pool time ${held?.time} transaction ${held?.transactionId} mappings ${held?.mappingRoot} details ${held?.detailsRoot}`
  )
})

test('what cannot be read is an error', async (t) => {
  await t.throwsAsync(readSlot('/nowhere'), { code: 'DM_READ_FAILED' })
})
