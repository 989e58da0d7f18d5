/**
 * The part of an agent that serves the node's own volumes: the catalog, device-mapper and LVM, leases, our pools and
 * the tracked volumes. An agent that serves recorded pools alone has none of it.
 */
import { dirname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Logger } from 'pino'
import { DeviceMapper } from '../../native/device-mapper.ts'
import type { AdminBackend } from '../grpc/admin.ts'
import { administration } from './administration.ts'
import { BaseRecords } from './answers/base-records.ts'
import type { ClassicServices } from './answers/classic-services.ts'
import { PoolClockLooks } from './answers/pool-clock-looks.ts'
import { catalogKnowledge, type DeviceKnowledge } from './answers/served-target.ts'
import { Sources } from './answers/sources.ts'
import { BaseAdministration } from './bases/base-administration.ts'
import { BaseLooks } from './bases/base-looks.ts'
import { type Catalog, openCatalog } from './catalog/catalog.ts'
import { keepForgetting } from './catalog/retention.ts'
import type { AgentConfig } from './config.ts'
import { EraVolumes } from './era/era-volumes.ts'
import { EraHistoryRecords } from './era/history/history-record.ts'
import type { LiveInventory } from './inventory/inventory.ts'
import { leaseOptions, MetadataSnapshotLeases } from './leases/metadata-snapshot-lease.ts'
import { LvmReporter } from './lvm/report.ts'
import type { AgentMetrics } from './metrics.ts'
import { OwnedPools } from './owned-pools/owned-pools.ts'
import type { SnapshotSource } from './walks/snapshot.ts'
import { WalkMemory } from './walks/walk-memory.ts'

/** How long a start waits for the recovery of leases, in milliseconds. */
const RECOVERY_MS = 5000

export interface LiveNode {
  readonly catalog: Catalog
  readonly leases: MetadataSnapshotLeases
  readonly sources: Sources
  readonly knowledge: DeviceKnowledge
  readonly bases: BaseRecords
  readonly classic: ClassicServices
  readonly admin: AdminBackend
  readonly inventory: LiveInventory
}

/** What the agent has before. */
export interface LiveNodeContext {
  /** What is started here is stopped with it. */
  readonly started: AsyncDisposableStack
  readonly metrics: AgentMetrics
  readonly recorded: ReadonlyMap<string, SnapshotSource>
  readonly logger: Logger
}

/** What the parts of a live node share. */
interface Node {
  readonly catalog: Catalog
  readonly deviceMapper: DeviceMapper
  readonly lvm: LvmReporter
  readonly clocks: PoolClockLooks
}

/** @throws what opening the catalog throws */
export async function startLiveNode(config: AgentConfig, context: LiveNodeContext): Promise<LiveNode> {
  const { started, metrics, recorded, logger } = context
  const catalog = await openCatalog(config.catalog)
  started.defer(() => catalog.close())
  const deviceMapper = new DeviceMapper({
    onNotice: (notice) => {
      logger.warn(notice, 'device-mapper had something to say')
    }
  })
  started.defer(() => deviceMapper.close())
  const lvm = new LvmReporter({ command: config.lvmCommand })
  const clocks = new PoolClockLooks(catalog, { deadlineMs: config.readDeadlineSeconds * 1000 })
  const node = { catalog, deviceMapper, lvm, clocks }
  const leases = await startLeases(config, context, node)
  const { owned, tracked } = await startVolumes(config, context, node)
  const bases = await startBases(config, context, node)
  const { keepSnapshots, keepDays } = config.era
  started.defer(keepForgetting(catalog, logger, { keep: keepSnapshots, keptMs: keepDays * 86_400_000 }))
  metrics.watchCatalog(catalog.path)
  metrics.watchPools(deviceMapper)
  metrics.watchTracked(tracked)
  return {
    catalog,
    leases,
    sources: new Sources(recorded, { deviceMapper, lvm, ownedPools: owned, history: catalog }),
    knowledge: catalogKnowledge(catalog, logger, {
      readDeadlineMs: config.readDeadlineSeconds * 1000,
      strictBases: config.strictBases,
      ...{ bases, clocks }
    }),
    bases,
    classic: {
      ...{ catalog, deviceMapper, logger, strictBases: config.strictBases, compare: config.cow.compare },
      compareBytes: config.cow.compareMebibytes * 2 ** 20,
      compareBytesPerSecond: config.cow.compareMebibytesPerSecond * 2 ** 20,
      memory: new WalkMemory(config.cow.memoryMebibytes * 2 ** 20, 'cow.memoryMebibytes'),
      onDoubtful: metrics.reportedDoubtful
    },
    admin: administration(owned, tracked, new BaseAdministration(catalog, bases)),
    inventory: {
      ...{ deviceMapper, lvm, lvmCommand: config.lvmCommand, catalogPath: config.catalog },
      agent: { catalog, leases, tracked }
    }
  }
}

/** Records of bases, and the looks that they depend on. */
async function startBases(
  { bases: { keep, days, maxBytes, folder }, catalog: path }: AgentConfig,
  { started, metrics, logger }: LiveNodeContext,
  { catalog, deviceMapper, lvm, clocks }: Node
): Promise<BaseRecords> {
  const records = new BaseRecords({
    ...{ catalog, deviceMapper, logger, folder: folder ?? join(dirname(path), 'bases') },
    retention: { keep, keptMs: days * 86_400_000, maxBytes }
  })
  if (keep > 0) await records.start()
  const looks = new BaseLooks({ catalog, deviceMapper, lvm, records, clocks, logger })
  looks.start()
  started.defer(() => looks.close())
  metrics.watchBases(catalog, records.counts)
  return records
}

async function startLeases(
  config: AgentConfig,
  { started, metrics, logger }: LiveNodeContext,
  { catalog, deviceMapper }: Node
): Promise<MetadataSnapshotLeases> {
  const onEnd = metrics.watchLeases(() => leases.current.length)
  const options = { ...leaseOptions(config.lease), onEnd }
  const leases: MetadataSnapshotLeases = new MetadataSnapshotLeases(catalog, deviceMapper, options, logger)
  started.defer(() => leases.close())
  // Metadata snapshots of an earlier agent make the pool's metadata grow. A pool that hangs is recovered later.
  await Promise.race([leases.recover(), sleep(RECOVERY_MS, undefined, { ref: false })])
  return leases
}

/** Our pools and the tracked volumes: each must know the names of the other, because handles begin with either. */
async function startVolumes(
  config: AgentConfig,
  { started, recorded, logger }: LiveNodeContext,
  { catalog, deviceMapper, lvm }: Node
): Promise<{ owned: OwnedPools; tracked: EraVolumes }> {
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
  // In parallel: a device that hangs is recovered when it is used next.
  void settled.then(() => eraHistory.recover((volume, work) => tracked.inTurn(volume, work)))
  return { owned, tracked }
}

/** A device-mapper pool of the same name would answer instead of the group. Without LVM there is no group. */
async function groupOfThisName(lvm: LvmReporter, name: string): Promise<string | undefined> {
  const groups = await lvm.volumeGroups().catch(() => [])
  return groups.some((each) => each.name === name) ? 'a volume group of LVM' : undefined
}
