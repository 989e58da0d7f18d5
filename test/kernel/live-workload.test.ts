/**
 * A slice of the random workload on either kind of pool; `npm run soak -- --section workload-dmsetup` (or workload-lvm) goes the whole
 * way. Runs inside the kernel lab: node test/lab/run.ts test/kernel/live-workload.test.ts
 */
import test from 'ava'
import { labRun } from './lab-run.ts'
import { liveWorkload } from './live-workload.ts'

const { count, random } = labRun(60)

for (const [pool, steps] of [
  ['dmsetup', count],
  // What LVM does takes its time.
  ['lvm', Math.ceil((2 * count) / 3)]
] as const) {
  test(`whatever happens to a pool (${pool}), every answer restores the snapshot or was rightly refused`, async (t) => {
    t.timeout(30 * 60_000)
    const report = await liveWorkload({ pool, seed: random.uint32() % 1_000_000, steps })
    t.log(JSON.stringify(report))
    t.is(report.steps, steps)
    t.true(report.full + report.incremental >= steps / 10)
    t.true(report.incremental >= steps / 20)
  })
}
