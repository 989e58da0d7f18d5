/**
 * Pools that lose what they committed last, or are put back to an earlier state, after a base has gone: whatever the
 * agent answers is right, and mostly it refuses. Runs inside the kernel lab: node test/lab/run.ts
 * test/kernel/put-back-pools.test.ts
 *
 * LAB_COUNT rounds, one half power cuts, of pools with and without discard passdown, one half rollbacks.
 */
import { mkdirSync, mkdtempSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import { labRun } from './lab-run.ts'
import { LiveAgent } from './live-agent.ts'
import { run } from './dmsetup.ts'
import { createGroup, prepareLvm } from './lvm-setup.ts'
import { noPutBackTally, PutBackLife } from './put-back-life.ts'

const { random, count: rounds, again } = labRun(2)

prepareLvm()
const folder = mkdtempSync(join(tmpdir(), 'put-back-'))
// The lab's own disk takes discards of 32 KiB at most, which are too small for a pool to pass on.
const disk = join(folder, 'disk')
run('truncate', ['--size', '192M', disk])
createGroup('back', run('losetup', ['--find', '--show', disk]).trim())
const [records, copies] = ['bases', 'copies'].map((each) => join(folder, each))
mkdirSync(copies)

test.serial(`a base that is gone is never trusted across what its pool has lost (${again})`, async (t) => {
  t.timeout(600_000 + rounds * 60_000)
  const agent = await LiveAgent.start({ config: { catalog: join(folder, 'catalog') } })
  const client = agent.client()
  const tally = noPutBackTally()
  const pools = [true, false].map((passdown) => {
    const pool = passdown ? 'passed' : 'kept'
    return new PutBackLife({ group: 'back', pool, passdown, records, copies }, random.fork(), tally)
  })
  for (const [pool, word] of [
    ['passed', ' discard_passdown '],
    ['kept', ' no_discard_passdown ']
  ]) {
    t.true(run('dmsetup', ['status', `back-${pool}-tpool`]).includes(word), word)
  }
  for (let i = 0; i < rounds; i++) {
    const kind = i % 2 === 0 ? 'cut' : 'rollback'
    try {
      // (A rollback has the whole group's description put back: the other pool goes on as it is.)
      await pools[Math.floor(i / 2) % 2].round(client, kind)
    } catch (error) {
      throw new Error(`round ${i}, a ${kind}, ${again}: ${(error as Error).message}`, { cause: error })
    }
    if (i % 10 === 9) console.error(`${i + 1} rounds: ${JSON.stringify(tally)}`)
  }
  t.log(JSON.stringify(tally))
  t.is(tally.cuts + tally.rollbacks, rounds)
  t.true(Object.keys(tally.refused).length > 0)
  if (rounds >= 100) t.true(tally.alone.wrong > 0, 'the records alone would have been wrong: or nothing was tried')
  await agent.stop()
})
