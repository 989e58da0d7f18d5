/**
 * The TAP that `npm test` counts results by: no failure is lost, whatever the values are that differ.
 */
import { spawn } from 'node:child_process'
import { symlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import { testFolder } from '../support/test-folder.ts'

const project = fileURLToPath(new URL('../..', import.meta.url))
const folder = testFolder(test)

const files = {
  'a.test.js': `
import test from 'ava'
test.serial('undefined is no number', (t) => t.deepEqual({ a: undefined, b: () => 1 }, { a: 1, b: 2 }))
test.serial('an error without frames', () => { throw Object.assign(new Error('no'), { stack: 'Error: no' }) })
test.serial('rejected with nothing', () => Promise.reject(undefined))
test.serial('its own time is up', (t) => { t.timeout(100); return new Promise((resolve) => setTimeout(resolve, 500)) })
`,
  'c.test.js': `
import test from 'ava'
test('a process that ends', () => process.exit(1))
`,
  'd.test.js': `
import test from 'ava'
test('passes', (t) => t.pass())
`
}

test('each failure is shown, and the tests after it run', async (t) => {
  t.timeout(900_000)
  await symlink(join(project, 'node_modules'), join(folder, 'node_modules'))
  // Time enough for a file to start on a busy machine.
  const ava = { files: ['*.test.js'], concurrency: 4, timeout: '10m' }
  await writeFile(join(folder, 'package.json'), JSON.stringify({ type: 'module', ava }))
  for (const [name, text] of Object.entries(files)) await writeFile(join(folder, name), text)
  const child = spawn(process.execPath, [join(project, 'scripts/ava.mjs'), '--tap'], {
    cwd: folder,
    // Without what this test's own ava has told its worker.
    env: { PATH: process.env['PATH'], HOME: folder },
    stdio: ['ignore', 'pipe', 'pipe']
  })
  const [shown, complaints] = await Promise.all([text(child.stdout), text(child.stderr)])
  const results = shown.split('\n').filter((line) => /^(not )?ok /.test(line))
  // ava shows some of them twice on a busy machine.
  t.deepEqual(
    [...new Set(results.map((line) => line.replace(/ \d+ - /, ' ')))].toSorted(),
    [
      'not ok a › an error without frames',
      'not ok a › its own time is up',
      'not ok a › rejected with nothing',
      'not ok a › undefined is no number',
      'not ok c › a process that ends',
      'not ok c.test.js exited with a non-zero exit code: 1',
      'ok d › passes'
    ],
    complaints
  )
  t.regex(shown, /^1\.\.\d+$/m, 'it came to its end')
})
