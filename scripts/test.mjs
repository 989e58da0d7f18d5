/**
 * `npm test`: everything, from a bare checkout, on the machine's own Node (20 or newer): installs what is missing, checks types,
 * lint and format, runs the tests that any machine can run, then those that need a real device-mapper inside the kernel lab.
 *
 *   node scripts/test.mjs [--no-lab] [--remember] [FILE…]     FILEs: only these test files, no checks
 *
 * `--remember` writes how long each kernel file took to test/kernel/seconds.json: the longest begin first, so that none is left
 * alone at the end. The last lines are the seconds of each part, and `N passed, N failed[, N skipped]`; the exit status is 0 only if
 * nothing failed. Where CI is set, the lab must run.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { clearTimeout, setTimeout } from 'node:timers'
import { ensureDependencies, ensureLab, projectFolder, projectNode } from './setup.mjs'

const bin = join(projectFolder, 'node_modules/.bin')
const options = process.argv.slice(2)
const withLab = !options.includes('--no-lab')
const remember = options.includes('--remember')
const files = options.filter((each) => !each.startsWith('--'))
/** A lab has one processor; each takes 1 GiB of memory. */
const labsAtOnce = Math.min(4, availableParallelism())
/** Whoever prints nothing for so long hangs: a process that something keeps from ending, say. */
const QUIET_MS = 30 * 60_000
const total = { passed: 0, failed: 0, skipped: 0 }
const started = Date.now()
/** Seconds of each part of the run. */
const took = []
const secondsFile = join(projectFolder, 'test/kernel/seconds.json')

await ensureDependencies()
if (files.length === 0) await part('check', () => Promise.all([check(), prepare()]))
await part('host tests', () =>
  tests(
    'host',
    files.filter((each) => !isKernelTest(each))
  )
)
await part('kernel lab', kernelTests)
console.log(`\n${took.join(', ')}; ${secondsSince(started)} s in all`)
console.log(`${total.passed} passed, ${total.failed} failed${total.skipped > 0 ? `, ${total.skipped} skipped` : ''}`)
process.exitCode = total.failed === 0 ? 0 : 1

async function part(name, work) {
  const began = Date.now()
  await work()
  took.push(`${name} ${secondsSince(began)} s`)
}

function secondsSince(moment) {
  return Math.round((Date.now() - moment) / 1000)
}

async function check() {
  console.log('# types, lint, format')
  const status = await run('npm', ['run', '--silent', 'check'], (line) => console.log(line))
  count(status === 0, 'npm run check')
}

/** What test files would fetch for themselves, some at the same time, and be given up for. They say what could not be had. */
async function prepare() {
  for (const each of ['deploy-tools', 'trixie-lvm', 'nbd-tools'])
    await run(projectNode, [`test/lab/${each}.ts`], () => undefined)
}

async function tests(where, chosen) {
  if (files.length > 0 && chosen.length === 0) return
  console.log(`# tests on this machine`)
  await tap(where, [join(bin, 'ava'), '--tap', ...chosen])
}

async function kernelTests() {
  const known = JSON.parse(readFileSync(secondsFile, 'utf8'))
  const all = readdirSync(join(projectFolder, 'test/kernel'))
    .filter((each) => each.endsWith('.test.ts'))
    .map((each) => `test/kernel/${each}`)
    // Those that take longest begin first, so that none is left alone at the end. Nobody knows how long a new one takes.
    .sort((one, other) => (known[other] ?? Infinity) - (known[one] ?? Infinity) || one.localeCompare(other))
  const chosen = files.length > 0 ? files.filter(isKernelTest) : all
  if (!withLab || chosen.length === 0) return
  const lab = await ensureLab()
  if (lab.unavailable !== undefined) {
    console.log(`# kernel lab: ${lab.unavailable}`)
    if (process.env.CI) count(false, 'the kernel lab is required where CI is set')
    else total.skipped += chosen.length
    return
  }
  console.log(
    `# ${chosen.length} files in the kernel lab, ${labsAtOnce} at once; what each has to say comes when it is done`
  )
  const waiting = [...chosen]
  const seconds = {}
  const oneAfterTheOther = async () => {
    for (let file; (file = waiting.shift()) !== undefined;) {
      const lines = []
      const began = Date.now()
      await tap(file, ['test/lab/run.ts', '--timeout', '1800', file], (line) => lines.push(line))
      seconds[file] = secondsSince(began)
      console.log(`# ${file} in the kernel lab: ${seconds[file]} s`)
      for (const line of lines) console.log(line)
    }
  }
  await Promise.all(Array.from({ length: labsAtOnce }, oneAfterTheOther))
  if (remember && chosen === all) {
    const inOrder = all.toSorted().map((file) => [file, seconds[file]])
    writeFileSync(secondsFile, `${JSON.stringify(Object.fromEntries(inOrder), null, 2)}\n`)
  }
}

/** Runs something that prints TAP, shows it, and counts its results. */
async function tap(name, args, show = (line) => console.log(line)) {
  const seen = { passed: 0, failed: 0 }
  const status = await run(projectNode, args, (line) => {
    show(line)
    // Indented lines belong to a result that has been counted.
    const result = /^(not )?ok \d+(?: - (.*))?$/.exec(line)
    if (!result) return
    if (/# (SKIP|TODO)\b/i.test(result[2] ?? '')) total.skipped++
    else if (result[1]) seen.failed++
    else seen.passed++
  })
  total.passed += seen.passed
  total.failed += seen.failed
  if (status !== 0 && seen.failed === 0) count(false, `${name}: ended with status ${status}`)
  else if (seen.passed + seen.failed === 0) count(false, `${name}: no test ran`)
}

function count(ok, name) {
  console.log(`${ok ? 'ok' : 'not ok'} - ${name}`)
  total[ok ? 'passed' : 'failed']++
}

function isKernelTest(file) {
  return file.includes('test/kernel/')
}

function run(program, args, onLine) {
  return new Promise((resolve, reject) => {
    const env = { ...process.env, PATH: `${bin}:${process.env.PATH}` }
    const child = spawn(program, args, { cwd: projectFolder, env, stdio: ['ignore', 'pipe', 'inherit'] })
    const hung = setTimeout(() => {
      console.log(`# nothing for ${QUIET_MS / 60_000} minutes, and so ended: ${program} ${args.join(' ')}`)
      child.kill()
    }, QUIET_MS)
    const lines = createInterface({ input: child.stdout })
    lines.on('line', (line) => {
      hung.refresh()
      onLine(line)
    })
    const shown = once(lines, 'close')
    child.on('error', reject)
    child.on('exit', (status, signal) => {
      clearTimeout(hung)
      shown.then(() => resolve(status ?? signal), reject)
    })
  })
}
