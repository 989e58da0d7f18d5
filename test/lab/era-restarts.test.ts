/**
 * A slice of the restarts of a machine that tracks a volume, in whole kernels; test/kernel/missed-blocks-era-looks.test.ts has many more, with
 * boots that are none.
 */
import test from 'ava'
import { LabUnavailable } from './boot.ts'
import { type Restart, restart } from './era-restarts.ts'
import { ensureLab } from './packages.ts'

const unavailable = await ensureLab().then(
  () => undefined,
  (error: unknown) => {
    if (error instanceof LabUnavailable) return error.message
    throw error
  }
)
const labTest = unavailable === undefined ? test : test.skip
const seed = Number(process.env.LAB_SEED ?? 1)

const restarts: [Restart, RegExp | undefined][] = [
  [{ ends: 'shutdown', rescue: false }, undefined],
  [{ ends: 'crash', rescue: true }, /^the machine stopped while restarted was active/],
  [{ ends: 'deactivated', rescue: true }, /^restarted was not deactivated at the shutdown/]
]

for (const [how, because] of restarts) {
  labTest(`${how.ends}${how.rescue ? ', and a rescue system that writes' : ''}`, async (t) => {
    t.timeout(60 * 60_000)
    const { outcome, lineBecause, differ, missed } = await restart(how, seed)
    t.is(missed, 0, `seed ${seed}`)
    t.true(differ > 0)
    t.is(outcome, because ? 'DM_HISTORY_BROKEN' : 'answered', lineBecause)
    if (because) t.regex(lineBecause, because)
  })
}
