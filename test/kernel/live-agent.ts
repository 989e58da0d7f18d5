/**
 * A real agent inside the kernel lab, as a process of its own: what it serves is asked over its socket, what it uses is seen from
 * outside, in /proc.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { connect, type SnapshotMetadataClient } from '../../src/grpc/client.ts'
import { command } from '../cli/run-command.ts'

// As the command's first line has it: an agent of 16 MiB less costs the lab a tenth of its start.
const flags = ['--max-semi-space-size=1']
/** Busy as the lab may be, an agent that has not listened by then never will. Milliseconds. */
const START_WITHIN_MS = 180_000

/** One line of the agent's log. */
export type LogLine = Readonly<Record<string, unknown>>

/** What an agent uses, as the kernel counts it. */
export interface Usage {
  /** Open file descriptors. */
  files: number
  threads: number
  /** Processes it has started that are there now. */
  children: number
  /** Resident memory, now and at its most, in MiB. */
  memoryMiB: number
  peakMemoryMiB: number
}

export interface LiveAgentOptions {
  /** Fields of the configuration file; `live` is set. */
  config?: object
  /** Words to start the agent with, before its own: to run it in another namespace, for one. */
  prefix?: readonly string[]
}

export class LiveAgent {
  readonly address: string
  readonly child: ChildProcess
  /** Since the start, or since it was last emptied. */
  log: LogLine[] = []
  stderr = ''
  /** How it ended. */
  readonly exit: Promise<{ status: number | null; signal: string | null }>
  readonly #folder: string
  readonly #clients = new Set<SnapshotMetadataClient>()
  readonly #listening: Promise<void>

  private constructor({ config = {}, prefix = [] }: LiveAgentOptions) {
    this.#folder = mkdtempSync(join(tmpdir(), 'agent-'))
    this.address = `unix://${this.#folder}/agent.sock`
    const file = join(this.#folder, 'config.json')
    const catalog = join(this.#folder, 'catalog')
    writeFileSync(file, JSON.stringify({ live: true, walkers: 2, catalog, ...config, listen: [this.address] }))
    const [program, ...args] = [...prefix, process.execPath, ...flags, command, 'agent', '--config', file]
    this.child = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'] })
    this.exit = once(this.child, 'close').then(([status, signal]) => ({
      status: status as number | null,
      signal: signal as string | null
    }))
    this.child.stderr?.setEncoding('utf8').on('data', (text: string) => (this.stderr += text))
    this.#listening = new Promise((resolve) => {
      createInterface(this.child.stdout!).on('line', (text) => {
        const line = JSON.parse(text) as LogLine
        this.log.push(line)
        if (line['msg'] === 'listening') resolve()
      })
    })
  }

  /** Starts it and does not wait: `started` does. */
  static launch(options: LiveAgentOptions = {}): LiveAgent {
    return new LiveAgent(options)
  }

  static async start(options: LiveAgentOptions = {}): Promise<LiveAgent> {
    const agent = new LiveAgent(options)
    await agent.started()
    return agent
  }

  /** Resolves once it listens. @throws what it said when it ended instead */
  async started(): Promise<void> {
    const timer = Promise.withResolvers<string>()
    const timeout = setTimeout(() => timer.resolve('it does not listen'), START_WITHIN_MS)
    const ended = this.exit.then(({ status, signal }) => `it ended (${status ?? signal})`)
    const problem = await Promise.race([this.#listening, ended, timer.promise])
    clearTimeout(timeout)
    if (problem === undefined) return
    await this.kill()
    throw new Error(`the agent did not start: ${problem}: ${this.stderr.trim()}`)
  }

  get pid(): number {
    return this.child.pid ?? 0
  }

  /** A connection of its own. */
  client(): SnapshotMetadataClient {
    const client = connect(this.address)
    this.#clients.add(client)
    return client
  }

  usage(): Usage {
    const status = readFileSync(`/proc/${this.pid}/status`, 'utf8')
    const count = (field: string) => Number(new RegExp(`^${field}:\\s+(\\d+)`, 'm').exec(status)?.[1])
    return {
      files: readdirSync(`/proc/${this.pid}/fd`).length,
      threads: count('Threads'),
      children: this.children().length,
      memoryMiB: count('VmRSS') / 1024,
      peakMemoryMiB: count('VmHWM') / 1024
    }
  }

  /** What its descriptors are open on, for whoever has to explain one too many. */
  openFiles(): string[] {
    const folder = `/proc/${this.pid}/fd`
    return readdirSync(folder).flatMap((each) => {
      try {
        return `${each} ${readlinkSync(join(folder, each))}`
      } catch {
        return []
      }
    })
  }

  /** Its child processes: number and command line. */
  children(): string[] {
    return processes().flatMap(({ pid, parent, words }) => (parent === this.pid ? [`${pid} ${words}`] : []))
  }

  /** SIGKILL, and nothing after it: its folder stays, because its keepers note there what they release. */
  async kill(): Promise<void> {
    this.child.kill('SIGKILL')
    await this.#gone()
  }

  /** SIGTERM; resolves with its exit status, null when a signal ended it. */
  async stop(): Promise<number | null> {
    this.child.kill('SIGTERM')
    const status = await this.#gone()
    rmSync(this.#folder, { recursive: true, force: true })
    return status
  }

  async #gone(): Promise<number | null> {
    const { status } = await this.exit
    for (const client of this.#clients) client.close()
    return status
  }
}

export interface ProcessSeen {
  pid: number
  parent: number
  /** The state's letter, proc(5): `D` waits uninterruptibly, `Z` has ended. */
  state: string
  /** Its command line, as far as one is to be seen. */
  words: string
}

/** Every process there is. */
export function processes(): ProcessSeen[] {
  return readdirSync('/proc').flatMap((each) => {
    if (!/^\d+$/.test(each)) return []
    try {
      const stat = readFileSync(`/proc/${each}/stat`, 'utf8')
      // The name is in parentheses, and may hold some itself.
      const [state = '', parent] = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
      const words = readFileSync(`/proc/${each}/cmdline`, 'utf8').replaceAll('\0', ' ').trim()
      return { pid: Number(each), parent: Number(parent), state, words }
    } catch {
      return []
    }
  })
}
