/**
 * A thin snapshot's block device, and whether what is read from it still is the snapshot.
 *
 *   device ──table──▶ thin POOL ID ──▶ thin-pool METADATA DATA ──▶ the snapshot's root and count of mappings
 *
 * Whoever writes to the device, or trims it, moves the root, once the pool commits. A pool commits within a second, and
 * data of a write are read back before that: so where anybody can write, the pool is made to commit before each look
 * (pool_status in drivers/md/dm-thin.c). Where the device is read-only, it is left alone.
 *
 * Two writes can bring a root back to the block that it was in, with the same checksum, while a client pauses. So the
 * kernel's own count of the device's writes and discards has to stay what it was, too.
 */
import { isDeepStrictEqual } from 'node:util'
import type { DeviceMapper, DeviceNumber, TableRow } from '../../native/device-mapper.ts'
import { namedThin } from '../devicemapper/device-named.ts'
import {
  type Fingerprint,
  openPoolMetadata,
  type PoolMetadata,
  sameFingerprint,
  type ThinDevice
} from '../devicemapper/thin/pool-metadata.ts'
import { parsePoolTable, parseThinTable, type PoolTable } from '../devicemapper/thin/table.ts'
import { DeltamapperError } from '../errors.ts'
import { DataFile } from './data-file.ts'
import { type Attributes, DeviceAttributes } from './device-attributes.ts'
import type { WatchedDevice } from './watched-device.ts'

/** What there is to know of a pool that is active. */
export interface FoundPool {
  readonly name: string
  readonly uuid: string
  readonly metadataPath: string
  readonly metadataDevice: DeviceNumber
}

export interface ThinDeviceOptions {
  readonly deviceMapper: Pick<DeviceMapper, 'info' | 'table' | 'status'>
  /** The pool behind a device number; undefined when there is none. */
  readonly findPool: (pool: DeviceNumber) => Promise<FoundPool | undefined>
  /** No faster than so many bytes a second. */
  readonly bytesPerSecond?: number | undefined
  /** Nothing else records what was written to it: it has to be as it was taken, also where it is read-only. */
  readonly untouched?: boolean | undefined
  /** Of the snapshot; the device has to be it. */
  readonly handle: { readonly source: string; readonly name: string }
}

export class ThinDeviceData implements WatchedDevice {
  readonly sizeBytes: number
  /** Of the pool's data blocks. */
  readonly blockBytes: number
  readonly named: string
  /** The pool is made to commit before each look. */
  readonly isCostly: boolean
  readonly hasExternalOrigin: boolean
  readonly data: DataFile
  readonly #metadata: PoolMetadata
  readonly #device: ThinDevice
  readonly #seen: Fingerprint
  readonly #opened: Opened
  readonly #attributes: DeviceAttributes
  readonly #deviceMapper: ThinDeviceOptions['deviceMapper']

  private constructor(
    file: DataFile,
    metadata: PoolMetadata,
    device: ThinDevice,
    seen: Fingerprint,
    opened: Opened,
    attributes: DeviceAttributes,
    deviceMapper: ThinDeviceOptions['deviceMapper']
  ) {
    this.data = file
    this.#metadata = metadata
    this.#device = device
    this.#seen = seen
    this.#opened = opened
    this.#attributes = attributes
    this.#deviceMapper = deviceMapper
    this.sizeBytes = file.sizeBytes
    this.blockBytes = metadata.superblock.dataBlockBytes
    this.named = namedThin(opened.metadataDevice, opened.thinId)
    this.isCostly = !opened.readOnly
    this.hasExternalOrigin = opened.hasExternalOrigin
  }

  /**
   * @throws DM_NO_SUCH_DEVICE where it is no device-mapper device, or another's than the handle says; DM_NOT_TRACKED
   *   where it is not thin; DM_VOLUME_IN_USE where blocks could be overwritten without a trace; what reading throws
   */
  static async open(path: string, options: ThinDeviceOptions): Promise<ThinDeviceData> {
    const { bytesPerSecond, handle, untouched = false } = options
    const file = await DataFile.open(path, { bytesPerSecond })
    let metadata: PoolMetadata | undefined
    let attributes: DeviceAttributes | undefined
    try {
      // Open, it keeps its number, whatever becomes of its name.
      const number = file.device
      if (!number) throw noDevice(path)
      attributes = new DeviceAttributes(number)
      const opened = await find(options, path, number, attributes)
      checkIsMeant(path, handle, opened)
      // What was written just before it was made read-only is in the metadata after a commit.
      await options.deviceMapper.status(opened.pool, { flush: true })
      metadata = await openPoolMetadata(opened.metadataPath, { liveRoot: true, device: opened.metadataDevice })
      const device = await metadata.device(opened.thinId)
      const seen = await metadata.fingerprint(device)
      // Blocks of its own are written in place, and nothing tells.
      const isToBePristine = untouched || !opened.readOnly
      if (isToBePristine && !(await metadata.isPristine(opened.thinId, undefined, seen))) {
        throw notPristine(path, untouched)
      }
      await attributes.checkCounted(() => file.readPage())
      return new ThinDeviceData(file, metadata, device, seen, opened, attributes, options.deviceMapper)
    } catch (error) {
      attributes?.close()
      await metadata?.close()
      await file.close()
      throw error
    }
  }

  async look(): Promise<void> {
    const { pool, poolTable, table, name, uuid, readOnly, size, writes } = this.#opened
    const now = {
      ...(await this.#attributes.settled()),
      table: await this.#deviceMapper.table(this.#attributes.device),
      // Somebody could have put another pool under the device, with other metadata.
      poolTable: await standsOn(this.#deviceMapper, pool)
    }
    if (!isDeepStrictEqual(now, { name, uuid, readOnly, size, table, poolTable, writes: now.writes })) {
      throw this.#changed('was renamed, resized, given another table or made writable')
    }
    if (!readOnly) await this.#deviceMapper.status(pool, { flush: true })
    const seen = await this.#metadata.fingerprint(this.#device)
    // Last: what was written before it was read from is counted by now.
    if (!sameFingerprint(seen, this.#seen) || (await this.#attributes.settled()).writes !== writes) {
      throw this.#changed('was written to or trimmed')
    }
  }

  async close(): Promise<void> {
    this.#attributes.close()
    await this.#metadata.close()
    await this.data.close()
  }

  #changed(how: string): DeltamapperError {
    return new DeltamapperError(
      'DM_SNAPSHOT_CHANGED',
      `${this.data.path} ${how} while it was served`,
      'throw away what was copied; keep snapshots read-only'
    )
  }
}

/** What the kernel says of a device that is to stay so. */
interface Opened extends Attributes {
  readonly table: readonly TableRow[]
  readonly thinId: number
  readonly hasExternalOrigin: boolean
  readonly pool: DeviceNumber
  readonly poolName: string
  readonly poolTable: StandsOn | undefined
  readonly metadataPath: string
  readonly metadataDevice: DeviceNumber
}

async function find(
  { deviceMapper, findPool }: ThinDeviceOptions,
  path: string,
  number: DeviceNumber,
  attributes: DeviceAttributes
): Promise<Opened> {
  if (!(await deviceMapper.info(number))) throw noDevice(path)
  const table = await deviceMapper.table(number)
  const thin = table.length === 1 && table[0].targetType === 'thin' ? parseThinTable(table[0].params) : undefined
  if (!thin) {
    throw new DeltamapperError(
      'DM_NOT_TRACKED',
      `${path} is no thin device that works (its table is of ${table[0]?.targetType ?? 'no target'})`,
      'serve a thin snapshot; what lies over or beside it cannot be watched'
    )
  }
  const pool = await findPool(thin.poolDevice)
  if (!pool) throw new DeltamapperError('DM_POOL_INACTIVE', `the pool of ${path} is gone`, 'activate it again')
  return {
    ...(await attributes.settled()),
    ...{ table, thinId: thin.deviceId, pool: thin.poolDevice, poolName: pool.name },
    poolTable: await standsOn(deviceMapper, thin.poolDevice),
    hasExternalOrigin: thin.externalOrigin !== undefined,
    ...{ metadataPath: pool.metadataPath, metadataDevice: pool.metadataDevice }
  }
}

/** What a pool keeps its metadata and data on. */
type StandsOn = Pick<PoolTable, 'metadataDevice' | 'dataDevice'>

/** Undefined where it is no pool. */
async function standsOn(
  deviceMapper: ThinDeviceOptions['deviceMapper'],
  pool: DeviceNumber
): Promise<StandsOn | undefined> {
  const table = await deviceMapper.table(pool)
  if (table.length !== 1 || table[0].targetType !== 'thin-pool') return undefined
  const { metadataDevice, dataDevice } = parsePoolTable(table[0].params)
  return { metadataDevice, dataDevice }
}

function notPristine(path: string, untouched: boolean): DeltamapperError {
  const written = `${path} was written to since it was taken, or is no snapshot`
  if (untouched) {
    return new DeltamapperError(
      'DM_VOLUME_IN_USE',
      `${written}, and nothing says where`,
      'take a new snapshot, and write to none'
    )
  }
  return new DeltamapperError(
    'DM_VOLUME_IN_USE',
    `${written}, and can be written to: nothing would tell if it was`,
    'take a snapshot, and serve that; or make it read-only (lvchange -pr)'
  )
}

function noDevice(path: string): DeltamapperError {
  return new DeltamapperError(
    'DM_NO_SUCH_DEVICE',
    `${path} is no device-mapper device`,
    "name the snapshot's block device with --device"
  )
}

/**
 * The agent answers for a name, and the data come from a device: they have to be of one snapshot. LVM and our own pools
 * call a device after group or pool and volume, hyphens doubled; dmsetup's pools go by device-mapper's names
 * themselves.
 */
function checkIsMeant(
  path: string,
  { source, name }: ThinDeviceOptions['handle'],
  { poolName, ...info }: Opened
): void {
  const [group, volume] = [source, name].map((each) => each.replaceAll('-', '--'))
  if (/^(LVM|DELTAMAPPER)-/.test(info.uuid)) {
    if (source === '*' ? info.name.endsWith(`-${volume}`) : info.name === `${group}-${volume}`) return
  } else if (info.name === name && poolName === source) return
  throw new DeltamapperError(
    'DM_NO_SUCH_DEVICE',
    `${path} is ${info.name} to device-mapper, and not the device of ${source}/${name}`,
    "name the snapshot's own block device with --device"
  )
}
