/**
 * Agents and routers in the process of the test, listening as they do in service: for tests that are not about processes.
 */
import type { ExecutionContext } from 'ava'
import { type Logger, pino } from 'pino'
import { startAgent } from '../../src/agent/agent.ts'
import { agentConfig } from '../../src/agent/config.ts'
import { routerConfig } from '../../src/router/config.ts'
import { startRouter } from '../../src/router/router.ts'

export interface Running {
  readonly addresses: readonly string[]
  /** What it has logged, line by line. */
  readonly log: Record<string, unknown>[]
  stop(): Promise<void>
}

export const runAgent = (t: ExecutionContext, config: object) =>
  run(t, (logger) => startAgent(agentConfig.parse({ drainSeconds: 0, ...config }), logger))

export const runRouter = (t: ExecutionContext, config: object) =>
  run(t, (logger) => startRouter(routerConfig.parse({ drainSeconds: 0, ...config }), logger))

async function run(
  t: ExecutionContext,
  start: (logger: Logger) => Promise<{ readonly addresses: readonly string[]; stop(): Promise<void> }>
): Promise<Running> {
  const log: Record<string, unknown>[] = []
  const logger = pino({}, { write: (line: string) => void log.push(JSON.parse(line) as Record<string, unknown>) })
  const started = await start(logger)
  let stopped: Promise<void> | undefined
  const stop = () => (stopped ??= started.stop())
  t.teardown(stop)
  return { addresses: started.addresses, log, stop }
}
