/**
 * A slice of the kills of a whole kernel; `npm run soak -- --section kernel-kills` and `era-kernel-kills` go the whole way.
 */
import test from 'ava'
import { LabUnavailable } from './boot.ts'
import { killKernels, killKernelsThatTrack, killKernelsWithClassicSnapshots } from './kernel-kills.ts'
import { ensureLab } from './packages.ts'

const unavailable = await ensureLab().then(
  () => undefined,
  (error: unknown) => {
    if (error instanceof LabUnavailable) return error.message
    throw error
  }
)
// One after the other: each has a kernel of its own.
const labTest = unavailable === undefined ? test.serial : test.skip

labTest(
  'whenever a kernel is killed, the next one finds no lease of ours, and the catalog as it has to be',
  async (t) => {
    t.timeout(60 * 60_000)
    const report = await killKernels(Number(process.env.LAB_SEED ?? 1), Number(process.env.LAB_COUNT ?? 1))
    t.log(JSON.stringify(report))
    t.true(report.answers > 0)
  }
)

labTest('whenever a kernel is killed that tracks a volume, the next one misses no change', async (t) => {
  t.timeout(60 * 60_000)
  const report = await killKernelsThatTrack(Number(process.env.LAB_SEED ?? 1), Number(process.env.LAB_COUNT ?? 1))
  t.log(JSON.stringify(report))
  t.true(report.answers > 0 && report.differing > 0)
})

labTest('whenever a kernel is killed that has classic snapshots, the next one misses no change', async (t) => {
  t.timeout(60 * 60_000)
  const { LAB_SEED = '1', LAB_COUNT = '1' } = process.env
  const report = await killKernelsWithClassicSnapshots(Number(LAB_SEED), Number(LAB_COUNT))
  t.log(JSON.stringify(report))
  t.true(report.pairs > 0)
})
