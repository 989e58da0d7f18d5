/**
 * Agents and routers as processes of their own, as they run in service, for tests.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import type { ExecutionContext } from 'ava'
import { command, nodeFlags } from '../cli/run-command.ts'
import { InspectedMemory } from './reachable-memory.ts'

/** What node itself says on stderr of its inspector. */
const aboutInspector = /^(For help, see: https:\/\/nodejs\.org|Debugger (attached|ending)|Waiting for the debugger)/

/** A `deltamapper` process that listens. */
export class Listener {
  readonly child: ChildProcess
  readonly log: Record<string, unknown>[] = []
  readonly exit: Promise<unknown>
  /** Where its inspector listens. */
  readonly #inspector: Promise<string>
  #memory: Promise<InspectedMemory> | undefined

  private constructor(child: ChildProcess) {
    this.child = child
    this.exit = once(child, 'close')
    this.#inspector = new Promise((resolve) => {
      createInterface(child.stderr!).on('line', (line) => {
        const [, address] = /^Debugger listening on (\S+)$/.exec(line) ?? []
        if (address !== undefined) resolve(address)
        else if (!aboutInspector.test(line)) process.stderr.write(`${line}\n`)
      })
    })
  }

  static async start(
    t: ExecutionContext,
    folder: string,
    which: 'agent' | 'router',
    config: object
  ): Promise<Listener> {
    const file = join(folder, `${which}-${Math.random()}.json`)
    await writeFile(file, JSON.stringify({ drainSeconds: 0, ...config }))
    const args = [...nodeFlags, '--inspect=127.0.0.1:0', command, which, '--config', file]
    const listener = new Listener(spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'pipe'] }))
    t.teardown(() => listener.kill())
    const listening = new Promise<void>((resolve) => {
      createInterface(listener.child.stdout!).on('line', (line) => {
        listener.log.push(JSON.parse(line) as Record<string, unknown>)
        if (listener.said('listening')) resolve()
      })
    })
    await Promise.race([listening, listener.exit])
    if (!listener.said('listening')) throw new Error(`the ${which} does not listen`)
    return listener
  }

  said(what: string): Record<string, unknown> | undefined {
    return this.log.find(({ msg }) => msg === what)
  }

  get addresses(): string[] {
    return this.said('listening')!['addresses'] as string[]
  }

  /** Bytes that it refers to, garbage collected. */
  async reachableMemory(): Promise<number> {
    this.#memory ??= InspectedMemory.connect(await this.#inspector)
    return (await this.#memory).reachable()
  }

  async kill(): Promise<void> {
    this.child.kill('SIGKILL')
    await this.exit
  }
}
