import { execFileSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { mock } from 'node:test'
import { setImmediate as turn, setTimeout as sleep } from 'node:timers/promises'
import test from 'ava'
import { DeltamapperError } from '../../../src/errors.ts'
import { describeCommand, oneLine, startCommand } from '../../../src/agent/lvm/command.ts'
import { searchPath } from '../../../src/search-path.ts'
import { testFolder } from '../../support/test-folder.ts'

const folder = testFolder(test)
/** (More time than any machine takes.) */
const limits = { deadlineMs: 600_000, maxOutputBytes: 2 ** 20 }
const bash = (script: string, ...args: string[]) => ['bash', '-c', script, 'bash', ...args]

async function failure(promise: Promise<unknown>): Promise<DeltamapperError> {
  const error: unknown = await promise.then(
    (result) => new Error(`it succeeded: ${JSON.stringify(result)}`),
    (thrown: unknown) => thrown
  )
  if (error instanceof DeltamapperError) return error
  throw error
}

/** What is in a pipe has been read after a whole turn of the event loop. */
async function whatHasCome(): Promise<void> {
  for (let turns = 0; turns < 3; turns++) await turn()
}

/** Whether a process runs: one that is over but not yet waited for does not. */
function runs(pid: number): boolean {
  return existsSync(`/proc/${pid}/stat`) && !/^\d+ \(.*\) Z/.test(readFileSync(`/proc/${pid}/stat`, 'utf8'))
}

test('what a command says, and how it ends', async (t) => {
  const { result, gone } = startCommand(bash('echo out; echo err >&2; exit 5'), limits)
  t.deepEqual(await result, { exitCode: 5, stdout: 'out\n', stderr: 'err\n' })
  await gone
  t.is((await startCommand(bash('kill -TERM $$'), limits).result).exitCode, 143)
})

test('words reach the program as they are: no shell', async (t) => {
  const words = ['$(touch x)', 'a;b', '`id`', "'", '*', '', 'two words', '> /dev/null']
  const { stdout } = await startCommand(['printf', '%s\\n', ...words], limits).result
  t.deepEqual(stdout.split('\n').slice(0, -1), words)
})

test('messages and numbers are not in the language of the locale', async (t) => {
  const { stdout } = await startCommand(bash('echo "$LC_ALL $PATH"'), limits).result
  t.is(stdout, `C ${searchPath(process.env.PATH)}\n`)
})

test('there is nothing to read on its standard input', async (t) => {
  t.is((await startCommand(['cat'], limits).result).stdout, '')
})

test('when the caller wants it no more the process group is killed, and nothing begins', async (t) => {
  const why = new DeltamapperError('DM_SHUTTING_DOWN', 'enough', 'ask again')
  const controller = new AbortController()
  const stopped = { ...limits, signal: controller.signal }
  const running = startCommand(bash('sleep 600 & wait'), stopped)
  controller.abort(why)
  t.is(await failure(running.result), why)
  await running.gone
  const file = join(folder, 'never')
  const none = startCommand(bash('touch "$1"', file), stopped)
  t.is(await failure(none.result), why)
  await none.gone
  t.false(existsSync(file))
})

// (Serial, before all others: nobody else's timers may be this test's.)
test.serial('at the deadline the whole process group is killed', async (t) => {
  const pids = join(folder, 'pids')
  execFileSync('mkfifo', [pids])
  mock.timers.enable({ apis: ['setTimeout'] })
  t.teardown(() => mock.timers.reset())
  const script = 'echo before >&2; sleep 600 & echo $$ $! >"$1"; wait'
  const { result, gone } = startCommand(bash(script, pids), { ...limits, deadlineMs: 500 })
  const ended = failure(result)
  const [parent = 0, child = 0] = (await readFile(pids, 'utf8')).split(' ').map(Number)
  t.true(parent > 1 && child > 1)
  await whatHasCome()
  mock.timers.tick(499)
  await whatHasCome()
  t.true(runs(parent) && runs(child))
  mock.timers.tick(1)
  mock.timers.reset()
  const error = await ended
  t.is(error.code, 'DM_LVM_FAILED')
  t.is(error.status, 'UNAVAILABLE')
  t.regex(error.line, /was not done after 0\.5 s and was killed: before; find out/)
  await gone
  for (const pid of [parent, child]) {
    for (let tries = 0; runs(pid) && tries < 1000; tries++) await sleep(20)
    t.false(runs(pid))
  }
})

test('a program that ignores SIGTERM is killed as well', async (t) => {
  const { result, gone } = startCommand(bash('trap "" TERM INT HUP; while :; do sleep 0.05; done'), {
    ...limits,
    deadlineMs: 300
  })
  await failure(result)
  await gone
  t.pass()
})

test.serial('it is gone only when nobody holds its output any more', async (t) => {
  // A process that leaves the group stands for one that hangs in the kernel: killing the group does not end it.
  const [fifo, ready] = [join(folder, 'fifo'), join(folder, 'ready')]
  execFileSync('mkfifo', [fifo, ready])
  mock.timers.enable({ apis: ['setTimeout'] })
  t.teardown(() => mock.timers.reset())
  const words = ['setsid', '--fork', 'sh', '-c', 'echo >"$1"; read -r line <"$0"', fifo, ready]
  const { result, gone } = startCommand(words, { ...limits, deadlineMs: 300 })
  const failed = failure(result)
  let isGone = false
  const ended = gone.then(() => (isGone = true))
  await readFile(ready)
  mock.timers.tick(300)
  mock.timers.reset()
  await failed
  await sleep(300)
  t.false(isGone)
  // Opens once the process reads: until then nothing can end it.
  await writeFile(fifo, 'on\n')
  await ended
})

test('output without end is cut off', async (t) => {
  const { result, gone } = startCommand(['yes'], limits)
  const error = await failure(result)
  t.regex(error.line, /DM_LVM_FAILED: `yes` wrote more than 1048576 bytes/)
  await gone
})

test('of stderr, a part is kept', async (t) => {
  const { result } = startCommand(bash('yes complaint | head -n 100000 >&2; exit 5'), limits)
  const { exitCode, stderr } = await result
  t.is(exitCode, 5)
  t.is(stderr.length, 16384)
  t.true(oneLine(stderr).length < 510)
  t.is(
    oneLine('  Volume group "x" not found\n\n  Cannot process volume group x\n'),
    ['Volume group "x" not found', 'Cannot process volume group x'].join('; ')
  )
})

test('a program that is not there, or cannot be started', async (t) => {
  for (const program of [join(folder, 'lvm'), 'no-such-lvm-anywhere', folder]) {
    const { pid, result, gone } = startCommand([program, 'lvs'], limits)
    t.is(pid, undefined)
    const error = await failure(result)
    t.is(error.code, 'DM_LVM_FAILED')
    t.regex(error.line, /could not be started \(.*(ENOENT|EACCES)\); install lvm2/)
    await gone
  }
  const { result, gone } = startCommand(['lvm', 'a\0b'], limits)
  t.regex((await failure(result)).line, /^DM_LVM_FAILED: .*could not be started/)
  await gone
})

test('a command line for people can be typed', async (t) => {
  const words = ['printf', '%s|', 'a b', "it's", '', '$HOME', 'x=1']
  const { stdout } = await startCommand(bash(describeCommand(words)), limits).result
  t.is(
    stdout,
    words
      .slice(2)
      .map((word) => `${word}|`)
      .join('')
  )
})
