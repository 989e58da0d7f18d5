/**
 * Runs one LVM command: no shell, a deadline, bounded output, and a certain end.
 *
 * LVM blocks where a disk or a lock does, and a caller that merely stops waiting leaves processes behind that pile up.
 * So the command gets a process group of its own (it may be `nsenter … lvm`, which is two processes), and the group is
 * killed when its time is up. A process that hangs in the kernel survives even that. `gone` resolves when it has really
 * ended, so that no next one is started before.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { constants } from 'node:os'
import { DeltamapperError, notStarted } from '../../errors.ts'
import { isExhausted } from '../../system-errors.ts'
import { childEnvironment } from '../../search-path.ts'

/** How much of stderr is kept, in bytes: the end, because a talkative program names the error last. */
const MAX_STDERR_BYTES = 16384

export interface CommandLimits {
  /** The command is killed after this many milliseconds. */
  deadlineMs: number
  /** The command is killed once it has written more than this to stdout. */
  maxOutputBytes: number
  /** The command is killed when this is aborted, and `result` rejects with its reason, a DeltamapperError. */
  signal?: AbortSignal | undefined
  /** Descriptors that it inherits. (LVM itself closes what it does not know.) */
  inherits?: readonly number[]
}

export interface CommandResult {
  /** Exit status; 128 + its number when a signal ended the command, as in a shell. */
  exitCode: number
  stdout: string
  /** The last 16 KiB of stderr. */
  stderr: string
}

export interface RunningCommand {
  /** The process group; undefined when the command could not be started. */
  readonly pid: number | undefined
  /**
   * Resolves for any exit status. Rejects with DM_LVM_FAILED: cannot be started, not done in time, too much output; or
   * with the signal's reason.
   */
  readonly result: Promise<CommandResult>
  /** Resolves when no process of it is left. */
  readonly gone: Promise<void>
}

/** LVM's message on one line: it indents messages, and often has several. */
export function oneLine(stderr: string): string {
  const lines = stderr.split('\n').map((line) => line.trim())
  const said = lines.filter((line) => line !== '').join('; ')
  return said.length > 500 ? `${said.slice(0, 500)} …` : said
}

/** A command line for people, as one would type it into a shell. */
export function describeCommand(words: readonly string[]): string {
  return words.map((word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`)).join(' ')
}

/**
 * @param words the program (found through PATH) and its arguments
 * @param described what errors call it
 */
export function startCommand(
  words: readonly string[],
  limits: CommandLimits,
  described: string = describeCommand(words)
): RunningCommand {
  const [program = '', ...args] = words
  if (limits.signal?.aborted) {
    return { pid: undefined, result: Promise.reject(limits.signal.reason as Error), gone: Promise.resolve() }
  }
  let child: ChildProcess
  try {
    child = spawn(program, args, {
      detached: true,
      stdio: ['ignore', 'pipe', 'pipe', ...(limits.inherits ?? [])],
      // LVM's messages are in the language of the locale, and some versions format numbers by it.
      env: childEnvironment({ LC_ALL: 'C', LVM_SUPPRESS_FD_WARNINGS: '1' })
    })
  } catch (error) {
    // Some failures (no memory, a NUL in a word) are thrown, others arrive as an event.
    return { pid: undefined, result: Promise.reject(startError(described, error as Error)), gone: Promise.resolve() }
  }
  const gone = new Promise<void>((resolve) => {
    child.once('close', () => resolve())
    // Without a process (and without its pipes, when descriptors have run out) there may be no other event.
    child.once('error', () => child.pid === undefined && resolve())
  })
  return { pid: child.pid, result: collect(child, described, limits), gone }
}

function collect(
  child: ChildProcess,
  described: string,
  { deadlineMs, maxOutputBytes, signal }: CommandLimits
): Promise<CommandResult> {
  let limit = maxOutputBytes
  const stdout: Buffer[] = []
  let stderr: Buffer = Buffer.alloc(0)
  let stdoutBytes = 0
  return new Promise((resolve, reject) => {
    const end = () => {
      clearTimeout(timer)
      signal?.removeEventListener('abort', abort)
    }
    const kill = () => {
      end()
      killGroup(child)
      // Read and drop the rest: a full pipe would keep a process that is not killed yet.
      stdout.length = 0
      limit = Infinity
    }
    const giveUp = (what: string, remedy: string) => {
      kill()
      const said = oneLine(stderr.toString())
      reject(new DeltamapperError('DM_LVM_FAILED', `${what}${said && `: ${said}`}`, remedy))
    }
    const abort = () => {
      kill()
      reject(signal?.reason as Error)
    }
    signal?.addEventListener('abort', abort)
    const timer = setTimeout(() => {
      giveUp(
        `\`${described}\` was not done after ${(deadlineMs / 1000).toFixed(1)} s and was killed`,
        'find out which disk or lock it waits for; ask again'
      )
    }, deadlineMs)
    child.stdout?.on('data', (chunk: Buffer) => {
      if (limit === Infinity) return
      stdoutBytes += chunk.length
      if (stdoutBytes > limit) {
        giveUp(`\`${described}\` wrote more than ${limit} bytes`, 'raise the limit if the volume group is that large')
      } else stdout.push(chunk)
    })
    child.stderr?.on('data', (chunk: Buffer) => {
      stderr = Buffer.concat([stderr, chunk]).subarray(-MAX_STDERR_BYTES)
    })
    child.once('error', (cause) => {
      end()
      reject(startError(described, cause))
    })
    child.once('close', (code, killedBy) => {
      end()
      resolve({
        exitCode: code ?? 128 + (killedBy === null ? 0 : constants.signals[killedBy]),
        stdout: Buffer.concat(stdout).toString(),
        stderr: stderr.toString()
      })
    })
  })
}

function startError(described: string, cause: Error): DeltamapperError {
  if (isExhausted(cause)) return notStarted(`\`${described}\``, cause)
  return new DeltamapperError(
    'DM_LVM_FAILED',
    `\`${described}\` could not be started (${cause.message})`,
    "install lvm2, or configure the command line that reaches the host's",
    { cause }
  )
}

function killGroup({ pid }: ChildProcess): void {
  if (pid === undefined) return
  try {
    process.kill(-pid, 'SIGKILL')
  } catch {
    // It ended in the same moment, or belongs to another user (`sudo lvm`): then it ends when LVM does, and nothing is
    // started before.
  }
}
