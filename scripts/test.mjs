/**
 * `npm test`: everything, from a bare checkout, on the machine's own Node (20 or newer): installs what is missing, checks types,
 * lint and format beside the tests that any machine can run, then runs those that need a kernel of their own.
 *
 *   node scripts/test.mjs [--no-lab] [--remember] [FILE…]     FILEs: only these test files, no checks
 *
 * `--remember` writes how long each kernel file took to test/kernel/seconds.json: the longest begin first, so that none is left
 * alone at the end, and short ones share a kernel. At the end what failed is shown once more, then the seconds of each part beside its
 * budget (CONTRIBUTING.md), and `N passed, N failed[, N skipped]`; the exit status is 0 only if nothing failed. Where CI is set, the lab must run.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { availableParallelism, totalmem } from 'node:os'
import { join, relative, resolve } from 'node:path'
import { createInterface } from 'node:readline'
import { clearTimeout, setTimeout } from 'node:timers'
import { ensureDependencies, ensureLab, projectFolder, projectNode } from './setup.mjs'

const bin = join(projectFolder, 'node_modules/.bin')
const ava = 'scripts/ava.mjs'
/** Types are not stripped anew in each of the hundreds of processes that tests start. */
const compiled = join(projectFolder, '.cache/compiled')
const options = process.argv.slice(2)
const withLab = !options.includes('--no-lab')
const remember = options.includes('--remember')
const files = options.filter((each) => !each.startsWith('--')).map((each) => relative(projectFolder, resolve(each)))
const GIBIBYTE = 2 ** 30
/** A lab has one processor, which waits now and then; each takes 1 GiB of memory, and a node process as much again. */
const labsAtOnce = Math.max(1, Math.min(availableParallelism() + 1, Math.floor(totalmem() / (2 * GIBIBYTE)), 5))
/** Whoever prints nothing for so long hangs: a process that something keeps from ending, say. */
const QUIET_MS = 60 * 60_000
/** Kernel files that take less share a kernel, until they take more together. Seconds. */
const SHORT_SECONDS = 25
const SHARED_SECONDS = 100
const total = { passed: 0, failed: 0, skipped: 0 }
/** The lines of each failure, which stand far above the end of a long output. */
const failures = []
/** Lines kept of one failure: its message and where it was, not all of a long difference. */
const FAILURE_LINES = 60
const started = Date.now()
/** What quickRelease() gives. */
let chosenRelease
const secondsFile = join(projectFolder, 'test/kernel/seconds.json')

/** Seconds on a quiet machine of two processors. Parts that share the kernels that run at once have their share of the time. */
const FIRST = 'check and host tests'
const parts = [
  { name: FIRST, budget: 180, files: /$^/ },
  { name: 'other kernels and a real init', budget: 180, files: /systemd|other-kernels|real-init|trixie|install/ },
  {
    name: 'classic snapshots, NBD, backups, simulation',
    budget: 180,
    files: /\/(classic-snapshots|base-records?|vanished|cow|nbd|backup|simulat)/
  },
  { name: 'kernel lab', budget: 360, files: /./ }
].map((part) => ({ ...part, seconds: 0 }))

await ensureDependencies()
await firstPart()
await kernelTests()
if (failures.length > 0)
  console.log(
    `\n# what failed:\n${failures
      .flat()
      .map((line) => `# ${line}`)
      .join('\n')}`
  )
console.log(`\n${parts.map(spent).join(', ')}; ${secondsSince(started)} s in all`)
console.log(`${total.passed} passed, ${total.failed} failed${total.skipped > 0 ? `, ${total.skipped} skipped` : ''}`)
process.exitCode = total.failed === 0 ? 0 : 1

function spent({ name, seconds, budget }) {
  return `${name} ${Math.round(seconds)} s of ${budget}${seconds > budget ? ' (OVER)' : ''}`
}

function secondsSince(moment) {
  return Math.round((Date.now() - moment) / 1000)
}

/** The checks take one processor, and are through before the tests are. */
async function firstPart() {
  const began = Date.now()
  const chosen = files.filter((each) => !ownsKernels(each))
  if (files.length > 0) {
    if (chosen.length > 0) await hostTests(chosen)
  } else {
    await prepare('deploy-tools', 'trixie-lvm', 'nbd-tools')
    // (What only kernel tests need comes meanwhile.)
    await Promise.all([
      check(),
      hostTests(hostFiles()),
      ...(withLab ? [quickRelease(), prepare('systemd', 'debian-root')] : [])
    ])
  }
  parts.find(({ name }) => name === FIRST).seconds = secondsSince(began)
}

function hostFiles() {
  return readdirSync(join(projectFolder, 'test'), { recursive: true })
    .map((name) => `test/${name}`)
    .filter((file) => file.endsWith('.test.ts') && !ownsKernels(file))
}

async function hostTests(chosen) {
  console.log(`# tests on this machine`)
  await tap('host', [ava, '--tap', ...chosen])
}

async function check() {
  const lines = []
  // (What is wrong with a file's format is said on stderr.)
  const status = await run('sh', ['-c', 'npm run --silent check 2>&1'], (line) => lines.push(line))
  console.log('# types, lint, format')
  for (const line of lines) console.log(line)
  count(status === 0, 'npm run check', lines)
}

/** What test files would fetch for themselves, some at the same time, and be given up for. They say what could not be had. */
async function prepare(...what) {
  for (const each of what) await run(projectNode, [`test/lab/${each}.ts`], () => undefined)
}

/** The release whose kernel most files run on; undefined where none can be had. It is looked for once. */
function quickRelease() {
  let release
  return (chosenRelease ??= run(projectNode, ['test/lab/quick-release.ts'], (line) => (release = line)).then(
    () => release
  ))
}

async function kernelTests() {
  const kernel = withLab ? (files.length === 0 ? kernelFiles() : files.filter(ownsKernels)) : []
  if (kernel.length === 0) return
  const lab = await ensureLab()
  if (lab.unavailable !== undefined) {
    console.log(`# kernel lab: ${lab.unavailable}`)
    if (process.env.CI) count(false, 'the kernel lab is required where CI is set')
    else total.skipped += kernel.length
    return
  }
  // Where starting a process takes a third of what it takes on 6.1. A slice runs on the machine's own (test/lab/other-kernels.test.ts), and
  // all of them on each kernel in `npm run soak` (docs/decisions/0023-kernel-of-the-tests-again.md).
  const release = await quickRelease()
  const onRelease = release === undefined ? {} : { LAB_RELEASE: release }
  console.log(`# kernel of the lab: ${release === undefined ? "the machine's own" : `that of Debian ${release}`}`)
  const program = mkdtempSync(join(projectFolder, '.cache/program-'))
  process.once('exit', () => rmSync(program, { recursive: true, force: true }))
  // As it is installed: an agent of one file starts in a third less time, and nothing else is said of its sources.
  const isBundled = (await run(projectNode, ['scripts/package/bundle.ts', program], () => undefined)) === 0
  if (!isBundled) count(false, 'the program could not be put together')
  const variables = { ...onRelease, ...(isBundled && { LAB_PROGRAM: join(program, 'bin/deltamapper.js') }) }
  const known = JSON.parse(readFileSync(secondsFile, 'utf8'))
  const waiting = shared(kernel, known)
  console.log(
    `# ${kernel.length} files with kernels of their own, ${labsAtOnce} at once; what each has to say comes when it is done`
  )
  const seconds = {}
  const oneAfterTheOther = async () => {
    for (let some; (some = waiting.shift()) !== undefined;)
      Object.assign(seconds, await inKernel(some, runsInside(some[0]) ? variables : onRelease))
  }
  await Promise.all(Array.from({ length: labsAtOnce }, oneAfterTheOther))
  if (remember) rememberSeconds(known, seconds)
}

/** Those that run inside of a kernel, and those of this machine that boot some. */
function kernelFiles() {
  return ['test/kernel', 'test/lab'].flatMap((folder) =>
    readdirSync(join(projectFolder, folder))
      .map((name) => `${folder}/${name}`)
      .filter(ownsKernels)
  )
}

function ownsKernels(file) {
  return /^test\/(kernel|lab)\/[^/]+\.test\.ts$/.test(file)
}

function runsInside(file) {
  return file.startsWith('test/kernel/')
}

/**
 * Which files share a kernel, those first that take longest, so that none is left alone at the end. Nobody knows how long a new one takes.
 */
function shared(kernel, known) {
  const secondsOf = (file) => known[file] ?? Infinity
  const longestFirst = kernel.toSorted((a, b) => secondsOf(b) - secondsOf(a) || a.localeCompare(b))
  const groups = []
  let open = { seconds: Infinity }
  for (const file of longestFirst) {
    const seconds = secondsOf(file)
    if (seconds > SHORT_SECONDS || !runsInside(file)) groups.push({ files: [file], seconds })
    else if (open.seconds + seconds > SHARED_SECONDS) groups.push((open = { files: [file], seconds }))
    else {
      open.files.push(file)
      open.seconds += seconds
    }
  }
  return groups.toSorted((a, b) => b.seconds - a.seconds).map((each) => each.files)
}

/** Runs files in one kernel, one after the other. @returns the seconds of each */
async function inKernel(some, variables) {
  const lines = []
  const seconds = {}
  const began = Date.now()
  let [current, since] = [some[0], began]
  const close = () => {
    const now = Date.now()
    seconds[current] = (seconds[current] ?? 0) + (now - since) / 1000
    since = now
  }
  const words = runsInside(some[0]) ? ['test/lab/run.ts', '--timeout', '3600', ...some] : [ava, '--tap', ...some]
  await tap(
    some.join(', '),
    words,
    (line) => {
      lines.push(line)
      // Where there are several files, a title begins with its file's name.
      const [, name] = /^(?:not )?ok \d+ - ([^ ]+) › /.exec(line) ?? []
      const next = some.find((each) => each.endsWith(`/${name}.test.ts`))
      close()
      current = next ?? current
    },
    variables
  )
  close()
  for (const file of some) {
    if (seconds[file] === undefined) count(false, `${file}: no test ran`)
    const part = parts.find((each) => each.files.test(file))
    part.seconds += (seconds[file] ?? 0) / labsAtOnce
    console.log(`# ${file}: ${Math.round(seconds[file] ?? 0)} s${some.length > 1 ? ' in a kernel with others' : ''}`)
  }
  for (const line of lines) console.log(line)
  return seconds
}

function rememberSeconds(known, seconds) {
  const rounded = Object.entries(seconds).map(([file, each]) => [file, Math.round(each)])
  const there = kernelFiles()
  const all = Object.entries({ ...known, ...Object.fromEntries(rounded) }).filter(([file]) => there.includes(file))
  const inOrder = all.toSorted(([one], [other]) => one.localeCompare(other))
  writeFileSync(secondsFile, `${JSON.stringify(Object.fromEntries(inOrder), null, 2)}\n`)
}

/** Runs something that prints TAP, shows it, and counts its results. */
async function tap(name, args, show = (line) => console.log(line), variables = {}) {
  const seen = { passed: 0, failed: 0, skipped: 0 }
  let ended = false
  let failure
  const status = await run(
    projectNode,
    args,
    (line) => {
      show(line)
      if (/^not ok /.test(line)) failures.push((failure = [`${name}: ${line}`]))
      else if (/^ /.test(line)) failure?.length < FAILURE_LINES && failure.push(line)
      else failure = undefined
      ended ||= /^1\.\.\d+$/.test(line)
      // Indented lines belong to a result that has been counted.
      const result = /^(not )?ok \d+(?: - (.*))?$/.exec(line)
      if (!result) return
      if (/# (SKIP|TODO)\b/i.test(result[2] ?? '')) seen.skipped++
      else if (result[1]) seen.failed++
      else seen.passed++
    },
    variables
  )
  total.passed += seen.passed
  total.failed += seen.failed
  total.skipped += seen.skipped
  if (!ended || (status !== 0 && seen.failed === 0)) count(false, `${name}: ended with status ${status}`)
  else if (seen.passed + seen.failed + seen.skipped === 0) count(false, `${name}: no test ran`)
}

function count(ok, name, lines = []) {
  console.log(`${ok ? 'ok' : 'not ok'} - ${name}`)
  if (!ok) failures.push([`not ok - ${name}`, ...lines.slice(0, FAILURE_LINES)])
  total[ok ? 'passed' : 'failed']++
}

function run(program, args, onLine, variables = {}) {
  return new Promise((resolve, reject) => {
    const env = { NODE_COMPILE_CACHE: compiled, ...process.env, ...variables, PATH: `${bin}:${process.env.PATH}` }
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
