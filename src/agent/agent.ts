/**
 * The agent's life: configuration in, sources loaded, walkers started, server listening; on SIGTERM everything in reverse.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { pino, type Logger } from 'pino'
import { letHeapGrow } from '../heap-growth.ts'
import { giveMemoryBack } from '../memory-after-bursts.ts'
import { sayReady } from '../service-manager.ts'
import { startedBefore, stopSignal } from '../stop-signal.ts'
import type { AdminBackend } from '../grpc/admin.ts'
import { packageVersion } from '../grpc/identity.ts'
import { startServer } from '../grpc/server.ts'
import { Certificates } from '../grpc/tls.ts'
import { startMonitoring } from '../monitoring/monitoring.ts'
import { DeviceMapper } from '../../native/device-mapper.ts'
import { administration } from './administration.ts'
import { snapshotMetadataBackend } from './answers/backend.ts'
import { openCatalog } from './catalog/catalog.ts'
import { keepForgetting } from './catalog/retention.ts'
import { type AgentConfig, type AgentOptions, loadConfig } from './config.ts'
import { EraHistoryRecords } from './era/history/history-record.ts'
import { EraVolumes } from './era/era-volumes.ts'
import { Inventory, type LiveInventory } from './inventory/inventory.ts'
import { logInventory } from './inventory/log.ts'
import { LvmReporter } from './lvm/report.ts'
import { AgentMetrics } from './metrics.ts'
import { OwnedPools } from './owned-pools/owned-pools.ts'
import { leaseOptions, MetadataSnapshotLeases } from './leases/metadata-snapshot-lease.ts'
import { loadRecordedPool } from './answers/recorded-pool.ts'
import type { ClassicServices } from './answers/classic-snapshot.ts'
import { catalogKnowledge, type DeviceKnowledge } from './answers/served-target.ts'
import type { SnapshotSource } from './walks/snapshot.ts'
import { Sources } from './answers/sources.ts'
import { ToolEngine } from './walks/tool-engine.ts'
import { answersWith } from './targets.ts'
import { Walkers } from './walks/walkers.ts'

/** How long a start waits for leases that were left behind, in milliseconds. */
const RECOVERY_MS = 5000

export interface Agent {
  /** Where it listens, as clients would write it. */
  readonly addresses: readonly string[]
  /** Lets streams finish for a while, ends the rest, and releases everything. */
  stop(): Promise<void>
}

/**
 * Starts an agent in this process.
 *
 * @throws DM_RECORDED_POOL_INVALID, DM_SOCKET_IN_USE, DM_CONFIG_INVALID, and what opening the catalog and checking the tools throws
 */
export async function startAgent(config: AgentConfig, logger: Logger): Promise<Agent> {
  // What was started last is stopped first.
  await using started = new AsyncDisposableStack()
  // The very last: a thread that waits for a device that hangs keeps the process, and what another agent needs has to be free by then.
  const last = started.use(new AsyncDisposableStack())

  const certificates = config.tls && (await Certificates.load(config.tls, logger))
  started.defer(() => certificates?.close())
  const monitoring = await startMonitoring({ role: 'agent', listen: config.monitoring, certificates, logger })
  started.defer(() => monitoring.close())
  const metrics = new AgentMetrics(monitoring.registry)

  const recorded = new Map<string, SnapshotSource>()
  for (const [name, folder] of Object.entries(config.recorded)) recorded.set(name, await loadRecordedPool(name, folder))

  let sources = new Sources(recorded)
  let knowledge: DeviceKnowledge | undefined
  let classic: ClassicServices | undefined
  let ownedPools: OwnedPools | undefined
  let admin: AdminBackend | undefined
  let liveInventory: LiveInventory | undefined
  let leases: MetadataSnapshotLeases | undefined
  if (config.live ?? recorded.size === 0) {
    const catalog = await openCatalog(config.catalog)
    started.defer(() => catalog.close())
    const deviceMapper = new DeviceMapper({
      onNotice: (notice) => {
        logger.warn(notice, 'device-mapper had something to say')
      }
    })
    started.defer(() => deviceMapper.close())
    const onEnd = metrics.watchLeases(() => leases?.current.length ?? 0)
    const held = (leases = new MetadataSnapshotLeases(
      catalog,
      deviceMapper,
      { ...leaseOptions(config.lease), onEnd },
      logger
    ))
    started.defer(() => held.close())
    // What an agent before this one has left behind grows the pool's metadata. A pool that hangs is looked after later.
    await Promise.race([held.recover(), sleep(RECOVERY_MS, undefined, { ref: false })])
    const lvm = new LvmReporter({ command: config.lvmCommand })
    const takenByOthers = async (name: string) =>
      recorded.has(name) ? 'a recorded pool' : await groupOfThisName(lvm, name)
    const owned: OwnedPools = new OwnedPools({
      ...{ catalog, deviceMapper, logger },
      takenBy: async (name) => ((await tracked.has(name)) ? 'a tracked volume' : takenByOthers(name))
    })
    started.defer(() => owned.close())
    const eraHistory = new EraHistoryRecords({
      ...{ catalog, deviceMapper, logger, readDeadlineMs: config.readDeadlineSeconds * 1000 }
    })
    const tracked: EraVolumes = new EraVolumes({
      ...{ catalog, deviceMapper, logger, lvmCommand: config.lvmCommand },
      recorder: eraHistory,
      ...{ commands: config.era.snapshotCommands, deadlineMs: config.era.deadlineSeconds * 1000 },
      trustRestarts: config.era.trustRestarts,
      takenBy: async (name) => (owned.source(name) ? 'a pool of this agent' : takenByOthers(name))
    })
    started.defer(() => tracked.close())
    const [{ settled }] = await Promise.all([tracked.start(), owned.start()])
    // Beside the rest: a device that hangs is looked after when it is used next.
    void settled.then(() => eraHistory.recover((volume, work) => tracked.inTurn(volume, work)))
    ownedPools = owned
    admin = administration(owned, tracked)
    sources = new Sources(recorded, { deviceMapper, lvm, ownedPools, history: catalog })
    knowledge = catalogKnowledge(catalog, logger, {
      readDeadlineMs: config.readDeadlineSeconds * 1000,
      strictBases: config.strictBases
    })
    classic = {
      ...{ catalog, deviceMapper, logger, strictBases: config.strictBases, compare: config.cow.compare },
      compareBytes: config.cow.compareMebibytes * 2 ** 20,
      compareBytesPerSecond: config.cow.compareMebibytesPerSecond * 2 ** 20,
      onDoubtful: metrics.reportedDoubtful
    }
    const { keepSnapshots, keepDays } = config.era
    started.defer(keepForgetting(catalog, logger, { keep: keepSnapshots, keptMs: keepDays * 86_400_000 }))
    const { lvmCommand, catalog: catalogPath } = config
    metrics.watchCatalog(catalog.path)
    metrics.watchPools(deviceMapper)
    monitoring.readiness.add('catalog', async () => {
      await catalog.leases()
      return undefined
    })
    liveInventory = { deviceMapper, lvm, lvmCommand, catalogPath, agent: { catalog, leases, tracked } }
  }

  const { engine, toolCommand } = config
  const tools = engine === 'native' ? undefined : await ToolEngine.start(engine, toolCommand, leases, logger)
  if (tools && engine === 'both') metrics.watchChecks(tools.counts)
  const walkers = new Walkers(config.walkers, {
    direct: config.directReads,
    readDeadlineMs: config.readDeadlineSeconds * 1000,
    readBytesPerSecond: config.readMebibytesPerSecond && config.readMebibytesPerSecond * 2 ** 20,
    startPrograms: tools !== undefined,
    onEnd: metrics.walkEnded
  })
  metrics.watchWalkers(walkers)
  monitoring.readiness.add('walkers', () => {
    walkers.revive()
    return walkers.alive > 0 ? undefined : 'no walker thread stays alive; see the log, restart the agent'
  })
  last.defer(() => walkers.close())

  const recordedPools = Object.entries(config.recorded).map(([name, folder]) => ({ name, folder }))
  const inventory = new Inventory({ live: liveInventory, recordedPools })
  started.defer(() => inventory.close())

  const server = await startServer({
    listen: config.listen,
    tls: certificates && config.tls && { certificates, clientName: config.tls.clientName },
    allowLoopbackTcp: config.allowLoopbackTcp,
    socketMode: config.socketMode,
    ...(config.socketGroup === undefined ? {} : { socketGroup: config.socketGroup }),
    backend: snapshotMetadataBackend(sources, walkers, answersWith({ knowledge, tools, classic })),
    // Whoever may connect may give orders: by default only where that is the agent's own user.
    admin: (config.admin ?? (config.socketMode & 0o077) === 0) ? admin : undefined,
    inventory,
    identity: { driverName: config.driverName },
    observer: monitoring.observer,
    onBurstOver: () => {
      walkers.rest()
      giveMemoryBack()
    },
    limits: {
      maxStreams: config.maxStreams,
      maxStreamsPerClient: config.maxStreamsPerClient,
      idleMs: config.idleSeconds * 1000
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
  void inventory.examine().then((examination) => {
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

/** A pool of the same name would answer in place of the group. Without LVM there is none. */
async function groupOfThisName(lvm: LvmReporter, name: string): Promise<string | undefined> {
  const groups = await lvm.volumeGroups().catch(() => [])
  return groups.some((each) => each.name === name) ? 'a volume group of LVM' : undefined
}

/**
 * Runs an agent until SIGTERM or SIGINT; asked to stop while it starts, it stops once it has started. A second signal ends it at once.
 * Logs are JSON lines on stdout.
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
