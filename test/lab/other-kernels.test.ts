/**
 * A slice of the kernel tests on the machine's own kernel, LVM and thin tools (Linux 6.1 on Debian 12). `npm test` runs all of them on one that starts
 * processes quicker (docs/decisions/0023-kernel-of-the-tests-again.md), and `npm run soak` all on each.
 */
import test from 'ava'
import { runInLab } from './boot.ts'
import { commandFor, labVariables } from './run.ts'

/** What differs between kernels and between versions of LVM: errno, status lines, tables, settings. LVM's reports are in the soak. */
const files = ['device-mapper', 'thin-status', 'era-metadata', 'lvm-settings']

// The machine's own is what none is named for.
delete process.env['LAB_RELEASE']

test('kernel tests pass with the kernel, LVM and tools of the machine', async (t) => {
  t.timeout(59 * 60_000)
  const [first = '', ...more] = files.map((each) => `test/kernel/${each}.test.ts`)
  let said = ''
  // What a kernel that hangs had said shows where.
  const { status } = await runInLab({
    command: commandFor(first, more),
    environment: labVariables({}),
    timeoutSeconds: 58 * 60,
    onOutput: (_stream, chunk) => (said += chunk.toString())
  }).catch((error: unknown) => {
    t.log(said)
    throw error
  })
  if (status !== 0) t.log(said)
  t.is(status, 0)
  t.regex(said, /^# fail 0$/m)
})
