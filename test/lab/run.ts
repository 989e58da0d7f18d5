/**
 * The command line of the kernel lab: runs one script or test file in a fresh kernel and passes its output and exit status on.
 */
import { parseArgs } from 'node:util'
import { relative, resolve } from 'node:path'
import { existsSync } from 'node:fs'
import { LabFailure, LabUnavailable, projectFolder, startLab } from './boot.ts'
import { type LabRelease, releaseOf } from './releases.ts'

const help = `Usage: node test/lab/run.ts [OPTIONS] FILE [ARGS…]

Boots a real Linux kernel with device-mapper (user-mode Linux: no root, no VM) and runs FILE in it as root.
  FILE.test.ts    with ava, as TAP; ARGS are more options for ava, or more test files, which share the kernel
  FILE.ts, .mjs   with the checkout's own Node
  any other       as a bash script

Inside, the host's files are there under their own paths, /dev/ubda is an empty disk, dmsetup, lvm, thin_delta and the like
are on the PATH, and TMPDIR is in memory. Variables named LAB_… are passed on: LAB_SEED and LAB_COUNT are what random tests take
their seed and their number of rounds from. Exit status: that of FILE; 3 when this machine cannot run a lab; 4 when the
kernel died or its time was up (its messages are kept in .cache/lab-logs/).

Options:
  --release NAME  kernel, LVM and tools of this Debian release: trixie (Linux 6.12), forky (7.2) or sid (7.2 and later), with its own root;
                  by default of the machine's own (Debian 12 has 6.1). LAB_RELEASE says the same
  --disk SIZE     size of /dev/ubda, such as 512M or 8G (sparse; default 2G)
  --memory MB     memory of the kernel in MiB (default 1024)
  --timeout S     kill the kernel after S seconds (default 120)
  --help          this text
`

/** The command that runs a file inside the lab, by the kind of file it is. */
export function commandFor(file: string, args: readonly string[]): string[] {
  const bin = resolve(projectFolder, 'node_modules/.bin')
  if (file.endsWith('.test.ts')) {
    const test = relative(projectFolder, resolve(file))
    return [`${bin}/node`, 'scripts/ava.mjs', '--config', 'ava.lab.config.js', '--tap', test, ...args]
  }
  if (/\.(ts|mjs|js)$/.test(file)) return [`${bin}/node`, resolve(file), ...args]
  return ['bash', resolve(file), ...args]
}

/**
 * The environment inside: nothing of the host's is of use there but what is meant for the lab. What Node has compiled is kept outside:
 * every start of a Node, and tests start many, takes several times as long without.
 */
export function labVariables(environment: NodeJS.ProcessEnv): Record<string, string> {
  const passedOn = Object.entries(environment).filter((each): each is [string, string] => each[0].startsWith('LAB_'))
  return { NODE_COMPILE_CACHE: resolve(projectFolder, '.cache/compiled'), ...Object.fromEntries(passedOn) }
}

/** Bytes from a number with an optional K, M, G or T (powers of 1024). */
export function parseSize(text: string): number {
  const match = /^([0-9]{1,15})([KMGT]?)(?:i?B)?$/i.exec(text)
  const bytes = match === null ? NaN : Number(match[1]) * 1024 ** ' KMGT'.indexOf((match[2] || ' ').toUpperCase())
  if (!Number.isSafeInteger(bytes) || bytes <= 0) throw new UsageError(`--disk wants a size such as 2G, not ${text}`)
  return bytes
}

class UsageError extends Error {}

function wholeNumber(option: string, text: string): number {
  if (!/^[1-9][0-9]{0,6}$/.test(text)) throw new UsageError(`${option} wants a whole number above 0, not ${text}`)
  return Number(text)
}

function releaseNamed(text: string | undefined): LabRelease | undefined {
  try {
    return releaseOf(text)
  } catch (error) {
    throw new UsageError((error as Error).message)
  }
}

async function main(argv: readonly string[]): Promise<number> {
  // Options end at FILE: what follows belongs to it.
  let fileAt = 0
  while (argv[fileAt]?.startsWith('-')) {
    fileAt += ['--release', '--disk', '--memory', '--timeout'].includes(argv[fileAt] ?? '') ? 2 : 1
  }
  let options
  try {
    options = parseArgs({
      args: argv.slice(0, fileAt),
      options: {
        release: { type: 'string' },
        disk: { type: 'string' },
        memory: { type: 'string' },
        timeout: { type: 'string' },
        help: { type: 'boolean', short: 'h' }
      }
    }).values
  } catch (error) {
    throw new UsageError((error as Error).message)
  }
  if (options.help) {
    process.stdout.write(help)
    return 0
  }
  const file = argv[fileAt]
  if (file === undefined) throw new UsageError('no FILE given')
  if (!existsSync(file)) throw new UsageError(`${file} does not exist`)
  const lab = await startLab({
    release: releaseNamed(options.release ?? process.env['LAB_RELEASE']),
    command: commandFor(file, argv.slice(fileAt + 1)),
    folder: file.endsWith('.test.ts') ? projectFolder : process.cwd(),
    environment: labVariables(process.env),
    ...(options.disk !== undefined && { diskBytes: parseSize(options.disk) }),
    ...(options.memory !== undefined && { memoryMiB: wholeNumber('--memory', options.memory) }),
    ...(options.timeout !== undefined && { timeoutSeconds: wholeNumber('--timeout', options.timeout) }),
    onOutput: (stream, chunk) => process[stream].write(chunk)
  })
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.once(signal, () => lab.kill())
  const result = await lab.result
  if (result.consoleLog !== undefined)
    console.error(`lab: exit status ${result.status}; kernel messages: ${result.consoleLog}`)
  return result.status
}

if (import.meta.main) {
  try {
    process.exitCode = await main(process.argv.slice(2))
  } catch (error) {
    if (error instanceof UsageError) {
      console.error(`lab: ${error.message}\n\n${help}`)
      process.exitCode = 2
    } else if (error instanceof LabUnavailable || error instanceof LabFailure) {
      console.error(`lab: ${error.message}`)
      process.exitCode = error instanceof LabUnavailable ? 3 : 4
    } else throw error
  }
}
