/**
 * A slice of the kernel tests on Debian 13's kernel, LVM and thin tools; `npm run soak -- --section kernels-trixie` runs all of them.
 *
 * sid's are in `kernels-sid` only: they are others every week, so that a test which fails there says nothing about a change of ours.
 */
import test from 'ava'
import { LabUnavailable, runInLab } from './boot.ts'
import { ensureRelease } from './releases.ts'
import { commandFor, labVariables } from './run.ts'

/** What differs between kernels and between versions of LVM: errno, status lines, tables, reports. */
const files = ['lab', 'device-mapper', 'thin-status', 'era-metadata', 'lvm', 'era-devices']

const unavailable = await ensureRelease('trixie').then(
  () => undefined,
  (error: unknown) => {
    if (error instanceof LabUnavailable) return error.message
    throw error
  }
)
const labTest = unavailable === undefined ? test : test.skip

labTest('kernel tests pass with the kernel, LVM and tools of Debian 13', async (t) => {
  t.timeout(20 * 60_000)
  const [first = '', ...more] = files.map((each) => `test/kernel/${each}.test.ts`)
  const { status, stdout, stderr } = await runInLab({
    release: 'trixie',
    command: commandFor(first, more),
    environment: labVariables({}),
    timeoutSeconds: 20 * 60
  })
  if (status !== 0) t.log(stdout, stderr)
  t.is(status, 0)
  t.regex(stdout, /^# fail 0$/m)
})
