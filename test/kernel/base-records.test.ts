/**
 * Base records of a real kernel's pool: what they say once their snapshots are gone is held against what the kernel reads. Runs inside
 * the kernel lab: node test/lab/run.ts test/kernel/base-records.test.ts
 */
import test from 'ava'
import { labRun } from './lab-run.ts'
import { noRecordTally, RecordLife } from './record-life.ts'

const KIBIBYTE = 1024
const MEBIBYTE = 2 ** 20
/** Data blocks, how many of them are written, and the largest size of the volume. */
const shapes = [
  { blockBytes: 64 * KIBIBYTE, touched: 96, sizeBytes: 64 * MEBIBYTE },
  { blockBytes: 192 * KIBIBYTE, touched: 64, sizeBytes: 384 * MEBIBYTE },
  { blockBytes: MEBIBYTE, touched: 24, sizeBytes: 8192 * MEBIBYTE },
  { blockBytes: 64 * KIBIBYTE, touched: 48, sizeBytes: 8192 * MEBIBYTE }
]

test.serial('random lives: with the base gone, every block that differs is reported, and no other', async (t) => {
  t.timeout(4 * 3_600_000)
  // Every snapshot is compared with all before it: so many pairs in all.
  const { random: seeds, count: pairs, again } = labRun(240)
  const tally = noRecordTally()
  // Up to 250 snapshots a life, which are 31,000 pairs: records take files that are open.
  const snapshots = Math.min(250, Math.ceil(Math.sqrt((2 * pairs) / 3)))
  for (let life = 0; tally.pairs < pairs; life++) {
    const random = seeds.fork()
    const lived = new RecordLife({ random, ...shapes[life % shapes.length] }, tally)
    try {
      await lived.live(snapshots)
    } catch (error) {
      throw new Error(`life ${life}, ${again}`, { cause: error })
    } finally {
      await lived.end()
    }
    if (pairs > 1000) console.error(`life ${life}: ${JSON.stringify(tally)}`)
  }
  t.log(JSON.stringify(tally))
  t.true(tally.gone > pairs / 3, 'most bases should be gone')
  t.true(tally.patched > 0 && tally.livingPairs > 0)
})
