/**
 * Runs `deltamapper` as a person would: a process of its own, seen from the outside only.
 */
import { type ChildProcessByStdio, spawn } from 'node:child_process'
import { once } from 'node:events'
import type { Readable } from 'node:stream'
import { fileURLToPath } from 'node:url'

/** LAB_PROGRAM is the same one put together as it is installed: in the lab it starts in a third less time (scripts/test.mjs). */
export const command = process.env['LAB_PROGRAM'] ?? fileURLToPath(new URL('../../bin/deltamapper.js', import.meta.url))
/** What the first line of the command gives to node: for processes whose memory counts. */
export const nodeFlags = ['--max-semi-space-size=1']

/** Tests of a file run all at once; processes should not. */
const MOST_AT_ONCE = 4
let running = 0
const waiting: (() => void)[] = []

export interface CommandResult {
  /** Exit status, or null when a signal ended it. */
  status: number | null
  stdout: string
  stderr: string
}

export interface CommandOptions {
  env?: NodeJS.ProcessEnv
  /** Options for node itself. */
  nodeOptions?: string[]
  /** Another command than this checkout's. */
  path?: string
}

/** Runs it to its end. */
export async function runCommand(args: string[], options: CommandOptions = {}): Promise<CommandResult> {
  while (running >= MOST_AT_ONCE) await new Promise<void>((resolve) => waiting.push(resolve))
  running++
  try {
    const child = startCommand(args, options)
    let stdout = ''
    let stderr = ''
    child.stdout.setEncoding('utf8').on('data', (text: string) => (stdout += text))
    child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text))
    const [status] = (await once(child, 'close')) as [number | null]
    return { status, stdout, stderr }
  } finally {
    running--
    waiting.shift()?.()
  }
}

export function startCommand(
  args: string[],
  { env = {}, nodeOptions = [], path = command }: CommandOptions = {}
): ChildProcessByStdio<null, Readable, Readable> {
  return spawn(process.execPath, [...nodeOptions, path, ...args], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, DELTAMAPPER_ENDPOINT: '', ...env }
  })
}

/** How a started command ends and what it says on stderr, also when nobody takes its stdout. */
export async function outcome(child: ReturnType<typeof startCommand>): Promise<CommandResult> {
  let stderr = ''
  child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text))
  const [[status]] = (await Promise.all([once(child, 'exit'), once(child.stderr, 'close')])) as [
    [number | null],
    unknown
  ]
  child.stdout.destroy()
  return { status, stdout: '', stderr }
}

/** Whether a failure was told as promised: one line of ours, with a code, last on stderr, and no stack trace anywhere. */
export function complaint({ stderr }: CommandResult): string {
  const lines = stderr.trimEnd().split('\n')
  const last = lines.at(-1) ?? ''
  if (!/^deltamapper: .+; .+ \(DM_[A-Z_]+\)$/.test(last))
    throw new Error(`stderr does not end with a complaint: ${stderr}`)
  if (lines.some((line) => !line.startsWith('deltamapper: '))) throw new Error(`stderr has other lines: ${stderr}`)
  return last
}
