/**
 * The shell scripts in deploy/: bash and shellcheck have nothing to say of them, and they stop at the first thing that fails.
 */
import { execFile } from 'node:child_process'
import { readdir, readFile, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import test from 'ava'
import { shellcheck } from '../lab/deploy-tools.ts'
import { project, runTool, toolTest } from './tools.ts'

const scripts = (await readdir(join(project, 'deploy'), { recursive: true }))
  .filter((name) => name.endsWith('.sh'))
  .map((name) => join('deploy', name))

test('bash understands each', async (t) => {
  t.true(scripts.length >= 2)
  for (const script of scripts) {
    await t.notThrowsAsync(() => promisify(execFile)('bash', ['-n', script], { cwd: project }), script)
    const text = await readFile(join(project, script), 'utf8')
    t.true(text.startsWith('#!/usr/bin/env bash\n# '), `${script} begins with what it is for`)
    t.regex(text, /^set -euo pipefail$/m, script)
    t.is((await stat(join(project, script))).mode & 0o111, 0o111, `${script} can be run`)
  }
})

toolTest('shellcheck finds nothing', async (t) => {
  const { status, stdout, stderr } = await runTool(shellcheck(), ['--external-sources', ...scripts])
  t.is(status, 0, stdout + stderr)
})
