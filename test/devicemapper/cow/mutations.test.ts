/**
 * A slice of the campaign of damage to stores of classic snapshots (`npm run soak -- --section cow-mutations` has all of it): no answer is smaller
 * than the truth, unless docs/guarantees.md says that it cannot be noticed.
 */
import test from 'ava'

import { type CowTally, damageStores, summaryTable, tallyTable } from '../../support/cow-mutations.ts'
import { Random } from '../../support/random.ts'
import { testFolder } from '../../support/test-folder.ts'

const folder = testFolder(test)

test('entries, counts, order, header, length', async (t) => {
  const tally: CowTally = new Map()
  for (let seed = 1; seed <= 20; seed++) {
    t.deepEqual(await damageStores(folder, new Random(seed), 30, tally), [], `seed ${seed}`)
  }
  t.log(tallyTable(tally))
  t.regex(summaryTable(tally), /^\| by hand \| \d+ \| \d+ \| \d+ \|$/m)
  const refused = [...tally.values()].reduce((sum, each) => sum + each.refused, 0)
  t.true(refused > 900, `${refused}`)
})
