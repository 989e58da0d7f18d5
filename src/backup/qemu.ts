/**
 * qemu-img and qemu-io, which do all that is done to qcow2 files. Nothing of that is written again here.
 *
 * They end when this process does, however it ends (PR_SET_PDEATHSIG, by setpriv of util-linux), and until they have
 * ended they hold the lock of the chain that they work on: they inherit its descriptor.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { constants } from 'node:os'
import { createInterface } from 'node:readline'
import { access } from 'node:fs/promises'
import { join } from 'node:path'
import { DeltamapperError } from '../errors.ts'
import { childEnvironment, searchPath } from '../search-path.ts'
import { targetFailure } from './target-failure.ts'

/** How much of what a tool complains of is kept, in characters. */
const MOST_SAID = 4000

export interface ToolRun {
  /** The folder in which names of files are. */
  readonly folder: string
  /** Descriptors that it inherits. */
  readonly inherits?: readonly number[]
  readonly signal?: AbortSignal | undefined
  /** Told of each line of stdout; a carriage return ends one, too. */
  readonly onLine?: (line: string) => void
  /** Exit statuses that are an answer. */
  readonly statuses?: readonly number[]
}

export interface ToolResult {
  readonly status: number
  readonly stdout: string
}

export type Tool = 'qemu-img' | 'qemu-io'

/**
 * Runs one to its end.
 *
 * @throws DM_TOOL_MISSING; DM_CHAIN_NO_SPACE, DM_CHAIN_READ_ONLY, DM_CHAIN_GONE where that is what it says; else
 *   DM_TOOL_FAILED; the signal's reason
 */
export async function runTool(tool: Tool, words: readonly string[], run: ToolRun): Promise<ToolResult> {
  const { folder, inherits = [], signal, onLine, statuses = [0] } = run
  signal?.throwIfAborted()
  const [program, ...args] = [...(await tied()), tool, ...words]
  const child = spawn(program, args, {
    cwd: folder,
    stdio: ['ignore', 'pipe', 'pipe', ...inherits],
    env: childEnvironment({ LC_ALL: 'C' })
  })
  const abort = () => child.kill('SIGKILL')
  signal?.addEventListener('abort', abort)
  try {
    const { status, stdout, stderr } = await collected(child, tool, onLine)
    signal?.throwIfAborted()
    if (statuses.includes(status)) return { status, stdout }
    const said = stderr.trim().replaceAll(/\s+/g, ' ')
    throw targetFailure(folder, said) ?? failed(tool, words, status, said)
  } finally {
    signal?.removeEventListener('abort', abort)
  }
}

/** What qemu-img calls itself. @throws DM_TOOL_MISSING */
export async function qemuVersion(): Promise<string> {
  const { stdout } = await runTool('qemu-img', ['--version'], { folder: '/' })
  return /version (\S+)/.exec(stdout)?.[1] ?? 'unknown'
}

let setpriv: Promise<string[]> | undefined

function tied(): Promise<string[]> {
  setpriv ??= Promise.any(
    searchPath(process.env['PATH'])
      .split(':')
      .map((folder) => access(join(folder, 'setpriv')))
  ).then(
    () => ['setpriv', '--pdeathsig', 'KILL', '--'],
    () => []
  )
  return setpriv
}

function collected(
  child: ChildProcess,
  tool: Tool,
  onLine: ((line: string) => void) | undefined
): Promise<ToolResult & { stderr: string }> {
  return new Promise((resolve, reject) => {
    let [stdout, stderr] = ['', '']
    child.stderr?.setEncoding('utf8').on('data', (text: string) => (stderr = (stderr + text).slice(-MOST_SAID)))
    if (onLine && child.stdout) createInterface({ input: child.stdout, crlfDelay: 0 }).on('line', onLine)
    else child.stdout?.setEncoding('utf8').on('data', (text: string) => (stdout += text))
    child.once('error', (cause) => reject(missing(tool, cause)))
    child.once('close', (code, killedBy) => {
      const status = code ?? 128 + (killedBy === null ? 0 : constants.signals[killedBy])
      // What setpriv and env say where they find no such program.
      if (status === 127 && /No such file/.test(stderr)) reject(missing(tool, new Error(stderr.trim())))
      else resolve({ status, stdout, stderr })
    })
  })
}

function missing(tool: Tool, cause: Error): DeltamapperError {
  return new DeltamapperError(
    'DM_TOOL_MISSING',
    `${tool} cannot be started (${cause.message})`,
    'install qemu-utils (Debian; elsewhere qemu-img), or put it on PATH',
    { cause }
  )
}

function failed(tool: Tool, words: readonly string[], status: number, said: string): DeltamapperError {
  return new DeltamapperError(
    'DM_TOOL_FAILED',
    `\`${tool} ${words.join(' ')}\` ended with status ${status}: ${said || 'without a word'}`,
    'put right what it complains of, and run it again: the chain is as it was'
  )
}
