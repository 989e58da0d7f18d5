/**
 * The agent as a process of its own, as it runs in service: started, waited for, stopped.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'

const command = fileURLToPath(new URL('../bin/deltamapper.js', import.meta.url))
const START_WITHIN_MS = 20_000
const STOP_WITHIN_MS = 5_000

export interface AgentProcess {
  stop(): Promise<void>
}

/**
 * Starts `deltamapper agent` on a recorded pool, and resolves once it listens.
 *
 * @param address where it is to listen
 * @param pool name and folder of the recorded pool
 */
export async function startAgentProcess(
  address: string,
  pool: { name: string; folder: string }
): Promise<AgentProcess> {
  const args = [command, 'agent', '--listen', address, '--recorded', `${pool.name}=${pool.folder}`]
  const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'pipe'] })
  const exited = once(child, 'exit')
  let complaint = ''
  child.stderr.setEncoding('utf8').on('data', (text: string) => (complaint += text))

  const listening = new Promise<void>((resolve, reject) => {
    // Reads the log to its end: an agent whose log nobody takes would wait for ever.
    createInterface(child.stdout).on('line', (line) => {
      if (line.includes('"msg":"listening"')) resolve()
    })
    exited.then(
      () => reject(new Error(`the agent did not start: ${complaint.trim()}`)),
      (error: unknown) => reject(error as Error)
    )
    setTimeout(() => reject(new Error('the agent does not listen after 20 seconds')), START_WITHIN_MS).unref()
  })

  async function stop(): Promise<void> {
    if (child.exitCode !== null || child.signalCode !== null) return
    child.kill('SIGTERM')
    const timer = setTimeout(() => child.kill('SIGKILL'), STOP_WITHIN_MS)
    await exited
    clearTimeout(timer)
  }

  try {
    await listening
  } catch (error) {
    await stop()
    throw error
  }
  return { stop }
}
