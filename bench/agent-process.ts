/**
 * A real agent or router in a process of its own, as users run it, and the log line with which it ends each call.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { createInterface } from 'node:readline'
import { projectFolder, projectNode } from '../scripts/setup.mjs'

/** What is logged at the end of a call, as far as benchmarks read it. */
export interface CallLog {
  method: string
  status: string
  durationMs: number
  firstMessageMs: number
  statistics: { nodesRead: number; bytesRead: number; readCalls: number; extents: number }
}

export interface AgentProcess {
  /** Its unix socket. */
  readonly address: string
  /** All addresses, as it logs them. */
  readonly addresses: readonly string[]
  readonly pid: number
  /** The log line of the call that ends next. */
  nextCall(): Promise<CallLog>
  stop(): Promise<void>
}

/** @param config fields of the configuration file; `listen` comes after the unix socket */
export async function startAgentProcess(
  config: Record<string, unknown>,
  which: 'agent' | 'router' = 'agent'
): Promise<AgentProcess> {
  const folder = await mkdtemp(join(tmpdir(), 'deltamapper-bench-'))
  const address = `unix://${folder}/${which}.sock`
  const file = join(folder, `${which}.yaml`)
  const listen = [address, ...((config['listen'] as string[] | undefined) ?? [])]
  await writeFile(file, JSON.stringify({ ...config, listen }))
  // By its own first line, which says how Node is to be started.
  const child: ChildProcess = spawn(join(projectFolder, 'bin/deltamapper.js'), [which, '--config', file], {
    env: { ...process.env, PATH: `${dirname(projectNode)}:${process.env['PATH']}` },
    stdio: ['ignore', 'pipe', 'inherit']
  })
  if (!child.stdout || child.pid === undefined) throw new Error(`the ${which} could not be started`)
  const waiting: {
    wants: (line: Record<string, unknown>) => boolean
    found: (line: Record<string, unknown>) => void
  }[] = []
  const next = (wants: (line: Record<string, unknown>) => boolean) =>
    new Promise<Record<string, unknown>>((found) => waiting.push({ wants, found }))
  createInterface({ input: child.stdout }).on('line', (text) => {
    const line = JSON.parse(text) as Record<string, unknown>
    const index = waiting.findIndex(({ wants }) => wants(line))
    if (index >= 0) waiting.splice(index, 1)[0].found(line)
  })
  const listening = next((line) => line['msg'] === 'listening')
  const first = await Promise.race([
    listening,
    once(child, 'exit').then(() => Promise.reject(new Error(`the ${which} ended before it listened`)))
  ])
  return {
    address,
    addresses: first['addresses'] as string[],
    pid: child.pid,
    nextCall: async () => (await next((line) => 'method' in line && 'status' in line)) as unknown as CallLog,
    async stop() {
      const gone = once(child, 'exit')
      child.kill('SIGTERM')
      await gone
      await rm(folder, { recursive: true })
    }
  }
}
