/**
 * The devices of a classic LVM snapshot, as device-mapper has them, and whether they stand as LVM puts them:
 *
 *     VG-ORIGIN  snapshot-origin ──┐                      ┌── VG-SNAPSHOT  snapshot
 *                                  ▼                      ▼          │
 *                              VG-ORIGIN-real ◀───────────┘          ▼
 *                                                              VG-SNAPSHOT-cow   the store
 *
 * Everything that is written to the origin has to come through its snapshot-origin target: what is written to `-real`
 * beside it is in no store. So each device is found by the UUID that LVM gives it, each table has to lead to the next,
 * nobody but LVM's snapshots may stand on `-real`, nobody else on a store, and nobody may have either open for writing.
 */
import type { DeviceInfo, DeviceMapper, DeviceNumber, TableRow } from '../../../native/device-mapper.ts'
import { holdersOf, openToOthers, type Writers, writersOf } from './openers.ts'
import { liveTable } from './pool-device.ts'
import { nodeName } from '../../../native/device.ts'
import { BlockReader } from '../../devicemapper/block-reader.ts'
import { countedEntries, parseCowStatus } from '../../devicemapper/cow/status.ts'
import { parseCowTable } from '../../devicemapper/cow/table.ts'
import { DeviceAttributes, UNWRITTEN } from '../../devicemapper/device-attributes.ts'
import { DeltamapperError } from '../../errors.ts'
import { SECTOR_BYTES } from '../../units.ts'

/** What is asked of device-mapper: nothing that changes anything. */
export type ClassicPort = Pick<DeviceMapper, 'info' | 'table'>

/** Which snapshot is meant: by LVM's UUIDs, as device-mapper has them. */
export interface ClassicReference {
  /** For messages. */
  readonly handle: string
  readonly uuid: string
  readonly originUuid: string
}

export interface ClassicDevices {
  readonly snapshot: DeviceNumber
  /** The untouched one, `-real`. */
  readonly originDevice: DeviceNumber
  readonly storePath: string
  readonly storeDevice: DeviceNumber
  /** Size of the snapshot in bytes. */
  readonly sizeBytes: number
  readonly chunkBytes: number
  /** To the kernel: whatever LVM says, a table can be loaded that is not. */
  readonly readOnly: boolean
  /**
   * It is, and the kernel has counted no write since it was activated. Who had it open before it was made read-only (a
   * file system, a device above it) may go on writing.
   */
  readonly untouched: boolean
}

/**
 * @throws DM_COW_INACTIVE, DM_COW_MERGING, DM_COW_TRANSIENT; DM_COW_DETACHED where they do not stand as LVM puts them;
 *   what device-mapper calls throw
 */
export async function classicDevices(
  deviceMapper: ClassicPort,
  { handle, uuid, originUuid }: ClassicReference
): Promise<ClassicDevices> {
  // What can be asked at once is: a message to the helper process costs more than a query.
  const [info, origin, [row, ...more], [top, ...others]] = await Promise.all([
    deviceMapper.info({ uuid }),
    deviceMapper.info({ uuid: originUuid }),
    liveTable(deviceMapper, { uuid, name: '' }),
    liveTable(deviceMapper, { uuid: originUuid, name: '' })
  ])
  if (!info?.hasLiveTable || !origin?.hasLiveTable || !row || !top) throw inactive(handle)
  if (row.targetType === 'snapshot-merge' || top.targetType === 'snapshot-merge') throw merging(handle)
  if (row.targetType !== 'snapshot' || more.length > 0) {
    throw detached(handle, `its device has the target ${row.targetType}, not snapshot`)
  }
  if (top.targetType !== 'snapshot-origin' || others.length > 0) {
    throw detached(handle, `its origin's device has the target ${top.targetType}, not snapshot-origin`)
  }
  const table = parseCowTable(row.params)
  if (!table.persistent) throw transient(handle)
  if (table.features.length > 0) throw detached(handle, `its table has ${table.features.join(' and ')}`)
  const [real, store] = await Promise.all([deviceMapper.info(table.originDevice), deviceMapper.info(table.storeDevice)])
  if (real?.uuid !== `${originUuid}-real`) throw detached(handle, `it stands on ${real?.name ?? 'another device'}`)
  if (store?.uuid !== `${uuid}-cow`) throw detached(handle, `its store is ${store?.name ?? 'another device'}`)
  const below = `${real.major}:${real.minor}`
  if (top.params.trim() !== below) throw detached(handle, `its origin stands on ${top.params.trim()}, it on ${below}`)
  await refuseOthers(deviceMapper, handle, real, origin)
  await refuseBeside(deviceMapper, handle, store, info)
  const ofStore = {
    storePath: `/dev/mapper/${nodeName(store.name)}`,
    storeDevice: { major: store.major, minor: store.minor }
  }
  return {
    snapshot: { major: info.major, minor: info.minor },
    originDevice: { major: real.major, minor: real.minor },
    ...ofStore,
    sizeBytes: row.lengthSectors * SECTOR_BYTES,
    chunkBytes: table.chunkSectors * SECTOR_BYTES,
    readOnly: info.readOnly,
    untouched: info.readOnly && (await isUnwritten(handle, info, ofStore))
  }
}

/** The tables of what lies below a snapshot, which LVM changes when it moves data (pvmove) or mirrors them. */
export interface TablesBelow {
  /** Of the untouched origin, and of the store. */
  readonly origin: readonly TableRow[]
  readonly store: readonly TableRow[]
}

type Below = keyof TablesBelow

/** Empty where a device is not there. @throws what device-mapper calls throw */
export async function tablesBelow(
  deviceMapper: ClassicPort,
  snapshot: Pick<ClassicReference, 'uuid' | 'originUuid'>
): Promise<TablesBelow> {
  const [origin, store] = await Promise.all(
    (['origin', 'store'] as const).map((below) =>
      liveTable(deviceMapper, { uuid: uuidBelow(snapshot, below), name: '' })
    )
  )
  return { origin, store }
}

/**
 * The table that LVM is about to put in place: it suspends a device, commits its metadata, and resumes it with the
 * table that it has loaded. Undefined where nothing of that kind is under way. To be asked before the live table: what
 * is put in place in between is in that.
 *
 * @throws what device-mapper calls throw
 */
export async function tableToCome(
  deviceMapper: ClassicPort,
  snapshot: Pick<ClassicReference, 'uuid' | 'originUuid'>,
  below: Below
): Promise<readonly TableRow[] | undefined> {
  const uuid = uuidBelow(snapshot, below)
  const info = await deviceMapper.info({ uuid })
  if (!info?.suspended || !info.hasInactiveTable) return undefined
  return unlessGone(deviceMapper.table({ uuid }, { inactive: true }))
}

function uuidBelow({ uuid, originUuid }: Pick<ClassicReference, 'uuid' | 'originUuid'>, below: Below): string {
  return below === 'origin' ? `${originUuid}-real` : `${uuid}-cow`
}

/** How often to look whether a write is under way, which may be a flush of none. */
const MOST_LOOKS = 10

/**
 * As far as the kernel counts. What it counts is asked for by number, which may be another device's by now.
 *
 * @throws DM_COW_INACTIVE where the device is gone meanwhile; DM_READ_FAILED, DM_SNAPSHOT_CHANGED from reading a store
 */
async function isUnwritten(handle: string, device: DeviceInfo, store: Store): Promise<boolean> {
  let attributes: DeviceAttributes | undefined
  try {
    attributes = new DeviceAttributes(device)
    const now = await attributes.settledAfter(MOST_LOOKS)
    if (now && now.uuid !== device.uuid) throw inactive(handle)
    return now?.writes === UNWRITTEN && (attributes.isCounted || (await isCountedUnasked(store)))
  } catch (error) {
    throw isGone(error) ? inactive(handle) : error
  } finally {
    attributes?.close()
  }
}

type Store = Pick<ClassicDevices, 'storePath' | 'storeDevice'>

/** Whether this kernel counts where queue/iostats is 0; undefined until it was found out. */
let countsUnasked: Promise<boolean> | undefined

/** Older kernels do, whose devices of device-mapper have a 0 there (seen on 6.1): reading a store shows it. */
async function isCountedUnasked({ storePath, storeDevice }: Store): Promise<boolean> {
  const attributes = new DeviceAttributes(storeDevice)
  try {
    // (It says nothing of devices with a 0.)
    if (attributes.isCounted) return false
    countsUnasked ??= countsReads(attributes, storePath).catch((error: unknown) => {
      countsUnasked = undefined
      throw error
    })
    return await countsUnasked
  } finally {
    attributes.close()
  }
}

async function countsReads(attributes: DeviceAttributes, path: string): Promise<boolean> {
  const reader = await BlockReader.open(path, { device: attributes.device })
  try {
    await attributes.checkCounted(() => reader.readRaw(0))
    return true
  } catch (error) {
    if (error instanceof DeltamapperError && error.code === 'DM_NOT_TRACKED') return false
    throw error
  } finally {
    await reader.close()
  }
}

/**
 * How many entries of a snapshot have been given a chunk. It is asked by UUID: its number may be another snapshot's by
 * now, which may have fewer.
 *
 * @throws DM_COW_INACTIVE, DM_COW_INVALID, DM_COW_OVERFLOWED, DM_COW_MERGING; what device-mapper calls throw
 */
export async function entriesCounted(
  deviceMapper: Pick<DeviceMapper, 'status'>,
  { handle, uuid }: Pick<ClassicReference, 'handle' | 'uuid'>,
  { chunkBytes }: Pick<ClassicDevices, 'chunkBytes'>
): Promise<number> {
  const [row] = (await unlessGone(deviceMapper.status({ uuid }))) ?? []
  if (row?.targetType === 'snapshot-merge') throw merging(handle)
  if (row?.targetType !== 'snapshot') throw inactive(handle)
  const status = parseCowStatus(row.params)
  const chunkSectors = chunkBytes / SECTOR_BYTES
  if (status.state === 'working') return countedEntries(status, { chunkBytes, chunkSectors })
  if (status.state === 'overflow') {
    throw new DeltamapperError('DM_COW_OVERFLOWED', `the store of ${handle} is full, and what it held is lost`, larger)
  }
  if (status.state === 'merge failed') throw merging(handle)
  throw new DeltamapperError(
    'DM_COW_INVALID',
    `the kernel has given ${handle} up: its store overflowed, or could not be written`,
    larger
  )
}

const larger =
  'take a full backup of a new snapshot, with a larger store (lvcreate -s -L) or snapshot_autoextend_threshold below 100'

/**
 * Whether somebody might write to what lies below snapshots of one origin: to the untouched origin, beside the origin;
 * or to a store, whose list the kernel has in memory.
 *
 * @throws DM_COW_DETACHED; what device-mapper calls throw
 */
export async function refuseWriters(
  deviceMapper: ClassicPort,
  snapshots: readonly {
    readonly handle: string
    readonly devices: Pick<ClassicDevices, 'originDevice' | 'storeDevice'>
  }[]
): Promise<void> {
  const below = snapshots.flatMap(({ handle, devices: { originDevice, storeDevice } }) => [
    { handle, what: 'its untouched origin', device: originDevice },
    { handle, what: 'its store', device: storeDevice }
  ])
  const each = [...new Map(below.map((one) => [`${one.device.major}:${one.device.minor}`, one])).values()]
  const devices = each.map(({ device }) => device)
  const open = new Set(await openToOthers(deviceMapper, devices))
  for (const { handle, what, device } of each) {
    const writers = open.has(device) ? await writersOf(deviceMapper, device) : undefined
    if (writers !== undefined) throw detached(handle, `${what} may be written to by ${writers.who}`)
  }
}

/**
 * Whether somebody might write into a read-only snapshot all the same: a device that stands on it, or who has had it
 * open since it was writable (a file system, a process that has mapped it).
 */
export async function openToWriters(
  deviceMapper: ClassicPort,
  { snapshot }: Pick<ClassicDevices, 'snapshot'>
): Promise<Writers | undefined> {
  const holders = holdersOf(snapshot)
  if (holders.length > 0) return { who: holders.join(', '), areKnown: true }
  return writersOf(deviceMapper, snapshot, { isReadOnly: true })
}

/** Everything that stands on the untouched origin, other than the origin itself, has to be a snapshot of it by LVM. */
async function refuseOthers(
  deviceMapper: ClassicPort,
  handle: string,
  real: DeviceNumber,
  origin: DeviceInfo
): Promise<void> {
  const { major } = real
  const names = holdersOf(real)
  const found = await Promise.all(
    names.map(async (name) => {
      const minor = minorOf(name)
      if (minor === origin.minor) return undefined
      if (minor === undefined) return { rows: [] }
      const [info, rows] = await Promise.all([
        deviceMapper.info({ major, minor }),
        tableAt(deviceMapper, { major, minor })
      ])
      // (One that is just being made, or was just removed, passes nothing on.)
      return info?.hasLiveTable ? { info, rows } : undefined
    })
  )
  for (const [i, each] of found.entries()) {
    if (each === undefined) continue
    const { info, rows } = each
    const isOfLvm = info?.uuid.startsWith(origin.uuid.slice(0, LVM_GROUP_LENGTH)) ?? false
    if (isOfLvm && rows.length === 1 && isSnapshotOf(rows[0], real)) continue
    const name = info?.name ?? names[i]
    throw detached(handle, `${name} stands on its origin beside it, so that writes can be missing from its store`)
  }
}

/** Empty where the device is gone. */
async function tableAt(deviceMapper: ClassicPort, device: DeviceNumber): Promise<readonly TableRow[]> {
  return (await unlessGone(deviceMapper.table(device))) ?? []
}

/** What device-mapper says of a device; undefined where it was removed meanwhile. */
async function unlessGone<T>(said: Promise<T>): Promise<T | undefined> {
  return said.catch((error: unknown) => {
    if (isGone(error)) return undefined
    throw error
  })
}

function isGone(error: unknown): boolean {
  return error instanceof DeltamapperError && error.code === 'DM_NO_SUCH_DEVICE'
}

/** Nothing but its snapshot may stand on a store: what somebody else puts there, the kernel does not know. */
async function refuseBeside(
  deviceMapper: ClassicPort,
  handle: string,
  store: DeviceNumber,
  { major, minor }: DeviceNumber
): Promise<void> {
  const other = holdersOf(store).find((name) => minorOf(name) !== minor)
  if (other === undefined) return
  const found = minorOf(other)
  const info = found === undefined ? undefined : await deviceMapper.info({ major, minor: found })
  throw detached(handle, `${info?.name ?? other} stands on its store beside it`)
}

/** In a UUID by LVM: `LVM-` and the id of the group. The volume's follows, and what the device is to it. */
const LVM_GROUP_LENGTH = 4 + 32

/** Of device-mapper's devices, which the kernel names after it (alloc_dev in drivers/md/dm.c); undefined of others. */
function minorOf(name: string): number | undefined {
  const [, minor] = /^dm-(\d+)$/.exec(name) ?? []
  return minor === undefined ? undefined : Number(minor)
}

/** One may also have it as its store, or pass discards down to it: those are in no other snapshot's store. */
function isSnapshotOf({ targetType, params }: TableRow, real: DeviceNumber): boolean {
  if (targetType !== 'snapshot') return false
  const { originDevice, storeDevice, features } = parseCowTable(params)
  const isReal = ({ major, minor }: DeviceNumber) => major === real.major && minor === real.minor
  return isReal(originDevice) && !isReal(storeDevice) && features.length === 0
}

function inactive(handle: string): DeltamapperError {
  return new DeltamapperError(
    'DM_COW_INACTIVE',
    `${handle} or its origin is not active here: only the kernel says whether its store is whole`,
    `activate its volume group's volumes: lvchange -ay ${handle}`
  )
}

export function merging(handle: string): DeltamapperError {
  return new DeltamapperError(
    'DM_COW_MERGING',
    `the origin of ${handle} is being put back to a snapshot of it (lvconvert --merge), which takes entries out of stores`,
    'take a full backup of a new snapshot once the merge is done'
  )
}

function transient(handle: string): DeltamapperError {
  return new DeltamapperError(
    'DM_COW_TRANSIENT',
    `${handle} keeps its list of changes in memory only`,
    'take a full backup; take snapshots with LVM, which keeps the list on disk'
  )
}

export function detached(handle: string, why: string): DeltamapperError {
  return new DeltamapperError(
    'DM_COW_DETACHED',
    `the devices of ${handle} do not stand as LVM puts them: ${why}`,
    'take a full backup of a new snapshot; leave the devices of classic snapshots to LVM'
  )
}
