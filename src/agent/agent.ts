/**
 * The agent's life: configuration in, sources loaded, walkers started, server listening; on SIGTERM everything in reverse.
 */
import { pino, type Logger } from 'pino'
import { asDeltamapperError } from '../errors.ts'
import { packageVersion } from '../grpc/identity.ts'
import { startServer } from '../grpc/server.ts'
import { snapshotMetadataBackend } from './backend.ts'
import { type AgentConfig, type AgentOptions, loadConfig } from './config.ts'
import { loadRecordedPool } from './recorded-pool.ts'
import type { SnapshotSource } from './snapshot-source.ts'
import { Walkers } from './walkers.ts'

export interface Agent {
  /** Where it listens, as clients would write it. */
  readonly addresses: readonly string[]
  /** Lets streams finish for a while, ends the rest, and releases everything. */
  stop(): Promise<void>
}

/**
 * Starts an agent in this process.
 *
 * @throws DM_RECORDED_POOL_INVALID, DM_SOCKET_IN_USE, DM_CONFIG_INVALID
 */
export async function startAgent(config: AgentConfig, logger: Logger): Promise<Agent> {
  const sources = new Map<string, SnapshotSource>()
  for (const [name, folder] of Object.entries(config.recorded)) sources.set(name, await loadRecordedPool(name, folder))

  const walkers = new Walkers(config.walkers, { direct: config.directReads })
  try {
    const server = await startServer({
      listen: config.listen,
      socketMode: config.socketMode,
      ...(config.socketGroup === undefined ? {} : { socketGroup: config.socketGroup }),
      backend: snapshotMetadataBackend(sources, walkers),
      identity: { driverName: config.driverName },
      logger
    })
    logger.info({ addresses: server.addresses, sources: [...sources.keys()], version: packageVersion() }, 'listening')
    return {
      addresses: server.addresses,
      async stop() {
        logger.info({ streams: walkers.active }, 'stopping')
        await server.drain(config.drainSeconds * 1000)
        await walkers.close()
        logger.info('stopped')
      }
    }
  } catch (error) {
    await walkers.close()
    throw error
  }
}

/** Runs an agent until SIGTERM or SIGINT; a second signal ends it at once. Logs are JSON lines on stdout. */
export async function runAgent(options: AgentOptions): Promise<void> {
  const config = await loadConfig(options)
  const logger = pino({ level: config.logLevel, base: { name: 'deltamapper-agent' } })
  const agent = await startAgent(config, logger)
  await new Promise<void>((resolve, reject) => {
    const stop = (signal: NodeJS.Signals) => {
      logger.info({ signal }, 'asked to stop')
      for (const each of signals) process.removeListener(each, stop)
      agent.stop().then(resolve, (error: unknown) => {
        reject(asDeltamapperError(error))
      })
    }
    const signals: NodeJS.Signals[] = ['SIGTERM', 'SIGINT']
    for (const each of signals) process.on(each, stop)
  })
}
