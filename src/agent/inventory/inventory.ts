/**
 * The inventory of a node: everything that decides whether its snapshots can be served, looked at once. Each part has a
 * deadline, and none holds up another.
 *
 * The agent serves it on its socket, with what its catalog knows. The command line can make one by itself, without a
 * catalog.
 */
import { stat } from 'node:fs/promises'
import type { DeviceMapper } from '../../../native/device-mapper.ts'
import type {
  CatalogFacts,
  DeviceMapperFacts,
  EraHistoryFacts,
  Examination,
  Finding,
  LvmFacts,
  RecordedPoolFacts,
  TrackedVolumeFacts
} from './examination.ts'
import type { ErrorCode } from '../../errors.ts'
import { packageVersion } from '../../grpc/identity.ts'
import type { Catalog } from '../catalog/catalog.ts'
import type { EraHistoryFacts as EraHistory } from '../catalog/era-snapshots.ts'
import type { EraVolume } from '../catalog/era-volumes.ts'
import { reconcile } from '../catalog/reconcile.ts'
import type { LvmReporter } from '../lvm/report.ts'
import { fullName } from '../lvm/volume.ts'
import type { MetadataSnapshotLeases } from '../leases/metadata-snapshot-lease.ts'
import { readKernelView } from '../owned-pools/kernel-view.ts'
import { isLvm, type SurveyedDevice, surveyDevices } from '../node/survey.ts'
import { type ExaminationFacts, findings, inOrder } from './findings.ts'
import { type LvmNode, type LvmPort, lookAtLvm } from './lvm-facts.ts'
import { NodeInventory, nodeItself } from './node-facts.ts'
import { lookAtStores } from '../node/store-fullness.ts'
import { storeFindings, storesUnknown } from './store-findings.ts'
import { writableSnapshots } from './writable-snapshots.ts'
import { type AgentKnowledge, lookAtPools } from './pool-facts.ts'
import { probe, SingleLook } from './probe.ts'
import { isTracked, lookAtTrackedVolumes, type TrackedPort } from './tracked-volumes.ts'

export interface InventoryOptions {
  /** Left out: only recorded pools are served, and the node's own are not looked at. */
  readonly live?: LiveInventory | undefined
  readonly recordedPools: readonly RecordedPoolFacts[]
  /** How long each part may take, in milliseconds; 8,000 by default. Some parts follow each other. */
  readonly deadlineMs?: number
}

export interface LiveInventory {
  readonly deviceMapper: Pick<DeviceMapper, 'versions' | 'targets' | 'list' | 'info' | 'table' | 'status'>
  readonly lvm: LvmPort & Pick<LvmReporter, 'snapshotLinks'>
  readonly lvmCommand: readonly string[]
  /** Path of the agent's catalog. */
  readonly catalogPath: string
  /** What only the agent has. */
  readonly agent?:
    { readonly catalog: Catalog; readonly leases: MetadataSnapshotLeases; readonly tracked: TrackedPort } | undefined
}

const nothingInUse: LvmNode = { facts: { command: '', inUse: false, groups: [] }, volumes: [] }
const noCatalog: CatalogFacts = {
  ...{ path: '', consulted: false, rows: [], leases: [], disagreements: [], eraHistories: [] }
}
const noDeviceMapper: DeviceMapperFacts = {
  ...{ libraryVersion: '', driverVersion: '', targets: [], devices: 0, suspended: [] }
}

export class Inventory {
  readonly #options: InventoryOptions
  readonly #node = new NodeInventory()
  /** Callers share a running look, because each look asks a lot of the node. */
  readonly #look = new SingleLook(() => this.#examine())

  constructor(options: InventoryOptions) {
    this.#options = options
  }

  /** Looks at the node. Never rejects: what could not be found out is among the findings. */
  async examine(): Promise<Examination> {
    return this.#look.take()
  }

  /**
   * What the agent's log tells at its start: all that is served, without the operating system's name and the list of
   * block devices. A dozen programs are run for those, while the first questions come.
   */
  async examineServed(): Promise<Examination> {
    return this.#examine({ described: false })
  }

  /** Ends a running look, as far as possible; device-mapper's calls end with device-mapper. */
  async close(): Promise<void> {
    await this.#node.close()
  }

  async #examine({ described = true } = {}): Promise<Examination> {
    const { live, recordedPools, deadlineMs = 8000 } = this.#options
    const [takenAtMs, begin] = [Date.now(), performance.now()]
    const node = described ? this.#node.node(deadlineMs) : nodeItself()
    const looked = live === undefined ? undefined : await lookAtLive(live, deadlineMs)
    const suspended = looked?.deviceMapper.suspended ?? []
    const facts: ExaminationFacts = {
      version: packageVersion(),
      seenBy: live === undefined || live.agent ? 'agent' : 'command',
      takenAtMs,
      // Filled in last: spreading keeps the order of the fields.
      tookMs: 0,
      live: live !== undefined,
      node: await node,
      deviceMapper: looked?.deviceMapper ?? noDeviceMapper,
      blockDevices: described ? await this.#node.blockDevices(deadlineMs, suspended) : { devices: [] },
      lvm: looked?.lvm ?? nothingInUse.facts,
      catalog: looked?.catalog ?? noCatalog,
      recordedPools: [...recordedPools],
      pools: looked?.pools ?? [],
      trackedVolumes: looked?.trackedVolumes ?? []
    }
    const found = inOrder([...findings(facts), ...(looked?.storeFindings ?? [])])
    return { ...facts, tookMs: Math.round(performance.now() - begin), findings: found }
  }
}

interface LiveFacts extends Pick<Examination, 'deviceMapper' | 'lvm' | 'catalog' | 'pools' | 'trackedVolumes'> {
  readonly storeFindings: readonly Finding[]
}

/** Device-mapper itself was not asked, or has not answered. */
const unanswered: readonly string[] = ['DM_CALL_STUCK', 'DM_SYSTEM_REFUSED'] satisfies ErrorCode[]

async function lookAtLive(live: LiveInventory, deadlineMs: number): Promise<LiveFacts> {
  const { deviceMapper, lvm, lvmCommand } = live
  const { value: survey, problem } = await probe('device-mapper', deadlineMs, () => surveyDevices(deviceMapper))
  // A device-mapper that does not answer may well have an active volume of LVM's.
  const inUse = survey?.some(({ info }) => isLvm(info)) ?? unanswered.includes(problem?.code ?? '')
  const [facts, lvmNode, catalog] = await Promise.all([
    lookAtDeviceMapper(live, survey ?? [], problem, deadlineMs),
    lookAtLvm(lvm, lvmCommand, inUse, deadlineMs),
    lookAtCatalog(live, survey, deadlineMs)
  ])
  const { volumes } = lvmNode
  const pools = await lookAtPools({ deviceMapper, survey, volumes, knowledge: catalog.knowledge, deadlineMs })
  const { trackedVolumes, eraVolumes } = catalog
  const lvmFacts = withoutTracked(lvmNode, eraVolumes)
  const stores = await probe('classic snapshots', deadlineMs, async () =>
    storeFindings({
      ...{ stores: await lookAtStores(deviceMapper, survey ?? []), volumes, lvm, now: Date.now() },
      catalog: live.agent?.catalog
    })
  )
  return {
    ...{ deviceMapper: facts, lvm: lvmFacts, catalog: catalog.facts, pools, trackedVolumes },
    storeFindings: [
      ...(stores.problem ? [storesUnknown(stores.problem)] : (stores.value ?? [])),
      ...writableSnapshots(survey, pools)
    ]
  }
}

async function lookAtDeviceMapper(
  { deviceMapper }: LiveInventory,
  survey: readonly SurveyedDevice[],
  surveyProblem: DeviceMapperFacts['problem'],
  deadlineMs: number
): Promise<DeviceMapperFacts> {
  const { value, problem = surveyProblem } = await probe('device-mapper', deadlineMs, async () => ({
    versions: await deviceMapper.versions(),
    targets: await deviceMapper.targets()
  }))
  return {
    libraryVersion: value?.versions.library ?? '',
    driverVersion: value?.versions.driver ?? '',
    targets: (value?.targets ?? [])
      .map(({ name, version }) => ({ name, version: version.join('.') }))
      .sort((one, other) => (one.name < other.name ? -1 : 1)),
    devices: survey.length,
    suspended: survey.filter(({ info }) => info.suspended).map(({ info }) => info.name),
    ...(problem && { problem })
  }
}

/** A data device that is tracked, and its snapshots below, are expected. */
function withoutTracked({ facts, volumes }: LvmNode, eraVolumes: readonly EraVolume[]): LvmFacts {
  const all = volumes.flatMap((group) => [...group.values()])
  const tracked = all.filter((each) => isTracked(each, eraVolumes))
  const below = all.filter(({ originUuid }) => tracked.some(({ uuid }) => uuid === originUuid))
  const names = new Set([...tracked, ...below].map(fullName))
  return {
    ...facts,
    groups: facts.groups.map((group) => ({ ...group, untracked: group.untracked.filter((name) => !names.has(name)) }))
  }
}

interface CatalogLook {
  readonly facts: CatalogFacts
  readonly knowledge: AgentKnowledge | undefined
  readonly eraVolumes: readonly EraVolume[]
  readonly trackedVolumes: TrackedVolumeFacts[]
}

async function lookAtCatalog(
  { agent, catalogPath, deviceMapper }: LiveInventory,
  survey: readonly SurveyedDevice[] | undefined,
  deadlineMs: number
): Promise<CatalogLook> {
  const noVolumes = { eraVolumes: [], trackedVolumes: [] }
  if (agent === undefined) {
    // Only its size: opening the file would make the agent lose its lock (see catalog/database.ts).
    const size = await stat(catalogPath).then(
      (found) => ({ sizeBytes: found.size }),
      () => ({})
    )
    return { facts: { ...noCatalog, path: catalogPath, ...size }, knowledge: undefined, ...noVolumes }
  }
  const { catalog, leases, tracked } = agent
  const { value, problem } = await probe(`the catalog ${catalog.path}`, deadlineMs, async () => {
    const [view, records, statistics] = [
      await catalog.ownedPools.view(),
      await catalog.leases.list(),
      await catalog.statistics()
    ]
    const { volumes: eraVolumes } = await catalog.eraVolumes.view()
    return { view, records, statistics, eraVolumes, histories: await catalog.eraSnapshots.facts() }
  })
  if (problem) return { facts: { ...noCatalog, path: catalog.path, problem }, knowledge: undefined, ...noVolumes }

  const { view, records, statistics, eraVolumes, histories } = value
  const held = leases.current
  const compared = await probe("the agent's own pools", deadlineMs, async () =>
    // Without a kernel's word nothing can disagree with it.
    survey === undefined ? undefined : reconcile(view, await readKernelView(deviceMapper, view.pools, survey))
  )
  const looked = await probe('tracked volumes', deadlineMs, () => lookAtTrackedVolumes(tracked, eraVolumes, records))
  // The pool's state already tells of an inactive pool, and the catalog has nothing to say of other owners' pools.
  const disagreements = compared.value?.findings.filter(
    ({ kind }) => kind !== 'pool-unknown' && kind !== 'pool-inactive'
  )
  const troubled = compared.problem ?? looked.problem
  const facts = {
    path: catalog.path,
    consulted: true,
    sizeBytes: statistics.bytes,
    rows: Object.entries(statistics.rows).map(([table, rows]) => ({ table, rows })),
    leases: records.map(({ device, state, purpose, takenAt }) => ({
      ...{ device, state, purpose, takenAtMs: takenAt },
      users: [...(held.find((each) => each.device === device)?.purposes ?? [])]
    })),
    disagreements: (disagreements ?? []).map(({ kind, pool, what, remedy }) => ({ kind, pool, what, remedy })),
    eraHistories: histories.map(eraHistory),
    ...(troubled && { problem: troubled })
  }
  const trackedVolumes = looked.value ?? []
  return { facts, knowledge: { catalog, view, records, held }, eraVolumes, trackedVolumes }
}

function eraHistory({ volume, lineBecause, snapshots, removed, supersets, ...rest }: EraHistory): EraHistoryFacts {
  const { earlierLines, oldestTakenAt, newestTakenAt, bytes } = rest
  return {
    ...{ volume, snapshots, removed, supersets, earlierHistories: earlierLines, because: lineBecause },
    ...(oldestTakenAt !== undefined && { oldestTakenAtMs: oldestTakenAt }),
    ...(newestTakenAt !== undefined && { newestTakenAtMs: newestTakenAt }),
    bitmapBytes: bytes
  }
}
