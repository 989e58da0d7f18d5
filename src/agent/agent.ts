/** The agent's life: read the configuration, load sources, start walkers, listen; on SIGTERM everything in reverse. */
import { pino, type Logger } from 'pino'
import { readWithoutWaiting } from '../devicemapper/metadata-medium.ts'
import { letHeapGrow } from '../process/heap-growth.ts'
import { giveMemoryBack } from '../memory-after-bursts.ts'
import { sayReady } from '../process/service-manager.ts'
import { startedBefore, stopSignal } from '../process/stop-signal.ts'
import { packageVersion } from '../grpc/identity.ts'
import { startServer } from '../grpc/server.ts'
import { Certificates } from '../grpc/tls.ts'
import { type Monitoring, startMonitoring } from '../monitoring/monitoring.ts'
import { snapshotMetadataBackend } from './answers/backend.ts'
import { type AgentConfig, type AgentOptions, loadConfig } from './config.ts'
import { Inventory } from './inventory/inventory.ts'
import { logInventory } from './inventory/log.ts'
import { startLiveNode } from './live-node.ts'
import { AgentMetrics } from './metrics.ts'
import type { MetadataSnapshotLeases } from './leases/metadata-snapshot-lease.ts'
import { loadRecordedPool, type RecordedPool } from './answers/recorded-pool.ts'
import { Sources } from './answers/sources.ts'
import { ToolEngine } from './walks/tool-engine.ts'
import { answersWith } from './targets.ts'
import { Walkers } from './walks/walkers.ts'

/** Threads collect their garbage in less; what comes later stays until the next burst is over. Milliseconds. */
const REST_MS = 500

export interface Agent {
  /** Its addresses, as clients write them. */
  readonly addresses: readonly string[]
  /** Lets streams finish for a while, ends the rest, and releases everything. */
  stop(): Promise<void>
}

/**
 * Starts an agent in this process.
 *
 * @throws DM_RECORDED_POOL_INVALID, DM_SOCKET_IN_USE, DM_CONFIG_INVALID, and what opening the catalog and checking the
 *   tools throws
 */
// eslint-disable-next-line max-lines-per-function -- the order in which parts start, and stop, is read in one piece
export async function startAgent(config: AgentConfig, logger: Logger): Promise<Agent> {
  // The last to start is the first to stop.
  await using started = new AsyncDisposableStack()
  // This comes last: a thread that waits for a device that hangs keeps the process, and what another agent needs must
  // be free by then.
  const last = started.use(new AsyncDisposableStack())

  const certificates = config.tls && (await Certificates.load(config.tls, logger))
  started.defer(() => certificates?.close())
  const monitoring = await startMonitoring({ role: 'agent', listen: config.monitoring, certificates, logger })
  started.defer(() => monitoring.close())
  const metrics = new AgentMetrics(monitoring.registry)

  // This thread serves every client: it has looks of its own, and must not wait for them.
  await readWithoutWaiting(config.reads)
  const recorded = new Map<string, RecordedPool>()
  for (const [name, folder] of Object.entries(config.recorded)) recorded.set(name, await loadRecordedPool(name, folder))

  const live =
    (config.live ?? recorded.size === 0)
      ? await startLiveNode(config, { started, metrics, recorded, logger })
      : undefined
  if (live) {
    monitoring.readiness.add('catalog', async () => {
      await live.catalog.leases.list()
      return undefined
    })
  }
  const sources = live?.sources ?? new Sources(recorded)
  const tools = await startTools(config, live?.leases, metrics, logger)
  const walkers = startWalkers(config, tools, metrics)
  monitoring.readiness.add('walkers', () => {
    walkers.revive()
    return walkers.alive > 0 ? undefined : 'no walker thread stays alive; see the log, restart the agent'
  })
  last.defer(() => walkers.close())

  const recordedPools = Object.entries(config.recorded).map(([name, folder]) => ({
    ...{ name, folder, snapshots: [...(recorded.get(name)?.names ?? [])] }
  }))
  const inventory = new Inventory({
    ...{ live: live?.inventory, recordedPools, deadlineMs: config.examinationDeadlineSeconds * 1000 }
  })
  started.defer(() => inventory.close())

  const server = await startServer({
    ...serverOptions(config, certificates, monitoring),
    backend: snapshotMetadataBackend(
      sources,
      walkers,
      answersWith({ knowledge: live?.knowledge, bases: live?.bases, tools, logger, classic: live?.classic })
    ),
    // Anyone who can connect may change things: so by default only if that is the agent's own user.
    admin: (config.admin ?? (config.socketMode & 0o077) === 0) ? live?.admin : undefined,
    inventory,
    onBurstOver: () => {
      walkers.rest()
      // What the threads have freed goes back with the rest: so after them.
      setTimeout(giveMemoryBack, REST_MS).unref()
    },
    logger
  })
  monitoring.runs()
  logger.info(
    {
      ...{ addresses: server.addresses, monitoring: monitoring.address },
      ...{ serving: sources.description, version: packageVersion() }
    },
    'listening'
  )
  const stopping = new AbortController()
  void inventory.examineServed().then((examination) => {
    if (!stopping.signal.aborted) logInventory(examination, logger)
  })
  const running = started.move()
  return {
    addresses: server.addresses,
    async stop() {
      stopping.abort()
      monitoring.stops()
      logger.info({ streams: walkers.active }, 'stopping')
      await server.drain(config.drainSeconds * 1000)
      await running.disposeAsync()
      logger.info('stopped')
    }
  }
}

/** @param leases undefined: no pool in use is served. @throws what `ToolEngine.start` throws */
async function startTools(
  { engine, toolCommand }: AgentConfig,
  leases: MetadataSnapshotLeases | undefined,
  metrics: AgentMetrics,
  logger: Logger
): Promise<ToolEngine | undefined> {
  if (engine === 'native') return undefined
  const tools = await ToolEngine.start(engine, toolCommand, leases, logger)
  if (engine === 'both') metrics.watchChecks(tools.counts)
  return tools
}

function startWalkers(config: AgentConfig, tools: ToolEngine | undefined, metrics: AgentMetrics): Walkers {
  const walkers = new Walkers(config.walkers, {
    direct: config.directReads,
    reads: config.reads,
    readDeadlineMs: config.readDeadlineSeconds * 1000,
    readBytesPerSecond: config.readMebibytesPerSecond && config.readMebibytesPerSecond * 2 ** 20,
    startPrograms: tools !== undefined,
    onEnd: metrics.walkEnded
  })
  metrics.watchWalkers(walkers)
  return walkers
}

/** What a configuration file says of the server. */
function serverOptions(config: AgentConfig, certificates: Certificates | undefined, { observer }: Monitoring) {
  return {
    listen: config.listen,
    tls: certificates && config.tls && { certificates, clientName: config.tls.clientName },
    allowLoopbackTcp: config.allowLoopbackTcp,
    socketMode: config.socketMode,
    ...(config.socketGroup === undefined ? {} : { socketGroup: config.socketGroup }),
    identity: { driverName: config.driverName },
    observer,
    limits: {
      maxStreams: config.maxStreams,
      maxStreamsPerClient: config.maxStreamsPerClient,
      idleMs: config.idleSeconds * 1000
    }
  }
}

/**
 * Runs an agent until SIGTERM or SIGINT. If the signal comes during the start, the agent stops once it has started. A
 * second signal ends it at once. Logs are JSON lines on stdout.
 */
export async function runAgent(options: AgentOptions): Promise<void> {
  const asked = stopSignal()
  letHeapGrow()
  const config = await startedBefore(asked, loadConfig(options))
  const logger = pino({ level: config.logLevel, base: { name: 'deltamapper-agent' } })
  const agent = await startedBefore(asked, startAgent(config, logger))
  await sayReady()
  const signal = await asked
  logger.info({ signal }, 'asked to stop')
  await agent.stop()
}
