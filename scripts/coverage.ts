/**
 * How much of src/ and native/ the tests of this machine run: `npm run coverage [-- FILE…]`. What runs inside the kernel lab is not counted, so
 * the figure of what works on live devices is lower than what is tested. A report to click through is in .cache/coverage/index.html.
 */
import { spawnSync } from 'node:child_process'
import { rmSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

const project = fileURLToPath(new URL('..', import.meta.url))
const folder = '.cache/coverage'
rmSync(join(project, folder), { recursive: true, force: true })
const { status } = spawnSync(
  process.execPath,
  [
    'node_modules/c8/bin/c8.js',
    ...[
      '--reporter',
      'text-summary',
      '--reporter',
      'html',
      '--report-dir',
      folder,
      '--temp-directory',
      `${folder}/raw`
    ],
    // Files that no test loads count as well.
    ...['--all', '--src', 'src', '--src', 'native', '--include', 'src/**/*.ts', '--include', 'native/**/*.ts'],
    ...[process.execPath, 'node_modules/ava/entrypoints/cli.mjs', ...process.argv.slice(2)]
  ],
  { cwd: project, stdio: 'inherit' }
)
process.exitCode = status ?? 1
