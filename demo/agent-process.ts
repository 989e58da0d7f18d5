/**
 * The agent as a process of its own, as it runs in service: started, waited for, listened to, stopped.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'

const checkoutCommand = fileURLToPath(new URL('../bin/deltamapper.js', import.meta.url))
/** Whoever takes longer hangs: nothing is to be concluded from how long a busy machine takes. */
const START_WITHIN_MS = 15 * 60_000
const STOP_WITHIN_MS = 5 * 60_000

/** What the agent is to serve: a recorded pool, or what its configuration file says. */
export type Serving = { name: string; folder: string } | { configFile: string }

/** What the agent logs of a call that has ended, as far as the demos read it. */
export interface CallLog {
  method: string
  status: string
  durationMs: number
  /** Left out where nothing was read. */
  statistics?: { nodesRead: number; bytesRead: number }
}

export interface AgentProcess {
  readonly pid: number
  /** The log line of the call that ends next. */
  nextCall(): Promise<CallLog>
  /** Ends it as a service manager would; resolves with its exit status, null if it had to be killed. */
  stop(): Promise<number | null>
  /** Ends it as a crash would. */
  kill(): Promise<void>
}

/**
 * Starts `deltamapper agent`, and resolves once it listens.
 *
 * @param address where it is to listen
 * @param command the `deltamapper` to run, by default that of this checkout
 */
export async function startAgentProcess(
  address: string,
  serving: Serving,
  command = checkoutCommand
): Promise<AgentProcess> {
  const source =
    'configFile' in serving ? ['--config', serving.configFile] : ['--recorded', `${serving.name}=${serving.folder}`]
  const child = spawn(process.execPath, [command, 'agent', '--listen', address, ...source], {
    stdio: ['ignore', 'pipe', 'pipe']
  })
  const exited = once(child, 'exit')
  // Whoever waits for the next call is told when there will be none.
  const callWaiters: PromiseWithResolvers<CallLog>[] = []
  let complaint = ''
  child.stderr.setEncoding('utf8').on('data', (text: string) => (complaint += text))

  async function end(signal: 'SIGTERM' | 'SIGKILL'): Promise<number | null> {
    if (child.exitCode === null && child.signalCode === null) {
      child.kill(signal)
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
        if (line.includes('"msg":"call"')) callWaiters.shift()?.resolve(JSON.parse(line) as CallLog)
      })
      const ended = () => {
        const error = new Error(`the agent ended: ${complaint.trim()}`)
        for (const each of callWaiters.splice(0)) each.reject(error)
        reject(error)
      }
      exited.then(ended, ended)
      setTimeout(() => reject(new Error('the agent does not listen after a quarter of an hour')), START_WITHIN_MS).unref()
    })
  } catch (error) {
    await end('SIGTERM')
    throw error
  }
  return {
    pid: child.pid ?? 0,
    nextCall() {
      const waiter = Promise.withResolvers<CallLog>()
      callWaiters.push(waiter)
      return waiter.promise
    },
    stop: () => end('SIGTERM'),
    async kill() {
      await end('SIGKILL')
    }
  }
}
