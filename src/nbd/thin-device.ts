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
import { readFileSync } from 'node:fs'
import { isDeepStrictEqual } from 'node:util'
import type { DeviceInfo, DeviceMapper, DeviceNumber, TableRow } from '../../native/device-mapper.ts'
import {
  type Fingerprint,
  openPoolMetadata,
  type PoolMetadata,
  sameFingerprint,
  type ThinDevice
} from '../devicemapper/thin/pool-metadata.ts'
import { parseThinTable } from '../devicemapper/thin/table.ts'
import { DeltamapperError } from '../errors.ts'
import { DataFile } from './data-file.ts'
import type { ExtentStream } from '../devicemapper/extents.ts'
import type { ExportData, Part } from './export.ts'

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
  /** Of the snapshot; the device has to be it. */
  readonly handle: { readonly source: string; readonly name: string }
}

type Node = Pick<ThinDeviceOptions, 'deviceMapper' | 'findPool'>

export class ThinDeviceData implements ExportData {
  readonly sizeBytes: number
  /** Of the pool's data blocks. */
  readonly blockBytes: number
  /** Nobody can write through this device. */
  readonly isReadOnly: boolean
  /** Where the snapshot maps nothing, another device shows: it does not read as zeros. */
  readonly hasExternalOrigin: boolean
  readonly #file: DataFile
  readonly #metadata: PoolMetadata
  readonly #device: ThinDevice
  readonly #seen: Fingerprint
  readonly #opened: Opened
  readonly #node: Node

  private constructor(
    file: DataFile,
    metadata: PoolMetadata,
    device: ThinDevice,
    seen: Fingerprint,
    opened: Opened,
    node: Node
  ) {
    this.#file = file
    this.#metadata = metadata
    this.#device = device
    this.#seen = seen
    this.#opened = opened
    this.#node = node
    this.sizeBytes = file.sizeBytes
    this.blockBytes = metadata.superblock.dataBlockBytes
    this.isReadOnly = opened.info.readOnly
    this.hasExternalOrigin = opened.hasExternalOrigin
  }

  /**
   * @throws DM_NO_SUCH_DEVICE where it is no device-mapper device, or another's than the handle says; DM_NOT_TRACKED
   *   where it is not thin; DM_VOLUME_IN_USE where blocks could be overwritten without a trace; what reading throws
   */
  static async open(path: string, options: ThinDeviceOptions): Promise<ThinDeviceData> {
    const { bytesPerSecond, handle } = options
    const file = await DataFile.open(path, { bytesPerSecond })
    let metadata: PoolMetadata | undefined
    try {
      // Open, it keeps its number, whatever becomes of its name.
      const opened = await look(options, path, file.device)
      checkIsMeant(path, handle, opened)
      // What was written just before it was made read-only is in the metadata after a commit.
      await options.deviceMapper.status(opened.pool, { flush: true })
      metadata = await openPoolMetadata(opened.metadataPath, { liveRoot: true, device: opened.metadataDevice })
      const device = await metadata.device(opened.thinId)
      const seen = await metadata.fingerprint(device)
      // Blocks of its own are written in place, and nothing tells.
      if (!opened.info.readOnly && !(await metadata.isPristine(opened.thinId, undefined, seen))) {
        throw new DeltamapperError(
          'DM_VOLUME_IN_USE',
          `${path} was written to since it was taken, or is no snapshot, and can be written to: nothing would tell if it was`,
          `take a snapshot, and serve that; or make it read-only (lvchange -pr)`
        )
      }
      return new ThinDeviceData(file, metadata, device, seen, opened, options)
    } catch (error) {
      await metadata?.close()
      await file.close()
      throw error
    }
  }

  async parts(offset: number, size: number): Promise<Part[]> {
    return [{ offset, size, position: offset }]
  }

  async read({ position = 0, size }: Part, into: Buffer): Promise<Buffer> {
    return this.#file.read(position, size, into)
  }

  /** What the snapshot maps, by the metadata of the pool that its device is in. */
  async allocated(): Promise<ExtentStream> {
    const { id: deviceId } = this.#device
    return this.#metadata.allocated({ deviceId, sizeBytes: this.sizeBytes, fingerprint: this.#seen })
  }

  /** Of the snapshot, or of another device of its pool, in words; undefined where the pool has no such device. */
  async fingerprintOf(thinId: number = this.#device.id): Promise<string | undefined> {
    return this.#metadata.fingerprintText(thinId).catch((error: unknown) => {
      if (error instanceof DeltamapperError && error.code === 'DM_DEVICE_NOT_FOUND') return undefined
      throw error
    })
  }

  /** @throws DM_SNAPSHOT_CHANGED where it is not what it was when it was opened, and what looking throws */
  async look(): Promise<void> {
    const now = await look(this.#node, this.#file.path, this.#file.device)
    if (
      !isDeepStrictEqual({ ...now, writes: this.#opened.writes }, this.#opened) ||
      this.#file.sizeBytes !== this.sizeBytes
    ) {
      throw this.#changed('was renamed, resized, given another table or made writable')
    }
    if (!this.isReadOnly) await this.#node.deviceMapper.status(this.#opened.pool, { flush: true })
    const seen = await this.#metadata.fingerprint(this.#device)
    const writes = countWrites(this.#file.device)
    if (!sameFingerprint(seen, this.#seen) || writes !== this.#opened.writes) {
      throw this.#changed('was written to or trimmed')
    }
  }

  async close(): Promise<void> {
    await this.#metadata.close()
    await this.#file.close()
  }

  #changed(how: string): DeltamapperError {
    return new DeltamapperError(
      'DM_SNAPSHOT_CHANGED',
      `${this.#file.path} ${how} while it was served`,
      'throw away what was copied; keep snapshots read-only'
    )
  }
}

/** What the kernel says of a device that is to stay so. */
interface Opened {
  readonly info: Pick<DeviceInfo, 'name' | 'uuid' | 'readOnly'>
  readonly table: readonly TableRow[]
  readonly thinId: number
  readonly hasExternalOrigin: boolean
  readonly pool: DeviceNumber
  readonly poolName: string
  readonly poolUuid: string
  readonly metadataPath: string
  readonly metadataDevice: DeviceNumber
  /** Sectors written and discarded through the device, as the kernel has counted. */
  readonly writes: string
}

/**
 * Fields 7 and 14 of Documentation/block/stat.rst: sectors written and discarded. (A flush alone counts as a write of
 * none.)
 */
export function countWrites({ major, minor }: DeviceNumber = { major: 0, minor: 0 }): string {
  const fields = readFileSync(`/sys/dev/block/${major}:${minor}/stat`, 'utf8').trim().split(/\s+/)
  return [6, 13].map((at) => fields[at] ?? '0').join(' ')
}

async function look({ deviceMapper, findPool }: Node, path: string, number: DeviceNumber | undefined): Promise<Opened> {
  const info = number && (await deviceMapper.info(number))
  if (!number || !info) {
    throw new DeltamapperError(
      'DM_NO_SUCH_DEVICE',
      `${path} is no device-mapper device`,
      "name the snapshot's block device with --device"
    )
  }
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
  const { name, uuid, readOnly } = info
  return {
    ...{ info: { name, uuid, readOnly }, table, thinId: thin.deviceId, pool: thin.poolDevice },
    hasExternalOrigin: thin.externalOrigin !== undefined,
    ...{ poolName: pool.name, poolUuid: pool.uuid },
    ...{ metadataPath: pool.metadataPath, metadataDevice: pool.metadataDevice },
    writes: countWrites(number)
  }
}

/**
 * The agent answers for a name, and the data come from a device: they have to be of one snapshot. LVM and our own pools
 * call a device after group or pool and volume, hyphens doubled; dmsetup's pools go by device-mapper's names
 * themselves.
 */
function checkIsMeant(path: string, handle: ThinDeviceOptions['handle'], { info, poolName }: Opened): void {
  checkName(path, handle, info, poolName)
}

/** @throws DM_NO_SUCH_DEVICE @param poolName of a pool of dmsetup's */
export function checkName(
  path: string,
  { source, name }: ThinDeviceOptions['handle'],
  info: Pick<DeviceInfo, 'name' | 'uuid'>,
  poolName?: string
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
