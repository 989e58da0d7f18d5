/**
 * The lab from outside: what comes back from a kernel, and that one that hangs or is killed leaves nothing behind.
 */
import { existsSync } from 'node:fs'
import { mkdtemp, readFile, readdir, rm, truncate, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import test from 'ava'
import { LabFailure, LabUnavailable, runInLab, startLab } from './boot.ts'
import { ensureLab } from './packages.ts'

const unavailable = await ensureLab().then(
  () => undefined,
  (error: unknown) => {
    if (error instanceof LabUnavailable) return error.message
    throw error
  }
)
// One after the other: each boots a kernel.
const labTest = unavailable === undefined ? test.serial : test.skip

labTest('a command gets its arguments, environment and disk, and its status and output come back apart', async (t) => {
  const script = `printf '%s|' "$@"; echo "$COLOUR"; blockdev --getsize64 /dev/ubda; pwd; echo aside >&2; exit 7`
  const result = await runInLab({
    command: ['bash', '-c', script, 'name', 'two words', "it's"],
    environment: { COLOUR: 'blue = green' },
    folder: '/usr',
    diskBytes: 3 * 2 ** 20
  })
  t.is(result.status, 7)
  t.is(result.stdout, `two words|it's|blue = green\n${3 * 2 ** 20}\n/usr\n`)
  t.is(result.stderr, 'aside\n')
  const log = result.consoleLog ?? ''
  t.true(existsSync(log))
  await rm(log)
})

labTest('a kernel that is not done in time is killed, and nothing of it is left', async (t) => {
  const error = await t.throwsAsync(runInLab({ command: ['sleep', '600'], timeoutSeconds: 4 }), {
    instanceOf: LabFailure
  })
  t.regex(error.message, /not done after 4 s/)
  const job = /deltamapper-lab-\w+/.exec(error.message)?.[0] ?? 'none'
  t.false(existsSync(join(tmpdir(), job)))
  t.deepEqual(await processesAbout(job), [])
  await rm(/\S+$/.exec(error.message)?.[0] ?? '')
})

labTest('a kernel that is killed leaves the disk as it was: the next one finds what was written', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'lab-disk-'))
  t.teardown(() => rm(folder, { recursive: true }))
  const disk = join(folder, 'disk')
  const sign = join(folder, 'written')
  await writeFile(disk, '')
  await truncate(disk, 2 ** 20)
  const lab = await startLab({
    command: ['bash', '-c', `echo still here | dd of=/dev/ubda conv=fsync; touch ${sign}; sleep 600`],
    disk
  })
  while (!existsSync(sign)) await sleep(50)
  lab.kill()
  const error = await t.throwsAsync(lab.result, { instanceOf: LabFailure })
  t.regex(error.message, /killed/)
  await rm(/\S+$/.exec(error.message)?.[0] ?? '')
  t.is((await readFile(disk)).toString('utf8', 0, 11), 'still here\n')
  const next = await runInLab({ command: ['head', '-n', '1', '/dev/ubda'], disk })
  t.is(next.stdout, 'still here\n')
})

/** Command lines that mention a word. (A process that was killed is listed for a moment, but has none any more.) */
async function processesAbout(word: string): Promise<string[]> {
  const pids = (await readdir('/proc')).filter((each) => /^[0-9]+$/.test(each))
  const lines = await Promise.all(pids.map((pid) => readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')))
  return lines.filter((each) => each.includes(word))
}
