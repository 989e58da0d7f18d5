/**
 * Gets a fresh checkout ready, and costs nothing when it is. Plain JavaScript without dependencies: it runs on the machine's own
 * Node (20 or newer), before node_modules exists, and brings the Node that everything else runs on.
 *
 *   node scripts/setup.mjs          install node_modules as package-lock.json says
 *   node scripts/setup.mjs --lab    also download the kernel lab (test/lab/)
 */
import { execFile } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'

export const projectFolder = fileURLToPath(new URL('..', import.meta.url)).replace(/\/$/, '')

/** The Node of the checkout: every other script and test runs on it. */
export const projectNode = join(projectFolder, 'node_modules/.bin/node')

/** Runs `npm ci` when node_modules is not what package-lock.json says. Throws an Error with npm's output when that fails. */
export async function ensureDependencies() {
  if (dependenciesInstalled()) return
  await withLock('setup', async () => {
    // Another process may have installed them while this one waited.
    if (dependenciesInstalled()) return
    console.error('setup: installing the dependencies (npm ci)')
    await run('npm', ['ci', '--no-audit', '--no-fund'])
    if (!dependenciesInstalled()) {
      throw new Error(
        'npm ci ended well, but node_modules is not what package-lock.json says (install scripts switched off?)'
      )
    }
  })
}

/**
 * Downloads and unpacks the kernel lab when it is not there. Resolves to `{ folder }`, or to `{ unavailable: why }` on a machine
 * that cannot have one; the caller says which tests that leaves out.
 */
export async function ensureLab() {
  try {
    const { stdout } = await run(projectNode, [join(projectFolder, 'test/lab/packages.ts')])
    return { folder: stdout.trim() }
  } catch (error) {
    if (error.status === 3) return { unavailable: error.output }
    throw error
  }
}

/** Compares npm's own record of what it installed with the lock file: file times would lie after a checkout or a copy. */
function dependenciesInstalled() {
  let wanted, installed
  try {
    wanted = JSON.parse(readFileSync(join(projectFolder, 'package-lock.json'), 'utf8')).packages
    installed = JSON.parse(readFileSync(join(projectFolder, 'node_modules/.package-lock.json'), 'utf8')).packages
  } catch {
    return false
  }
  const same = Object.entries(wanted).every(([path, { version, integrity, optional, devOptional, peer }]) => {
    if (path === '') return true
    const found = installed[path]
    // What is for other platforms only is rightly absent.
    if (found === undefined) return Boolean(optional || devOptional || peer)
    return found.version === version && found.integrity === integrity
  })
  return same && Object.keys(installed).every((path) => path in wanted) && existsSync(projectNode)
}

/**
 * Lets one process at a time through. The lock is a folder that appears with its owner's process id already in it (a rename is
 * atomic, and fails while the lock is held); a lock whose owner is gone is moved away.
 */
async function withLock(name, work) {
  const cache = join(projectFolder, '.cache')
  mkdirSync(cache, { recursive: true })
  const lock = join(cache, `${name}.lock`)
  const own = mkdtempSync(join(cache, `${name}-`))
  writeFileSync(join(own, 'owner'), String(process.pid))
  try {
    while (!moved(own, lock)) {
      const owner = ownerOf(lock)
      if (owner !== undefined && !isAlive(owner)) {
        const old = mkdtempSync(join(cache, `${name}-`))
        if (moved(lock, old) && ownerOf(old) !== owner) moved(old, lock)
        rmSync(old, { recursive: true, force: true })
      }
      await sleep(100)
    }
    try {
      await work()
    } finally {
      rmSync(lock, { recursive: true, force: true })
    }
  } finally {
    rmSync(own, { recursive: true, force: true })
  }
}

function moved(from, to) {
  try {
    renameSync(from, to)
    return true
  } catch (error) {
    if (['ENOTEMPTY', 'EEXIST', 'ENOENT'].includes(error.code)) return false
    throw error
  }
}

function ownerOf(lock) {
  try {
    return Number(readFileSync(join(lock, 'owner'), 'utf8'))
  } catch {
    return undefined
  }
}

function isAlive(pid) {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return error.code === 'EPERM'
  }
}

/** Runs a program quietly; its output matters only when it fails. */
function run(program, args) {
  return new Promise((resolve, reject) => {
    execFile(program, args, { cwd: projectFolder, maxBuffer: 2 ** 26 }, (error, stdout, stderr) => {
      if (error === null) return resolve({ stdout })
      const output = `${stdout}${stderr}`.trim()
      const how = typeof error.code === 'number' ? `exit status ${error.code}` : (error.signal ?? error.code)
      const failure = new Error(`${program} ${args[0]} failed (${how})\n${output}`)
      reject(Object.assign(failure, { status: error.code, output }))
    })
  })
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const options = process.argv.slice(2)
  if (options.some((each) => each !== '--lab')) {
    console.error('usage: node scripts/setup.mjs [--lab]')
    process.exit(2)
  }
  try {
    await ensureDependencies()
    const lab = options.includes('--lab') ? await ensureLab() : {}
    if (lab.unavailable !== undefined) {
      console.error(`setup: ${lab.unavailable}`)
      process.exitCode = 3
    }
  } catch (error) {
    console.error(`setup: ${error.message}`)
    process.exitCode = 1
  }
}
