/**
 * A slice of the campaign of damage under right checksums (`npm run soak -- --section mutations` has all of it): no answer is smaller than
 * the truth, unless docs/guarantees.md says that it cannot be noticed.
 */
import { join } from 'node:path'

import test from 'ava'

import { ensureLab, LabUnavailable } from '../lab/packages.ts'
import { eraCampaign } from '../support/era-mutations.ts'
import { availableEraTools } from '../support/era-tools.ts'
import { newTally, runCampaign } from '../support/mutations.ts'
import { poolCampaign } from '../support/pool-mutations.ts'
import { Random } from '../support/random.ts'
import { testFolder } from '../support/test-folder.ts'

const noTools = await ensureLab().then(
  () => undefined,
  (error: unknown) => {
    if (error instanceof LabUnavailable) return error.message
    throw error
  }
)
const folder = testFolder(test)
const MUTATIONS = 120

test('thin metadata: keys, counts, flags, pointers, sizes, levels', async (t) => {
  if (noTools !== undefined) {
    t.pass(`thin_check cannot be asked: ${noTools}`)
    return
  }
  const tally = newTally()
  for (const seed of [1, 2]) {
    const random = new Random(seed)
    t.deepEqual(await runCampaign(poolCampaign(random), join(folder, 'thin.img'), random, MUTATIONS, tally), [])
  }
  t.log(tally)
  t.true(tally.refused > 500 && tally.notSmaller > 500)
})

test('era metadata: keys, counts, flags, pointers, sizes, levels', async (t) => {
  const { versions, unavailable } = await availableEraTools()
  const tally = newTally()
  for (const [seed, tools] of versions.entries()) {
    const random = new Random(seed + 1)
    t.deepEqual(await runCampaign(eraCampaign(random, tools), join(folder, 'era.img'), random, MUTATIONS, tally), [])
  }
  t.log(tally, unavailable)
  t.true(versions.length === 0 || (tally.refused > 200 && tally.notSmaller > 200))
})
