/**
 * The thin pools of the node, made by anyone: their state, their content, which snapshots can be a base, and whose
 * metadata snapshot they hold.
 *
 * Names come from LVM's report, our catalog, and device-mapper's tables. A pool's content comes from the live root of
 * its metadata, read without reserving anything.
 */
import type { DeviceMapper } from '../../../native/device-mapper.ts'
import { openPoolMetadata, type PoolMetadata, type ThinDevice } from '../../devicemapper/thin/pool-metadata.ts'
import { parsePoolStatus, type PoolStatus } from '../../devicemapper/thin/status.ts'
import { parsePoolTable, parseThinTable } from '../../devicemapper/thin/table.ts'
import { DeltamapperError } from '../../errors.ts'
import type { MetadataSnapshotFacts, PoolFacts, Problem, ThinFacts } from './examination.ts'
import type { Catalog } from '../catalog/catalog.ts'
import { type LeaseRecord, leaseVerdict } from '../catalog/lease.ts'
import type { CatalogView } from '../catalog/owned-pools.ts'
import { withNote } from '../leases/release-note.ts'
import type { LogicalVolume } from '../lvm/parse.ts'
import { thinPoolUuid } from '../answers/volume-group.ts'
import { fullName, thinVolume, volumeKind, type VolumesByName } from '../lvm/volume.ts'
import type { HeldLease } from '../leases/metadata-snapshot-lease.ts'
import { isLvm, type SurveyedDevice } from '../node/survey.ts'
import { isOwnPoolUuid, poolNameOf, poolUuid, thinUuid } from '../node/naming.ts'
import { findPoolDevice, type PoolDevice } from '../node/pool-device.ts'
import { poolIdentity } from '../node/pool-identity.ts'
import { poolKey, readSlot } from '../leases/pool-slot.ts'
import { servedTarget } from '../answers/served-target.ts'
import type { Snapshot } from '../walks/snapshot.ts'
import { stateOf } from '../bases/base-administration.ts'
import type { KnownBase } from '../catalog/bases.ts'
import { type BaseVerdict, judgeBase, unknownBase, written } from './base-verdict.ts'
import { splitLvmName } from './lvm-facts.ts'
import { probe, toProblem } from './probe.ts'
import { METADATA_BLOCK_BYTES, SECTOR_BYTES } from '../../units.ts'

export type PoolsPort = Pick<DeviceMapper, 'info' | 'table' | 'status'>

/** What only the agent has, because it has the catalog open. */
export interface AgentKnowledge {
  readonly catalog: {
    readonly path: string
    readonly served: Pick<Catalog['served'], 'find'>
    readonly poolClocks: Pick<Catalog['poolClocks'], 'wentBack'>
    readonly bases: Pick<Catalog['bases'], 'find'>
  }
  readonly view: CatalogView
  readonly records: readonly LeaseRecord[]
  readonly held: readonly HeldLease[]
}

/** A thin volume or snapshot, as named by LVM, catalog or table. */
interface NamedThin {
  readonly handle: string
  readonly kind: ThinFacts['kind']
  readonly thinId: number
  readonly sizeBytes: number
  readonly active: boolean
  readonly identity?: string
  readonly volume?: string
  /** What its device details must say. */
  readonly transactionId?: bigint
  /** Why it cannot be served at all. */
  readonly refused?: string
}

/** A pool, as named by LVM, catalog or table. */
interface NamedPool {
  readonly name: string
  readonly kind: PoolFacts['kind']
  readonly device: SurveyedDevice | undefined
  readonly thins: readonly NamedThin[]
}

export interface PoolsLook {
  readonly deviceMapper: PoolsPort
  /** Undefined where device-mapper did not say: that is no sign that nothing is active. */
  readonly survey: readonly SurveyedDevice[] | undefined
  readonly volumes: readonly VolumesByName[]
  readonly knowledge: AgentKnowledge | undefined
  readonly deadlineMs: number
}

/** Every pool of the node, by name. Never rejects: an error in one pool is reported for that pool. */
export async function lookAtPools(look: PoolsLook): Promise<PoolFacts[]> {
  const pools = await Promise.all(namedPools(look).map((pool) => lookAtPool(look, pool)))
  return pools.sort((one, other) => (one.name < other.name ? -1 : one.name > other.name ? 1 : 0))
}

function namedPools({ survey = [], volumes, knowledge }: PoolsLook): NamedPool[] {
  const byUuid = new Map(survey.flatMap((each) => (each.info.uuid === '' ? [] : [[each.info.uuid, each] as const])))
  const pools: NamedPool[] = []
  for (const group of volumes) {
    for (const lv of group.values()) {
      if (volumeKind(lv, group) !== 'thin pool') continue
      const thins = [...group.values()].filter((each) => each.thinId !== undefined && each.poolLv === lv.name)
      pools.push({
        name: fullName(lv),
        kind: 'lvm',
        device: byUuid.get(thinPoolUuid(lv)),
        thins: thins.map((each) => lvmThin(each, group, byUuid.has(lvmUuid(each))))
      })
    }
  }
  for (const pool of knowledge?.view.pools ?? []) {
    const thins = knowledge?.view.thins.filter((each) => each.pool === pool.name) ?? []
    pools.push({
      name: pool.name,
      kind: 'own',
      device: byUuid.get(poolUuid(pool)),
      thins: thins.map(({ name, kind, thinId, sizeBytes, id, volume, transactionId, ...rest }) => ({
        ...{ handle: `${pool.name}/${name}`, kind, thinId, sizeBytes, identity: id, transactionId },
        ...(kind === 'snapshot' && { volume }),
        active: byUuid.has(thinUuid({ id, ...rest }))
      }))
    })
  }
  const known = new Set(pools.map(({ device }) => device))
  for (const device of survey) {
    if (device.row?.targetType !== 'thin-pool' || known.has(device)) continue
    pools.push(unnamedPool(device, survey))
  }
  return pools
}

function lvmThin(lv: LogicalVolume, group: VolumesByName, active: boolean): NamedThin {
  const common = { handle: fullName(lv), thinId: lv.thinId ?? 0, sizeBytes: lv.sizeBytes, active, identity: lv.uuid }
  try {
    const { origin, transactionId } = thinVolume(lv, group)
    const kind = origin === undefined ? 'unknown' : 'snapshot'
    return { ...common, kind, transactionId, ...(origin && { volume: origin.uuid }) }
  } catch (error) {
    return { ...common, kind: 'unknown', refused: toProblem(error).message }
  }
}

function lvmUuid({ vgUuid, uuid }: LogicalVolume): string {
  return `LVM-${vgUuid.replaceAll('-', '')}${uuid.replaceAll('-', '')}`
}

/** A pool without a name from LVM or the catalog: it has device-mapper's, as have its active devices. */
function unnamedPool(device: SurveyedDevice, survey: readonly SurveyedDevice[]): NamedPool {
  const { info } = device
  const kind = isLvm(info) ? 'lvm' : isOwnPoolUuid(info.uuid) ? 'own' : 'plain'
  const { group, volume } = splitLvmName(info.name)
  const name = kind === 'lvm' ? `${group}/${volume}` : kind === 'own' ? poolNameOf(info.uuid) : info.name
  const handle = (thin: string) => {
    if (kind === 'plain') return `${info.name}/${thin}`
    const split = splitLvmName(thin)
    return `${split.group}/${split.volume}`
  }
  const thins = survey.flatMap(({ info: thin, row }): NamedThin[] => {
    const table = row?.targetType === 'thin' ? parseThinTable(row.params) : undefined
    if (!row || table?.poolDevice.major !== info.major || table.poolDevice.minor !== info.minor) return []
    return [
      {
        handle: handle(thin.name),
        kind: 'unknown',
        thinId: table.deviceId,
        sizeBytes: row.lengthSectors * SECTOR_BYTES,
        active: true
      }
    ]
  })
  return { name, kind, device, thins }
}

async function lookAtPool(look: PoolsLook, { name, kind, device, thins }: NamedPool): Promise<PoolFacts> {
  const empty: Omit<PoolFacts, 'thins'> = {
    ...{ name, kind, deviceName: '', state: 'inactive', needsCheck: false, metadataDevice: '' },
    ...{ whenFull: '', discards: '', transactionId: '' }
  }
  const unknown = (because: string) => thins.map((thin) => thinFacts(thin, undefined, 0, unknownBase(because)))
  if (look.survey === undefined) {
    return { ...empty, state: 'unknown', thins: unknown('device-mapper did not say whether its pool is active') }
  }
  if (device?.row?.targetType !== 'thin-pool') return { ...empty, thins: unknown('its pool is not active') }

  const { deviceMapper, deadlineMs } = look
  const { info, row } = device
  const active = { ...empty, deviceName: info.name }
  const number = { major: info.major, minor: info.minor }
  const { value: status, problem } = await probe(`the pool ${name}`, deadlineMs, async () => {
    const [line] = await deviceMapper.status(number, { deadlineMs })
    return parsePoolStatus(line?.params ?? '')
  })
  const table = await probe(`the table of ${name}`, deadlineMs, async () => parsePoolTable(row.params))
  const known = {
    ...active,
    ...(status === undefined ? { state: 'unknown' as const } : numbers(status, table.value?.blockSectors))
  }
  const found = await probe(`the metadata device of ${name}`, deadlineMs, async () => {
    const pool = await findPoolDevice(deviceMapper, number)
    if (pool) return { ...pool, identity: await poolIdentity(deviceMapper, pool) }
    throw new DeltamapperError('DM_POOL_INACTIVE', `${name} was deactivated while it was looked at`, 'look again')
  })
  if (found.problem) {
    const first = problem ?? table.problem ?? found.problem
    return { ...known, thins: unknown('the metadata of its pool could not be found'), problem: first }
  }
  const pool = found.value
  const inside = await probe(`the metadata of ${name} on ${pool.metadataPath}`, deadlineMs, () =>
    lookInside(look, pool, thins, poolKey(info), status)
  )
  return {
    ...known,
    metadataDevice: pool.metadataPath,
    ...(inside.value ?? { thins: unknown('the metadata of its pool could not be read') }),
    ...withProblem(problem ?? table.problem ?? inside.problem)
  }
}

function withProblem(problem: Problem | undefined): { problem?: Problem } {
  return problem === undefined ? {} : { problem }
}

/** @param blockSectors undefined if the table is not understood: then there are no sizes */
function numbers(status: PoolStatus, blockSectors: number | undefined): Partial<PoolFacts> & Pick<PoolFacts, 'state'> {
  if (status.state !== 'working') return { state: status.state }
  const blockBytes = (blockSectors ?? NaN) * SECTOR_BYTES
  const usage = {
    blockBytes,
    dataUsedBytes: status.usedDataBlocks * blockBytes,
    dataTotalBytes: status.totalDataBlocks * blockBytes,
    metadataUsedBytes: status.usedMetadataBlocks * METADATA_BLOCK_BYTES,
    metadataTotalBytes: status.totalMetadataBlocks * METADATA_BLOCK_BYTES
  }
  return {
    state: status.mode,
    needsCheck: status.needsCheck ?? false,
    whenFull: status.whenFull,
    discards: status.discards,
    transactionId: String(status.transactionId),
    // Beyond 2^53 they would not be exact.
    ...(Object.values(usage).every(Number.isSafeInteger) && { usage })
  }
}

/** An active pool, and which one it is. */
type IdentifiedPool = PoolDevice & { readonly identity: string }

type Inside = Pick<PoolFacts, 'thins'> & Partial<Pick<PoolFacts, 'devices' | 'unnamedDevices' | 'metadataSnapshot'>>

async function lookInside(
  look: PoolsLook,
  pool: IdentifiedPool,
  thins: readonly NamedThin[],
  key: string,
  status: PoolStatus | undefined
): Promise<Inside> {
  const metadata = await openPoolMetadata(pool.metadataPath, {
    ...{ liveRoot: true, deadlineMs: look.deadlineMs, device: pool.metadataDevice }
  })
  try {
    const devices = new Map<number, ThinDevice>()
    for await (const device of metadata.devices()) devices.set(device.id, device)
    const { dataBlockBytes } = metadata.superblock
    const facts: ThinFacts[] = []
    // Half of the time is for these: a thousand snapshots must not cost the rest of the answer.
    const until = performance.now() + look.deadlineMs / 2
    for (const thin of thins) {
      const device = devices.get(thin.thinId)
      const verdict =
        performance.now() < until
          ? await judge(look.knowledge, metadata, pool, thin, device, until)
          : unknownBase('there was no time to look at it among so many')
      const damage = device === undefined ? undefined : await damageOf(metadata, device, until - performance.now())
      facts.push(thinFacts(thin, device, dataBlockBytes, damage ?? verdict))
    }
    const named = new Set(thins.map(({ thinId }) => thinId))
    const heldRoot = status?.state === 'working' ? status.heldRoot : metadata.heldRoot || undefined
    return {
      thins: facts,
      devices: devices.size,
      unnamedDevices: [...devices.keys()].filter((id) => !named.has(id)).length,
      ...(heldRoot !== undefined && {
        metadataSnapshot: await whoseSnapshot(look.knowledge, key, heldRoot, pool)
      })
    }
  } finally {
    await metadata.close()
  }
}

function thinFacts(
  { handle, kind, thinId, active, sizeBytes }: NamedThin,
  device: ThinDevice | undefined,
  blockBytes: number,
  { asBase, because, needed }: BaseVerdict
): ThinFacts {
  const mappedBytes = device === undefined ? NaN : device.details.mappedBlocks * blockBytes
  return {
    ...{ handle, kind, thinId, active, sizeBytes },
    ...(Number.isSafeInteger(mappedBytes) && { mappedBytes }),
    ...{ asBase, because, ...(needed && { needed }) }
  }
}

async function judge(
  knowledge: AgentKnowledge | undefined,
  metadata: PoolMetadata,
  pool: IdentifiedPool,
  thin: NamedThin,
  device: ThinDevice | undefined,
  until: number
): Promise<BaseVerdict> {
  const { handle, thinId, sizeBytes, identity, volume, refused } = thin
  if (refused !== undefined) return { asBase: 'not-trackable', because: refused }
  if (device === undefined) {
    return { asBase: 'not-trackable', because: `thin device ${thinId} is not in the pool's metadata` }
  }
  const { transactionId } = device.details
  if (thin.transactionId !== undefined && thin.transactionId !== transactionId) {
    return {
      asBase: 'not-trackable',
      because: `thin device ${thinId} was created at transaction ${transactionId}, and it at ${thin.transactionId}: they are not the same`
    }
  }
  if (knowledge === undefined) return unknownBase('only the agent knows whether it is unchanged since it was served')
  const snapshot: Snapshot = {
    kind: 'thin',
    ...{ handle, thinId, sizeBytes, metadataPath: metadata.path, poolIdentity: pool.identity, live: true },
    ...(identity !== undefined && { identity }),
    ...(volume !== undefined && { volume })
  }
  const now = servedTarget({ snapshot, transactionId, fingerprint: device.details })
  const { catalog } = knowledge
  const verdict = judgeBase(await catalog.served.find(now), now, await catalog.poolClocks.wentBack(pool.identity))
  if (verdict.asBase !== 'unchanged') return verdict
  const written = await isUnwritten(metadata, device, until)
  return written ?? whatIsNeeded(verdict, await catalog.bases.find(now))
}

/** Whether a record stands for an unchanged snapshot once it is gone. @param known the catalog's row of it */
function whatIsNeeded({ asBase, because }: BaseVerdict, known: KnownBase | undefined): BaseVerdict {
  const { state, because: why } = known ? stateOf(known) : unwatched
  return state === 'may-go'
    ? { asBase, because: `${because}; it may go: its record stands for it`, needed: 'record' }
    : { asBase, because: `${because}; it must stay: ${why}`, needed: 'itself' }
}

const unwatched = { state: 'must-stay', because: 'no record can stand for it, or it was served by an earlier version' }

/** What makes a base unusable that its records do not rule out: its mappings, all of them. */
async function isUnwritten(
  metadata: PoolMetadata,
  device: ThinDevice,
  until: number
): Promise<BaseVerdict | undefined> {
  const signal = AbortSignal.timeout(Math.max(1, Math.ceil(until - performance.now())))
  try {
    const fingerprint = await metadata.fingerprint(device)
    return (await metadata.isPristine(device.id, signal, fingerprint)) ? undefined : written
  } catch (error) {
    if (signal.aborted) return unknownBase('there was no time to look through its mappings')
    if (!(error instanceof DeltamapperError) || error.code !== 'DM_SNAPSHOT_CHANGED') throw error
    return { asBase: 'changed', because: 'it is being written to or trimmed at this moment' }
  }
}

/** What is wrong with a device's tree, above all a wrong count of mappings, as far as there is time to read it. */
async function damageOf(
  metadata: PoolMetadata,
  { id }: ThinDevice,
  milliseconds: number
): Promise<BaseVerdict | undefined> {
  if (milliseconds < 1) return undefined
  const signal = AbortSignal.timeout(Math.floor(milliseconds / 2) + 1)
  try {
    const { batches } = await metadata.allocated({ deviceId: id, sizeBytes: Number.MAX_SAFE_INTEGER, signal })
    while (!(await batches.next()).done) signal.throwIfAborted()
  } catch (error) {
    if (!(error instanceof DeltamapperError) || error.code !== 'DM_METADATA_DAMAGED') return undefined
    return {
      asBase: 'not-trackable',
      because: `${error.message}: see "A wrong count of mappings" in docs/hosts.md`
    }
  }
  return undefined
}

async function whoseSnapshot(
  knowledge: AgentKnowledge | undefined,
  key: string,
  block: number,
  { metadataPath, metadataDevice }: PoolDevice
): Promise<MetadataSnapshotFacts> {
  const { heldRoot, facts, live, held } = await readSlot(metadataPath, metadataDevice)
  const age =
    held === undefined || heldRoot !== block
      ? {}
      : {
          snapshotsSince: live.time - held.time,
          transactionsSince: String(live.transactionId - held.transactionId)
        }
  if (knowledge === undefined) {
    return {
      block,
      whose: 'unknown',
      ambiguous: false,
      because: "only the agent's catalog can tell",
      users: [],
      ...age
    }
  }
  const lease = knowledge.held.find(({ device }) => device === key)
  if (lease !== undefined) {
    return { block, whose: 'ours', ambiguous: false, because: 'it is in use', users: [...lease.purposes], ...age }
  }
  const record = knowledge.records.find(({ device }) => device === key)
  const shown = { heldRoot: block, facts: heldRoot === block ? facts : undefined }
  const verdict = leaseVerdict(record && (await withNote(record, knowledge.catalog.path)), shown)
  const whose = verdict.whose === 'ours' ? 'ours' : 'foreign'
  return { block, whose, ambiguous: verdict.ambiguous, because: verdict.because, users: [], ...age }
}
