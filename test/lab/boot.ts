/**
 * Boots a real Linux kernel as an ordinary process (user-mode Linux) and runs one command in it as root.
 *
 * The kernel's root file system is the host's, as the user who started it, so the command finds the checkout, its node_modules
 * and Node itself, and what it writes to the host's files stays. `/dev/ubda` is a sparse file of its own. Everything that belongs
 * to one run is in one temporary folder, so that any number of labs can run side by side.
 */
import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readFileSync, statfsSync } from 'node:fs'
import { copyFile, mkdir, mkdtemp, open, readFile, rm, symlink, truncate, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import type { Writable } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import { ensureLab, labEnvironment, LabUnavailable, projectFolder } from './packages.ts'
import { ensureRelease, hostFolders, type LabRelease, releaseEnvironment, releaseOf } from './releases.ts'

export { LabUnavailable, projectFolder } from './packages.ts'

const mebibyte = 2 ** 20

export interface LabOptions {
  /** The program to run inside and its arguments; found through the lab's PATH first, then the host's. */
  command: readonly string[]
  /** Whose kernel, LVM and tools: the machine's own Debian release's by default, or what LAB_RELEASE names. */
  release?: LabRelease | undefined
  /** More environment variables for the command. */
  environment?: Readonly<Record<string, string>>
  /** Where the command runs; the project's folder by default. */
  folder?: string
  /** Size of the fresh, sparse, zeroed disk `/dev/ubda` in bytes; 2 GiB by default. */
  diskBytes?: number
  /** A disk image to use as `/dev/ubda` instead: it outlives the run, and a killed kernel's next boot can find what survived. */
  disk?: string
  /** Memory of the kernel in MiB; 1024 by default. Taken from the host only as it is used. */
  memoryMiB?: number
  /** The kernel is killed after this many seconds, boot included; 120 by default. */
  timeoutSeconds?: number
  /** Called with output as it appears. Without it, the result holds the output. */
  onOutput?: (stream: 'stdout' | 'stderr', chunk: Buffer) => void
}

export interface LabResult {
  /** Exit status of the command; 128 + the signal's number when a signal ended it. */
  status: number
  stdout: string
  stderr: string
  /** Where the kernel's messages were kept; only when the status is not 0. */
  consoleLog?: string
}

/** The kernel ended without a result: it crashed, was killed, or its time was up. The message names the kept console log. */
export class LabFailure extends Error {
  override name = 'LabFailure'
}

export interface Lab {
  /** Resolves when the command has ended and the kernel is gone. Rejects with LabFailure. */
  readonly result: Promise<LabResult>
  /** Kills the kernel this instant, as a power cut would. */
  kill(): void
}

/** Boots, runs the command, and waits for its result. Throws LabUnavailable where the machine cannot run a lab. */
export async function runInLab(options: LabOptions): Promise<LabResult> {
  return (await startLab(options)).result
}

/** Boots and starts the command. Throws LabUnavailable where the machine cannot run a lab. */
export async function startLab(options: LabOptions): Promise<Lab> {
  const release = options.release ?? releaseOf(process.env['LAB_RELEASE'])
  const packages = release === undefined ? await ensureLab() : await ensureRelease(release)
  const hidden = ['/run', '/proc', '/sys', '/dev'].find((each) => `${projectFolder}/`.startsWith(`${each}/`))
  if (hidden !== undefined) {
    throw new LabUnavailable(
      `the kernel lab mounts its own ${hidden}, which would hide the checkout: move it elsewhere`
    )
  }
  const memoryMiB = options.memoryMiB ?? 1024
  const job = await mkdtemp(join(tmpdir(), 'deltamapper-lab-'))
  let kernel: ChildProcess
  try {
    const disk = options.disk === undefined ? join(job, 'disk') : resolve(options.disk)
    if (options.disk === undefined) {
      await writeFile(disk, '')
      await truncate(disk, options.diskBytes ?? 2048 * mebibyte)
    }
    const own = release === undefined ? labEnvironment(packages) : releaseEnvironment(release)
    const environment = { ...own, ...options.environment }
    await Promise.all([
      symlink(new URL('init.sh', import.meta.url).pathname, join(job, 'init')),
      // (Where the packages are, as a prefix of paths inside: a release is the root itself.)
      writeFile(join(job, 'lab'), release === undefined ? packages : ''),
      writeFile(join(job, 'folder'), options.folder ?? projectFolder),
      writeFile(join(job, 'command'), options.command.map((each) => `${each}\0`).join('')),
      writeFile(
        join(job, 'environment'),
        Object.entries(environment)
          .map(([name, value]) => `${name}=${value}\0`)
          .join('')
      ),
      ...['stdout', 'stderr'].map((each) => writeFile(join(job, each), ''))
    ])
    const root = release === undefined ? ownRoot(job) : await releaseRoot(release, packages, job)
    kernel = await spawnKernel(packages, job, root, disk, memoryMiB)
  } catch (error) {
    await rm(job, { recursive: true, force: true })
    throw error
  }
  const order = kernel.stdio[3] as Writable
  // The kernel may be gone already.
  order.on('error', () => undefined)
  const kill = () => void order.write('kill\n')
  const result = follow(kernel, job, options, kill).finally(() => rm(job, { recursive: true, force: true }))
  // Whoever only kills the lab need not look at its result.
  result.catch(() => undefined)
  return { result, kill }
}

/**
 * Stands between this process and the kernel. The kernel makes a process group (a session, in fact) of its own; that group, and
 * nothing else, is ended when the kernel itself ends (helpers of it would stay behind), when a line on descriptor 3 asks for it,
 * or when the other end of descriptor 3 is gone, and with it whoever would have removed the job folder.
 */
const guardian = `
job=$1; shift
"$@" 3<&- & kernel=$!
end() { kill -KILL -- "-$kernel" "$kernel"; } 2>&-
{ read -r <&3; gone=$?; trap "" TERM; end; exit $gone; } & watch=$!
wait "$kernel" 2>&-; status=$?
end; kill "$watch" 2>&-
wait "$watch" 2>&-; [ $? = 1 ] && rm -rf -- "$job"
exit "$status"`

/** The words that make the machine's own root the kernel's. */
function ownRoot(job: string): string[] {
  return ['rootflags=/', `init=${join(job, 'init')}`]
}

/** The words that make a release the kernel's root; the machine's own folders, but for its system, are there under their own paths. */
async function releaseRoot(release: LabRelease, root: string, job: string): Promise<string[]> {
  const folders = await hostFolders([projectFolder, job])
  for (const each of folders) await mkdir(join(root, each), { recursive: true })
  const words = [`rootflags=${root}`, 'init=/sbin/lab-init', `LAB_JOB=${job}`, `LAB_FOLDERS=${folders.join(':')}`]
  // Page faults and system calls inside cost a fraction of what they cost by ptrace. Kernels before 6.16 cannot.
  return release === 'trixie' ? words : [...words, 'seccomp=auto']
}

async function spawnKernel(
  packages: string,
  job: string,
  root: readonly string[],
  disk: string,
  memoryMiB: number
): Promise<ChildProcess> {
  const memoryFolder = placeForMemory(memoryMiB)
  const log = await open(join(job, 'console'), 'w')
  const words = [
    `mem=${memoryMiB}M`,
    ...['root=/dev/root', 'rootfstype=hostfs', 'rw', 'quiet', 'panic=1', ...root],
    `ubd0=${disk}`,
    `uml_dir=${job}`,
    ...['con=null', 'con0=null,fd:1']
  ]
  const spaced = words.find((each) => /\s/.test(each))
  if (spaced !== undefined) {
    throw new LabUnavailable(
      `a kernel's command line cannot hold spaces: ${spaced}; set TMPDIR to a folder without any`
    )
  }
  try {
    const kernel = spawn('bash', ['-c', guardian, 'guardian', job, join(packages, 'usr/bin/linux.uml'), ...words], {
      detached: true,
      stdio: ['ignore', log.fd, log.fd, 'pipe'],
      env: { PATH: process.env.PATH, TMPDIR: memoryFolder, HOME: job }
    })
    await once(kernel, 'spawn')
    return kernel
  } catch (error) {
    throw new LabUnavailable(`the kernel lab could not be started: ${(error as Error).message}`)
  } finally {
    await log.close()
  }
}

/**
 * The kernel's memory is a file (removed while in use) that it maps executable. Memory-backed is quicker, but containers often
 * have a /dev/shm of 64 MB, or one that is mounted noexec.
 */
export function placeForMemory(memoryMiB: number): string {
  const mounts = existsSync('/proc/mounts') ? readFileSync('/proc/mounts', 'utf8').split('\n') : []
  const shm = mounts.map((line) => line.split(' ')).findLast((fields) => fields[1] === '/dev/shm')
  if (shm?.[2] === 'tmpfs' && !/(^|,)noexec(,|$)/.test(shm[3] ?? '')) {
    const { bavail, bsize } = statfsSync('/dev/shm')
    if (bavail * bsize >= memoryMiB * mebibyte) return '/dev/shm'
  }
  return tmpdir()
}

async function follow(kernel: ChildProcess, job: string, options: LabOptions, kill: () => void): Promise<LabResult> {
  const kept: Record<'stdout' | 'stderr', Buffer[]> = { stdout: [], stderr: [] }
  const onOutput = options.onOutput ?? ((stream, chunk) => void kept[stream].push(chunk))
  const stdout = await open(join(job, 'stdout'))
  const stderr = await open(join(job, 'stderr'))
  const timeoutSeconds = options.timeoutSeconds ?? 120
  const deadline = performance.now() + timeoutSeconds * 1000
  let timedOut = false
  let ended = kernel.exitCode !== null || kernel.signalCode !== null
  const exit = ended ? undefined : once(kernel, 'exit').then(() => (ended = true))
  try {
    let graceUntil = Infinity
    while (!ended) {
      await Promise.race([exit, sleep(50)])
      await passOn(stdout, (chunk) => onOutput('stdout', chunk))
      await passOn(stderr, (chunk) => onOutput('stderr', chunk))
      // A result is there, but the kernel may be unable to halt (a stuck device): it is not waited for.
      if (graceUntil === Infinity && existsSync(join(job, 'status'))) graceUntil = performance.now() + 5000
      timedOut ||= performance.now() > deadline
      if (timedOut || performance.now() > graceUntil) kill()
    }
    await passOn(stdout, (chunk) => onOutput('stdout', chunk))
    await passOn(stderr, (chunk) => onOutput('stderr', chunk))
  } finally {
    await Promise.all([stdout.close(), stderr.close()])
  }
  const text = existsSync(join(job, 'status')) ? await readFile(join(job, 'status'), 'utf8') : undefined
  if (text !== undefined) {
    const status = Number(text)
    const output = { stdout: Buffer.concat(kept.stdout).toString(), stderr: Buffer.concat(kept.stderr).toString() }
    return status === 0 ? { status, ...output } : { status, ...output, consoleLog: await keepConsole(job) }
  }
  throw await failure(kernel, job, timedOut ? timeoutSeconds : undefined)
}

/** Hands on what was appended since the last call; the file position remembers how far that was. */
async function passOn(file: Awaited<ReturnType<typeof open>>, onChunk: (chunk: Buffer) => void): Promise<void> {
  for (;;) {
    const { bytesRead, buffer } = await file.read(Buffer.allocUnsafe(65536))
    if (bytesRead === 0) return
    onChunk(buffer.subarray(0, bytesRead))
  }
}

async function failure(kernel: ChildProcess, job: string, timeoutSeconds: number | undefined): Promise<Error> {
  const console = await readFile(join(job, 'console'), 'utf8')
  if (timeoutSeconds === undefined && !existsSync(join(job, 'started'))) {
    const last = console.trim().split('\n').slice(-2).join(' / ')
    return new LabUnavailable(
      `a user-mode kernel does not boot on this machine (it needs ptrace and executable memory): ${last}`
    )
  }
  const log = await keepConsole(job)
  if (timeoutSeconds !== undefined) {
    return new LabFailure(
      `the kernel lab was not done after ${timeoutSeconds} s and was killed; kernel messages: ${log}`
    )
  }
  const how = kernel.exitCode === 137 ? 'killed' : `exit status ${kernel.exitCode}`
  const last = console.trim().split('\n').slice(-3).join(' / ')
  return new LabFailure(`the lab's kernel ended without a result (${how}): ${last}; kernel messages: ${log}`)
}

async function keepConsole(job: string): Promise<string> {
  const folder = join(projectFolder, '.cache', 'lab-logs')
  await mkdir(folder, { recursive: true })
  const kept = join(folder, `${job.slice(job.lastIndexOf('/') + 1)}.log`)
  await copyFile(join(job, 'console'), kept)
  return kept
}
