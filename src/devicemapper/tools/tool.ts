/**
 * Runs one of thin-provisioning-tools: no shell, its output read at our pace, its stderr in the error, and killed as
 * soon as nobody wants it any more.
 *
 * Exit statuses: 0.x ends with 1 for every error and prints its usage after the message; 1.x ends with 64, and with 2
 * for arguments that it does not understand.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { DeltamapperError, type ErrorCode, notStarted } from '../../errors.ts'
import { isExhausted } from '../../system-errors.ts'
import { childEnvironment } from '../../search-path.ts'
import { describeVersion, faultOf, parseToolVersion, type ToolVersion } from './tool-version.ts'

export type ToolName = 'thin_delta' | 'thin_dump'

/**
 * Words before a tool's name, to reach another host's (`nsenter …`) or another folder's (`env PATH=…`); mostly none.
 */
export type ToolCommand = readonly string[]

export interface ToolOptions {
  readonly command: ToolCommand
  /** Ends the tool. */
  readonly signal?: AbortSignal | undefined
  /** A descriptor of ours that the tool gets as its fourth, DESCRIPTOR_PATH. */
  readonly descriptor?: number | undefined
}

/** The path of that descriptor for the tool: opening it opens the same device again, whatever its name leads to now. */
export const DESCRIPTOR_PATH = '/proc/self/fd/3'

/** How much of stderr is kept, in bytes, and how much of that is passed on, in characters. */
const MAX_STDERR_BYTES = 16384
const MAX_SAID = 400
/** How long a tool may take to print its version, in milliseconds. */
const VERSION_DEADLINE_MS = 20_000
/** Exit status of 1.x for arguments that it does not understand. */
const USAGE_STATUS = 2
/** Exit statuses of `env`, `nsenter` and the like for a program that cannot be started. */
const NOT_STARTED_STATUS = [126, 127]

/** Messages of the tools, and what they mean here. Everything else is DM_TOOL_FAILED. */
const understood: readonly { says: RegExp; code: ErrorCode; remedy: string }[] = [
  {
    says: /resource busy/i,
    code: 'DM_DEVICE_BUSY',
    remedy: 'ask the agent, which holds a metadata snapshot for the tools, or ask without them (--engine native)'
  },
  { says: /no current metadata snap/i, code: 'DM_LEASE_LOST', remedy: 'ask again from the beginning' },
  {
    says: /checksum|damage/i,
    code: 'DM_METADATA_DAMAGED',
    remedy: "take a full backup; run thin_check on the pool's metadata"
  }
]

/**
 * The output of a tool.
 *
 * @throws DM_TOOL_MISSING, DM_TOOL_UNFIT, DM_TOOL_FAILED, and what `understood` returns, at the end; the signal's
 *   reason at once
 */
export async function* toolOutput(
  name: ToolName,
  args: readonly string[],
  { command, signal, descriptor }: ToolOptions
): AsyncGenerator<Buffer> {
  signal?.throwIfAborted()
  const child = start(name, [...command, name, ...args], descriptor)
  const ended = endOf(child, name)
  const { stdout } = child
  if (!stdout) {
    // No descriptors were left for its pipes: there is no process, and the error comes as an event.
    await ended
    return
  }
  const stderr = keepStart(child)
  const aborted = Promise.withResolvers<never>()
  aborted.promise.catch(() => undefined)
  const abort = () => {
    killGroup(child)
    // Not awaited: a process that hangs in the kernel does not die of it.
    stdout.destroy()
    aborted.reject(signal?.reason as Error)
  }
  signal?.addEventListener('abort', abort, { once: true })
  try {
    for await (const chunk of stdout as AsyncIterable<Buffer>) yield chunk
    const { status, killedBy } = await Promise.race([ended, aborted.promise])
    if (status !== 0) throw failure(name, status ?? killedBy, stderr())
  } catch (error) {
    signal?.throwIfAborted()
    throw error
  } finally {
    signal?.removeEventListener('abort', abort)
    killGroup(child)
    stdout.destroy()
  }
}

/**
 * The version of a tool, if it may be believed.
 *
 * @throws DM_TOOL_UNFIT when it answers wrongly, or its answers are unknown; DM_TOOL_MISSING, DM_TOOL_FAILED
 */
export async function checkTool(name: ToolName, command: ToolCommand): Promise<ToolVersion> {
  const signal = AbortSignal.timeout(VERSION_DEADLINE_MS)
  const printed: Buffer[] = []
  try {
    for await (const chunk of toolOutput(name, ['--version'], { command, signal })) printed.push(chunk)
  } catch (error) {
    if (!signal.aborted) throw error
    throw new DeltamapperError(
      'DM_TOOL_FAILED',
      `${name} --version was not done after ${VERSION_DEADLINE_MS / 1000} s`,
      'find out what it waits for'
    )
  }
  const text = Buffer.concat(printed).toString()
  const version = parseToolVersion(text)
  const fault = version === undefined ? `says ${JSON.stringify(text.slice(0, 80))}` : faultOf(version)
  if (version !== undefined && fault === undefined) return version
  const named = version === undefined ? name : `${name} ${describeVersion(version)}`
  throw new DeltamapperError(
    'DM_TOOL_UNFIT',
    `${named} ${fault}`,
    'install thin-provisioning-tools 0.9.0, or 1.0.6 or later; or do without the tools (engine native)'
  )
}

function failure(name: ToolName, status: number | string | undefined, said: string): DeltamapperError {
  const what = `${name} ended with ${typeof status === 'number' ? `status ${status}` : (status ?? 'no status')}`
  const whole = said === '' ? what : `${what}: ${said}`
  if (NOT_STARTED_STATUS.includes(Number(status))) return missing(name, said)
  if (status === USAGE_STATUS || /unrecognized option/.test(said)) {
    return new DeltamapperError('DM_TOOL_UNFIT', whole, 'install another version of thin-provisioning-tools')
  }
  const known = understood.find(({ says }) => says.test(said))
  if (known !== undefined) return new DeltamapperError(known.code, whole, known.remedy)
  return new DeltamapperError(
    'DM_TOOL_FAILED',
    whole,
    'see what it says when it is run by hand; the native engine needs no tools'
  )
}

/** Some failures (no memory) are thrown, others arrive as an event. @throws DM_TOOL_MISSING, DM_TOOL_FAILED */
function start(name: ToolName, [program, ...words]: readonly string[], descriptor: number | undefined): ChildProcess {
  try {
    return spawn(program, words, {
      // A process group of its own: it may be `nsenter …`, which is two processes.
      detached: true,
      stdio: ['ignore', 'pipe', 'pipe', ...(descriptor === undefined ? [] : [descriptor])],
      env: childEnvironment({ LC_ALL: 'C' })
    })
  } catch (error) {
    throw cannotStart(name, error as NodeJS.ErrnoException)
  }
}

function cannotStart(name: ToolName, cause: NodeJS.ErrnoException): DeltamapperError {
  return isExhausted(cause) ? notStarted(name, cause) : missing(name, cause.message, cause)
}

function missing(name: ToolName, why: string, cause?: unknown): DeltamapperError {
  return new DeltamapperError(
    'DM_TOOL_MISSING',
    `${name} could not be started (${why})`,
    'install thin-provisioning-tools (device-mapper-persistent-data); the native engine needs no tools',
    { cause }
  )
}

/** The first lines of stderr, without the usage that 0.x adds. */
function keepStart({ stderr }: ChildProcess): () => string {
  const kept: Buffer[] = []
  let bytes = 0
  stderr?.on('data', (chunk: Buffer) => {
    // Read and drop the rest: a full pipe would stop the tool.
    if (bytes < MAX_STDERR_BYTES) kept.push(chunk.subarray(0, MAX_STDERR_BYTES - bytes))
    bytes += chunk.length
  })
  return () => {
    const [message = ''] = Buffer.concat(kept)
      .toString()
      .split(/^Usage:/m)
    const lines = message.split('\n').map((line) => line.trim())
    return lines
      .filter((line) => line !== '')
      .join('; ')
      .slice(0, MAX_SAID)
  }
}

function endOf(
  child: ChildProcess,
  name: ToolName
): Promise<{ status: number | undefined; killedBy: string | undefined }> {
  const ended = new Promise<{ status: number | undefined; killedBy: string | undefined }>((resolve, reject) => {
    child.once('close', (status, killedBy) => {
      resolve({ status: status ?? undefined, killedBy: killedBy ?? undefined })
    })
    child.once('error', (cause) => {
      reject(cannotStart(name, cause))
    })
  })
  ended.catch(() => undefined)
  return ended
}

function killGroup({ pid, exitCode, signalCode }: ChildProcess): void {
  if (pid === undefined || exitCode !== null || signalCode !== null) return
  try {
    process.kill(-pid, 'SIGKILL')
  } catch {
    // It ended in the same moment.
  }
}
