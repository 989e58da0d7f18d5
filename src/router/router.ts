/**
 * The router's life: read the configuration, listen; on SIGTERM the reverse. It looks for agents when it needs them, so
 * either may start first. It keeps no state: any number of routers may run.
 */
import { pino, type Logger } from 'pino'
import { AgentChannels } from './relay/agent-channels.ts'
import { packageVersion } from '../grpc/identity.ts'
import { hasSnapshot, routerBackend } from './relay/relay.ts'
import { startServer } from '../grpc/server.ts'
import { Certificates } from '../grpc/tls.ts'
import { letHeapGrow } from '../process/heap-growth.ts'
import { giveMemoryBack } from '../memory-after-bursts.ts'
import { startMonitoring } from '../monitoring/monitoring.ts'
import { sayReady } from '../process/service-manager.ts'
import { startedBefore, stopSignal } from '../process/stop-signal.ts'
import { kindsByName, makeDriver } from './drivers/kinds.ts'
import { loadConfig, type RouterConfig, type RouterOptions } from './config.ts'
import { type Agents, fixedAgents } from './relay/agents.ts'
import { handlePattern, readHandle } from './drivers/handle-patterns.ts'
import { Locator, type LocatorSources } from './locator.ts'
import { routerMetrics } from './metrics.ts'

export interface Router {
  /** Its addresses, as clients write them. */
  readonly addresses: readonly string[]
  /** Lets streams finish for a while, ends the rest, and releases everything. */
  stop(): Promise<void>
}

/**
 * Starts a router in this process.
 *
 * @throws DM_CONFIG_INVALID, DM_SOCKET_IN_USE
 */
export async function startRouter(config: RouterConfig, logger: Logger): Promise<Router> {
  await using started = new AsyncDisposableStack()
  const certificates = config.tls && (await Certificates.load(config.tls, logger))
  started.defer(() => certificates?.close())
  const monitoring = await startMonitoring({ role: 'router', listen: config.monitoring, certificates, logger })
  started.defer(() => monitoring.close())

  const channels = new AgentChannels(certificates && config.tls && { certificates, agentName: config.tls.agentName })
  started.defer(() => channels.close())

  const connectMs = config.connectSeconds * 1000
  const { locate, whenGone, agents, isReady, ageSeconds } = config.kubernetes
    ? await fromCluster(config, config.kubernetes, (addresses) => channels.retain(addresses), started, logger)
    : fromFile(config)
  if (config.kubernetes) {
    monitoring.readiness.add('kubernetes', () =>
      isReady()
        ? undefined
        : 'what the cluster has is not known yet; see the log, and the rights of the router (docs/reference.md)'
    )
  }
  const reachable = () => agents.nodes().filter((node) => agents.address(node) !== undefined).length
  const metrics = routerMetrics(monitoring.registry, monitoring.observer.calls, reachable, ageSeconds)
  const locator = new Locator({
    locate,
    whenGone,
    agents,
    async ask(place, signal, call) {
      using taken = channels.take(place.address, call?.party)
      return await hasSnapshot(taken.client, place, signal, connectMs, call)
    }
  })
  const server = await startServer({
    listen: config.listen,
    socketMode: config.socketMode,
    ...(config.socketGroup === undefined ? {} : { socketGroup: config.socketGroup }),
    backend: routerBackend(locator, channels, { connectMs, onTry: metrics.tried }),
    identity: { driverName: config.driverName },
    observer: { ...monitoring.observer, calls: metrics.calls },
    onBurstOver: giveMemoryBack,
    limits: {
      maxStreams: config.maxStreams,
      maxStreamsPerClient: config.maxStreamsPerClient,
      idleMs: config.idleSeconds * 1000
    },
    isReady,
    logger
  })
  monitoring.runs()
  const listening = { addresses: server.addresses, monitoring: monitoring.address, nodes: reachable() }
  logger.info({ ...listening, version: packageVersion() }, 'listening')
  const running = started.move()
  return {
    addresses: server.addresses,
    async stop() {
      monitoring.stops()
      logger.info('stopping')
      await server.drain(config.drainSeconds * 1000)
      await running.disposeAsync()
      logger.info('stopped')
    }
  }
}

interface Knowledge extends Pick<LocatorSources, 'locate' | 'whenGone' | 'agents'> {
  readonly agents: Agents
  readonly isReady: () => boolean
  readonly ageSeconds?: () => number
}

/** Nodes and handles as the configuration has them. */
function fromFile({ static: { nodes, handles } = { nodes: {}, handles: [] } }: RouterConfig): Knowledge {
  const patterns = handles.map(({ pattern, node }) => handlePattern(pattern, node))
  return {
    locate: async (snapshotId) => readHandle(snapshotId, patterns),
    agents: fixedAgents(new Map(Object.entries(nodes))),
    isReady: () => true
  }
}

/**
 * Nodes and handles as the cluster has them. Until everything was listed once, Probe answers "not yet", and the sidecar
 * waits.
 */
async function fromCluster(
  { driverName, connectSeconds }: RouterConfig,
  { driver: kind, driverNamespace, handles, agents, kubeconfig }: NonNullable<RouterConfig['kubernetes']>,
  onChange: (addresses: ReadonlySet<string>) => void,
  started: AsyncDisposableStack,
  logger: Logger
): Promise<Knowledge> {
  // The client library takes longer to load than everything else.
  const [{ KubernetesApi }, { Cluster }] = await Promise.all([
    import('../kubernetes/api.ts'),
    import('./kubernetes/cluster.ts')
  ])
  const patterns = handles.map(({ pattern, node }) => handlePattern(pattern, node))
  const cluster = new Cluster(new KubernetesApi({ kubeconfig }), {
    driver: makeDriver(kind ?? kindsByName[driverName] ?? 'generic', {
      driverName,
      namespace: driverNamespace,
      patterns
    }),
    ...agents,
    waitMs: connectSeconds * 1000,
    onChange,
    logger
  })
  started.defer(() => cluster.close())
  return {
    locate: (snapshotId, signal) => cluster.locate(snapshotId, signal),
    whenGone: (snapshotId, target) => cluster.whenGone(snapshotId, target),
    agents: cluster.agents,
    isReady: () => cluster.isKnown,
    ageSeconds: () => cluster.staleSeconds ?? 0
  }
}

/**
 * Runs a router until SIGTERM or SIGINT. If the signal comes during the start, the router stops once it has started. A
 * second signal ends it at once. Logs are JSON lines on stdout.
 */
export async function runRouter(options: RouterOptions): Promise<void> {
  const asked = stopSignal()
  letHeapGrow()
  const config = await startedBefore(asked, loadConfig(options))
  const logger = pino({ level: config.logLevel, base: { name: 'deltamapper-router' } })
  const router = await startedBefore(asked, startRouter(config, logger))
  await sayReady()
  const signal = await asked
  logger.info({ signal }, 'asked to stop')
  await router.stop()
}
