/**
 * Where several test files share one kernel, each finds it as the first one did: no process, mount, device or file of those before it, and an
 * empty disk. ava loads this before each file (ava.lab.config.js). It does nothing outside of the lab.
 */
import { execFileSync } from 'node:child_process'
import { cpSync, existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

/** What the first file found: the names in /dev, and LVM's configuration. */
const found = '/run/first-found'

function run(program: string, ...args: string[]): string {
  return execFileSync(program, args, { encoding: 'utf8', timeout: 60_000, stdio: ['ignore', 'pipe', 'inherit'] })
}

function noteWhatIsThere(): void {
  writeFileSync(found, JSON.stringify(readdirSync('/dev')))
  cpSync('/run/lvm', `${found}-lvm`, { recursive: true })
}

/** @throws where something cannot be removed: the next file would fail for a reason that is not its own */
function tidy(): void {
  endProcesses()
  const mounts = readFileSync('/proc/mounts', 'utf8').trim().split('\n')
  for (const [source = '', place = ''] of mounts.map((line) => line.split(' ')).toReversed()) {
    if (/^\/dev\/(mapper|ubd|loop|dm-)/.test(source)) run('umount', place)
  }
  run('dmsetup', 'remove_all', '--force')
  const left = run('dmsetup', 'ls').trim()
  if (left !== 'No devices found') throw new Error(`devices of the file before could not be removed: ${left}`)
  run('losetup', '--detach-all')
  const before = JSON.parse(readFileSync(found, 'utf8')) as string[]
  // (LVM's folders of links. Nodes are the kernel's own.)
  for (const each of readdirSync('/dev', { withFileTypes: true })) {
    if (each.isDirectory() && !before.includes(each.name)) rmSync(join('/dev', each.name), { recursive: true })
  }
  run('blkdiscard', '--force', '/dev/ubda')
  for (const name of readdirSync('/run/tmp')) rmSync(join('/run/tmp', name), { recursive: true })
  rmSync('/run/lvm', { recursive: true })
  cpSync(`${found}-lvm`, '/run/lvm', { recursive: true })
}

/** Kills what is neither the kernel's nor above this process. */
function endProcesses(): void {
  const ours = new Set<number>()
  for (let pid = process.pid; pid > 0; pid = parentOf(pid)) ours.add(pid)
  for (const pid of readdirSync('/proc')
    .filter((name) => /^[0-9]+$/.test(name))
    .map(Number)) {
    try {
      if (!ours.has(pid) && readFileSync(`/proc/${pid}/cmdline`, 'utf8') !== '') process.kill(pid, 'SIGKILL')
    } catch (error) {
      // It has ended by itself.
      if (!['ENOENT', 'ESRCH'].includes((error as NodeJS.ErrnoException).code ?? '')) throw error
    }
  }
}

function parentOf(pid: number): number {
  const [, parent] = /\) \S (\d+) /.exec(readFileSync(`/proc/${pid}/stat`, 'latin1')) ?? []
  return Number(parent ?? 0)
}

if (readFileSync('/proc/cpuinfo', 'utf8').includes('User Mode Linux')) {
  if (existsSync(found)) tidy()
  else noteWhatIsThere()
}
