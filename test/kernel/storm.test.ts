/**
 * A slice of the storm; `npm run soak -- --section storm` goes the whole way. Runs inside the kernel lab:
 * node test/lab/run.ts test/kernel/storm.test.ts
 */
import test from 'ava'
import { labRun } from './lab-run.ts'
import { walkThroughStorm } from './storm.ts'

const { count, random } = labRun(40)

test('walks through live metadata are right or end with an error, whatever the storm does', async (t) => {
  t.timeout(30 * 60_000)
  const agentWalks = Math.ceil(count / 10)
  const walks = count - agentWalks
  const report = await walkThroughStorm({ seed: random.uint32() % 1_000_000, walks, agentWalks })
  t.log(JSON.stringify(report))
  t.true(report.mappings.every((each) => each >= 35_000))
  t.true(report.ofStable >= count / 10)
  t.true(report.whileHeld > 0)
  t.true(report.commitsPerWalk >= 1)
})
