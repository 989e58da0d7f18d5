/**
 * Runs a TypeScript file of the checkout on the checkout's own Node, after installing what is missing: what the npm scripts call, from
 * whatever Node (20 or newer) the machine has. A shell that found `node` before the installation would go on with that one.
 *
 *   node scripts/run.mjs [--lab] FILE [ARGS…]     --lab: download the kernel lab first
 */
import { spawn } from 'node:child_process'
import { join } from 'node:path'
import { ensureDependencies, ensureLab, projectFolder, projectNode } from './setup.mjs'

const [first, ...rest] = process.argv.slice(2)
const [file, ...args] = first === '--lab' ? rest : [first, ...rest]
if (file === undefined) {
  console.error('usage: node scripts/run.mjs [--lab] FILE [ARGS…]')
  process.exit(2)
}
try {
  await ensureDependencies()
  const lab = first === '--lab' ? await ensureLab() : {}
  if (lab.unavailable !== undefined) throw new Error(lab.unavailable)
} catch (error) {
  console.error(`setup: ${error.message}`)
  process.exit(1)
}
const path = `${join(projectFolder, 'node_modules/.bin')}:${process.env.PATH}`
const child = spawn(projectNode, [join(projectFolder, file), ...args], {
  stdio: 'inherit',
  env: { ...process.env, PATH: path }
})
// Ctrl-C reaches the child by itself, which knows what to do; this process only waits for it.
process.on('SIGINT', () => undefined)
process.on('SIGTERM', () => child.kill('SIGTERM'))
child.on('exit', (status, signal) => {
  process.exitCode = status ?? (signal ? 128 : 1)
})
