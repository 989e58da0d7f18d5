/**
 * Runs all of `npm test` several times in a row, beside busy loops: nothing may depend on how busy the machine is.
 *
 *   node scripts/repeat-test.ts [--times N] [--busy N] [ARGS of scripts/test.mjs…]     default: 5 times beside 4 loops
 *
 * What each run prints goes to .cache/repeat/N.log; its last two lines and its failures are shown. Exit status 1 if any run failed.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { createWriteStream, mkdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

const project = fileURLToPath(new URL('..', import.meta.url))
const folder = join(project, '.cache/repeat')
const { values, positionals } = parseArgs({
  options: { times: { type: 'string', default: '5' }, busy: { type: 'string', default: '4' } },
  allowPositionals: true
})

/** @returns whether it passed */
async function runOnce(number: number): Promise<boolean> {
  const path = join(folder, `${number}.log`)
  const log = createWriteStream(path)
  const child = spawn(process.execPath, ['scripts/test.mjs', ...positionals], {
    cwd: project,
    stdio: ['ignore', 'pipe', 'pipe']
  })
  for (const stream of [child.stdout, child.stderr]) stream.pipe(log, { end: false })
  const [status] = (await once(child, 'close')) as [number | null]
  await new Promise((resolve) => log.end(resolve))
  const lines = readFileSync(path, 'utf8').trimEnd().split('\n')
  for (const line of lines) if (line.startsWith('not ok')) console.log(line)
  console.log(`run ${number}, status ${status} (${path}):`)
  for (const line of lines.slice(-2)) console.log(line)
  return status === 0
}

mkdirSync(folder, { recursive: true })
const busy: ChildProcess[] = Array.from({ length: Number(values.busy) }, () =>
  spawn(process.execPath, ['-e', 'for (;;);'], { stdio: 'ignore' })
)
let passed = 0
try {
  for (let number = 1; number <= Number(values.times); number++) if (await runOnce(number)) passed++
} finally {
  for (const each of busy) each.kill('SIGKILL')
}
console.log(`${passed} of ${values.times} runs passed beside ${values.busy} busy loops`)
process.exitCode = passed === Number(values.times) ? 0 : 1
