/**
 * The agent as a process of its own, as it runs in service: started, waited for, stopped.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'

const checkoutCommand = fileURLToPath(new URL('../bin/deltamapper.js', import.meta.url))
const START_WITHIN_MS = 20_000
const STOP_WITHIN_MS = 5_000

export interface AgentProcess {
  readonly pid: number
  /** Ends it as a service manager would; resolves with its exit status, null if it had to be killed. */
  stop(): Promise<number | null>
}

/**
 * Starts `deltamapper agent` on a recorded pool, and resolves once it listens.
 *
 * @param address where it is to listen
 * @param pool name and folder of the recorded pool
 * @param command the `deltamapper` to run, by default that of this checkout
 */
export async function startAgentProcess(
  address: string,
  pool: { name: string; folder: string },
  command = checkoutCommand
): Promise<AgentProcess> {
  const args = [command, 'agent', '--listen', address, '--recorded', `${pool.name}=${pool.folder}`]
  const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'pipe'] })
  const exited = once(child, 'exit')
  let complaint = ''
  child.stderr.setEncoding('utf8').on('data', (text: string) => (complaint += text))

  async function stop(): Promise<number | null> {
    if (child.exitCode === null && child.signalCode === null) {
      child.kill('SIGTERM')
      const timer = setTimeout(() => child.kill('SIGKILL'), STOP_WITHIN_MS)
      await exited
      clearTimeout(timer)
    }
    return child.exitCode
  }

  try {
    await new Promise<void>((resolve, reject) => {
      // Takes the log to its end: an agent whose log nobody reads would come to wait for its reader.
      createInterface(child.stdout).on('line', (line) => {
        if (line.includes('"msg":"listening"')) resolve()
      })
      const ended = () => reject(new Error(`the agent did not start: ${complaint.trim()}`))
      exited.then(ended, ended)
      setTimeout(() => reject(new Error('the agent does not listen after 20 seconds')), START_WITHIN_MS).unref()
    })
  } catch (error) {
    await stop()
    throw error
  }
  return { pid: child.pid ?? 0, stop }
}
