/**
 * One thin pool on plain device-mapper: create, grow, activate and deactivate it, and its volumes and snapshots.
 * (Documentation/admin-guide/device-mapper/thin-provisioning.rst; drivers/md/dm-thin.c where that says less.)
 *
 * - Every device is addressed by a UUID of ours, never by its name or number. So nothing here can reach a foreign
 *   device, whatever its name is. LVM likewise leaves devices without its UUID prefix (`LVM-…`) alone.
 * - The kernel formats a metadata device whose first block is zero, and believes any other. So a new pool needs blank
 *   devices, and activating a pool needs the metadata that it left.
 * - A new table is loaded beside the live one and put in place by a resume, which suspends for a moment. A kill in
 *   between leaves a device that works, perhaps with the old table.
 * - An active origin must be suspended while a snapshot of it is taken. Otherwise the snapshot is not of one moment
 *   ("NOT enforced"). It is resumed on every way out.
 */
import type { DeviceInfo, DeviceMapper, DeviceReference, TableRow } from '../../../native/device-mapper.ts'
import { defect, DeltamapperError, invalid } from '../../errors.ts'
import { type Claim, onceFree } from '../block-device.ts'
import { dropInactiveTable } from '../inactive-table.ts'
import { parsePoolStatus, type PoolStatus } from './status.ts'
import { type PoolMachine, thisMachine } from './pool-machine.ts'
import { openPoolMetadata } from './pool-metadata.ts'
import { formatPoolTable, formatThinTable, parsePoolTable, type PoolFeatures } from './table.ts'
import { SECTOR_BYTES } from '../../units.ts'

/** The least that the kernel's documentation recommends for metadata, in bytes. */
const LEAST_METADATA_BYTES = 2 * 2 ** 20
/** Suspending waits for I/O in flight, and a mounted file system first writes its dirty data. Milliseconds. */
const SUSPEND_DEADLINE_MS = 60_000
/** Formatting the metadata of a large pool writes a bitmap for all its blocks. Milliseconds. */
const CREATE_DEADLINE_MS = 60_000
const RESUME_ATTEMPTS = 3

export type PoolPort = Pick<
  DeviceMapper,
  'info' | 'table' | 'status' | 'message' | 'create' | 'reload' | 'clear' | 'suspend' | 'resume' | 'remove'
>

/** The parts of a pool. */
export interface PoolPlan {
  /** Its device-mapper name. */
  readonly name: string
  readonly uuid: string
  /** Absolute paths of block devices; the pool takes all of each. */
  readonly metadataDevice: string
  readonly dataDevice: string
  /** In sectors of 512 bytes: 128 to 2097152, a multiple of 128. */
  readonly blockSectors: number
  /** At this many free data blocks the kernel raises an event. */
  readonly lowWaterBlocks: number
  readonly features: PoolFeatures
}

/** A thin device to activate. */
export interface ThinPlan {
  readonly name: string
  readonly uuid: string
  readonly thinId: number
  /** A multiple of 512. */
  readonly sizeBytes: number
  readonly readOnly: boolean
}

/**
 * Checks that such a pool can be made, without changing anything. Sizes in bytes.
 *
 * @throws DM_ARGUMENT_INVALID for impossible sizes and names; DM_DEVICE_BUSY when a device or name is in use;
 *   DM_DEVICE_NOT_BLANK when a device holds something; DM_NO_SUCH_DEVICE, DM_PERMISSION, DM_READ_FAILED, and what
 *   device-mapper calls throw
 */
export async function checkNewPool(
  deviceMapper: PoolPort,
  plan: PoolPlan,
  machine: PoolMachine = thisMachine
): Promise<{ metadataBytes: number; dataBytes: number }> {
  for (const reference of [plan.name, { uuid: plan.uuid }]) await refuseExisting(deviceMapper, reference)
  await using devices = await claimDevices(deviceMapper, plan, machine)
  const { metadata, data } = devices
  if (metadata.sizeBytes < LEAST_METADATA_BYTES) {
    throw invalid(
      `the metadata device ${metadata.path} has ${metadata.sizeBytes} bytes`,
      `give it ${LEAST_METADATA_BYTES} at least; 48 for each data block are plenty`
    )
  }
  for (const device of [metadata, data]) {
    const content = await device.content()
    if (content === undefined || (device === metadata && (await isFreshPool(device.path, machine)))) continue
    throw new DeltamapperError(
      'DM_DEVICE_NOT_BLANK',
      `${device.path} holds ${content}, which the pool would overwrite`,
      `if nothing on it is needed any more, \`wipefs --all ${device.path}\` and \`dd if=/dev/zero of=${device.path} bs=4096 count=1 conv=fsync\``
    )
  }
  return { metadataBytes: metadata.sizeBytes, dataBytes: data.sizeBytes }
}

/**
 * Makes a pool of two blank devices, and activates it.
 *
 * @throws what checkNewPool throws
 */
export async function createPool(
  deviceMapper: PoolPort,
  plan: PoolPlan,
  machine: PoolMachine = thisMachine
): Promise<ThinPool> {
  await checkNewPool(deviceMapper, plan, machine)
  const metadata = await machine.claim(plan.metadataDevice, { writable: true })
  try {
    await metadata.zeroStart(4096)
  } finally {
    await metadata.close()
  }
  return startPool(deviceMapper, plan, machine)
}

/**
 * Activates an existing pool. It takes all of its devices: if they have grown, so has the pool.
 *
 * @param transactionIds the transaction ids that are right; with any other it is another pool, or another process
 *   changed it
 * @throws DM_CATALOG_DISAGREES when the metadata is not what this pool left; DM_METADATA_FOREIGN, DM_METADATA_DAMAGED;
 *   DM_DEVICE_BUSY when a device or name is in use; DM_NO_SUCH_DEVICE, DM_PERMISSION, DM_READ_FAILED, and what
 *   device-mapper calls throw
 */
export async function activatePool(
  deviceMapper: PoolPort,
  plan: PoolPlan,
  transactionIds: readonly bigint[],
  machine: PoolMachine = thisMachine
): Promise<ThinPool> {
  for (const reference of [plan.name, { uuid: plan.uuid }]) await refuseExisting(deviceMapper, reference)
  const devices = await claimDevices(deviceMapper, plan, machine)
  await devices[Symbol.asyncDispose]()
  const metadata = await openPoolMetadata(plan.metadataDevice, { liveRoot: true, open: machine.open })
  try {
    const { transactionId, dataBlockSectors } = metadata.superblock
    if (dataBlockSectors !== plan.blockSectors) {
      throw new DeltamapperError(
        'DM_CATALOG_DISAGREES',
        `the metadata on ${plan.metadataDevice} is of a pool with blocks of ${dataBlockSectors} sectors, and ${plan.name} has ${plan.blockSectors}`,
        'check that the devices are those of this pool'
      )
    }
    if (!transactionIds.includes(transactionId)) {
      throw new DeltamapperError(
        'DM_CATALOG_DISAGREES',
        `the metadata on ${plan.metadataDevice} is at transaction ${transactionId}, and pool ${plan.name} was left at ${transactionIds.join(' or ')}`,
        'check that the devices are those of this pool, and that nobody else has changed it'
      )
    }
  } finally {
    await metadata.close()
  }
  return startPool(deviceMapper, plan, machine)
}

/**
 * Makes the devices of a pool blank again for a new pool: the first MiB of both.
 *
 * @throws DM_DEVICE_BUSY while the pool or something else uses them; DM_NO_SUCH_DEVICE, DM_PERMISSION, DM_READ_FAILED
 */
export async function wipePool(
  deviceMapper: PoolPort,
  plan: PoolPlan,
  machine: PoolMachine = thisMachine
): Promise<void> {
  await using devices = await claimDevices(deviceMapper, plan, machine, { writable: true })
  await devices.metadata.zeroStart(2 ** 20)
  await devices.data.zeroStart(2 ** 20)
}

/** An active pool of ours. If it is not active any more, the next call shows it: DM_NO_SUCH_DEVICE. */
export class ThinPool {
  readonly #deviceMapper: PoolPort
  readonly #reference: { readonly uuid: string }
  readonly #machine: PoolMachine

  constructor(deviceMapper: PoolPort, uuid: string, machine: PoolMachine = thisMachine) {
    this.#deviceMapper = deviceMapper
    this.#machine = machine
    this.#reference = { uuid }
  }

  /** Its device; undefined when it is not active. */
  async info(): Promise<DeviceInfo | undefined> {
    const info = await this.#deviceMapper.info(this.#reference)
    return info?.hasLiveTable ? info : undefined
  }

  /** @throws DM_NO_SUCH_DEVICE, DM_STATUS_UNKNOWN, DM_CALL_STUCK */
  async status(): Promise<PoolStatus> {
    const [row] = await this.#deviceMapper.status(this.#reference)
    return row === undefined ? { state: 'unknown' } : parsePoolStatus(row.params)
  }

  /**
   * Refuses what the kernel would refuse with a bare error number: every message to a pool that has failed or accepts
   * no changes.
   *
   * @throws DM_POOL_READ_ONLY
   */
  async refuseUnlessChangeable(): Promise<void> {
    const status = await this.status()
    if (status.state === 'working' && status.mode !== 'read-only') return
    const refuse = (what: string, remedy: string): never => {
      throw new DeltamapperError('DM_POOL_READ_ONLY', `the pool takes no changes: ${what}`, remedy)
    }
    if (status.state !== 'working') {
      refuse('it has failed', 'find out why in the kernel log; `thin_check` and `thin_repair` are for its metadata')
    } else if (status.needsCheck) {
      refuse('its metadata needs a check', 'deactivate it, run `thin_check --clear-needs-check-flag`, and activate it')
    } else {
      refuse(
        `it is read-only, with ${status.usedMetadataBlocks} of ${status.totalMetadataBlocks} metadata blocks in use`,
        'enlarge its metadata device and grow the pool; the kernel log says what else may be wrong'
      )
    }
  }

  /** Creates an empty thin device. On disk when this resolves, unless the pool has turned read-only. */
  async createThin(thinId: number): Promise<void> {
    await this.#message(`create_thin ${thinId}`)
  }

  /**
   * Takes a snapshot of a thin device.
   *
   * @param activeOrigin the origin's device if it is active. It is suspended meanwhile, and its file system frozen
   */
  async createSnapshot(thinId: number, originId: number, activeOrigin?: DeviceReference): Promise<void> {
    const message = () => this.#message(`create_snap ${thinId} ${originId}`)
    if (activeOrigin === undefined) return message()
    try {
      await this.#deviceMapper.suspend(activeOrigin, { deadlineMs: SUSPEND_DEADLINE_MS })
      await message()
    } finally {
      // Even if suspending has failed: a call that was given up may still take effect. Resuming waits for it.
      await this.#resumeAsItWas(activeOrigin)
    }
  }

  /** Deletes a thin device. @throws DM_DEVICE_BUSY while it is active */
  async deleteThin(thinId: number): Promise<void> {
    await this.#message(`delete ${thinId}`)
  }

  /** Changes the pool's transaction id, if it is `from`. */
  async setTransactionId(from: bigint, to: bigint): Promise<void> {
    await this.#message(`set_transaction_id ${from} ${to}`)
  }

  /** Makes a device of a thin device. @throws DM_DEVICE_BUSY when the name or UUID is taken */
  async activateThin({ name, uuid, thinId, sizeBytes, readOnly }: ThinPlan): Promise<DeviceInfo> {
    const table = [await this.#thinRow(thinId, sizeBytes)]
    return this.#deviceMapper.create(name, { uuid, table, readOnly })
  }

  /** Gives an active thin device another size. @param sizeBytes a multiple of 512 */
  async resizeThin(device: DeviceReference, sizeBytes: number): Promise<void> {
    const info = await this.#deviceMapper.info(device)
    const [row] = await this.#deviceMapper.table(device)
    if (row?.targetType !== 'thin' || !info) throw defect('the thin device has no table')
    await this.#replaceTable(device, row, { ...row, lengthSectors: sizeBytes / SECTOR_BYTES }, info.readOnly)
  }

  /** Removes the device of a thin device. @throws DM_DEVICE_BUSY while it is open */
  async deactivateThin(device: DeviceReference): Promise<void> {
    await this.#deviceMapper.remove(device, { retry: true })
  }

  /**
   * Lets the pool take all of its devices, after they have grown.
   *
   * @returns whether there was anything to take
   * @throws DM_ARGUMENT_INVALID when the data device has become smaller
   */
  async grow(): Promise<boolean> {
    const [row] = await this.#deviceMapper.table(this.#reference)
    if (row?.targetType !== 'thin-pool') throw defect('the pool has no table')
    const { metadataDevice, dataDevice, blockSectors } = parsePoolTable(row.params)
    const lengthSectors = wholeBlocks((await this.#machine.sizeOf(dataDevice)) / SECTOR_BYTES, blockSectors)
    if (lengthSectors < row.lengthSectors) {
      throw invalid(
        `the data device has become smaller: ${lengthSectors * SECTOR_BYTES} bytes, where the pool has ${row.lengthSectors * SECTOR_BYTES}`,
        'give it back its size: a pool cannot shrink, and what lies beyond the end is out of reach'
      )
    }
    const status = await this.status()
    const metadataBlocks = Math.floor((await this.#machine.sizeOf(metadataDevice)) / 4096)
    if (lengthSectors === row.lengthSectors && status.state === 'working') {
      if (metadataBlocks <= status.totalMetadataBlocks) return false
    }
    await this.#replaceTable(this.#reference, row, { ...row, lengthSectors }, false)
    return true
  }

  /** Removes the pool's device; its disks keep their content. @throws DM_DEVICE_BUSY while thin devices are active */
  async deactivate(): Promise<void> {
    await this.#deviceMapper.remove(this.#reference, { retry: true })
  }

  async #thinRow(deviceId: number, sizeBytes: number): Promise<TableRow> {
    const poolDevice = await this.#deviceMapper.info(this.#reference)
    if (!poolDevice) {
      throw new DeltamapperError(
        'DM_POOL_INACTIVE',
        'the pool is not active any more',
        '`deltamapper pool activate POOL`, and ask again'
      )
    }
    const params = formatThinTable({ poolDevice, deviceId, externalOrigin: undefined })
    return { startSector: 0, lengthSectors: sizeBytes / SECTOR_BYTES, targetType: 'thin', params }
  }

  async #message(text: string): Promise<void> {
    await this.#deviceMapper.message(this.#reference, text)
  }

  /** Loads a table and puts it in place. After a failure the device works on with the old one. */
  async #replaceTable(device: DeviceReference, old: TableRow, replacement: TableRow, readOnly: boolean): Promise<void> {
    await this.#deviceMapper.reload(device, [replacement], { readOnly })
    try {
      await this.#deviceMapper.resume(device, { deadlineMs: SUSPEND_DEADLINE_MS })
    } catch (error) {
      // The kernel checks a pool's new sizes only when it resumes. A device whose new table it refuses stays suspended.
      await this.#deviceMapper.reload(device, [old], { readOnly })
      await this.#resume(device)
      throw error
    }
  }

  /** Resumes a device with its live table: another one that is loaded is foreign, and dropped. */
  async #resumeAsItWas(device: DeviceReference): Promise<void> {
    // (Even if that fails: a suspended device would block everything that uses it.)
    await dropInactiveTable(this.#deviceMapper, device, this.#machine.clock).catch(() => undefined)
    await this.#resume(device)
  }

  async #resume(device: DeviceReference): Promise<void> {
    for (let attempt = 1; ; attempt++) {
      try {
        await this.#deviceMapper.resume(device)
        return
      } catch (cause) {
        if (attempt < RESUME_ATTEMPTS) continue
        const info = await this.#deviceMapper.info(device).catch(() => undefined)
        const name = info?.name ?? 'the device'
        throw new DeltamapperError(
          'DM_CALL_STUCK',
          `${name} was suspended and could not be resumed: ${(cause as Error).message}`,
          `\`dmsetup resume ${name}\`: until then, everything that uses it waits`,
          { cause }
        )
      }
    }
  }
}

async function startPool(deviceMapper: PoolPort, plan: PoolPlan, machine: PoolMachine): Promise<ThinPool> {
  const devices = await claimDevices(deviceMapper, plan, machine)
  const { metadata, data } = devices
  await devices[Symbol.asyncDispose]()
  const { blockSectors, lowWaterBlocks, features } = plan
  const params = formatPoolTable({
    metadataDevice: metadata.number,
    dataDevice: data.number,
    blockSectors,
    lowWaterBlocks,
    features
  })
  const lengthSectors = wholeBlocks(data.sizeBytes / SECTOR_BYTES, blockSectors)
  const table = [{ startSector: 0, lengthSectors, targetType: 'thin-pool', params }]
  await onceFree(
    () => deviceMapper.create(plan.name, { uuid: plan.uuid, table, deadlineMs: CREATE_DEADLINE_MS }),
    machine.clock
  )
  return new ThinPool(deviceMapper, plan.uuid, machine)
}

interface ClaimedDevices extends AsyncDisposable {
  readonly metadata: Claim
  readonly data: Claim
}

/** Both devices of a pool, after a check that they are free and fit for a pool. */
async function claimDevices(
  deviceMapper: PoolPort,
  { metadataDevice, dataDevice, blockSectors, lowWaterBlocks, features }: PoolPlan,
  machine: PoolMachine,
  options: { writable?: boolean } = {}
): Promise<ClaimedDevices> {
  await using claimed = new AsyncDisposableStack()
  const metadata = claimed.use(await machine.claim(metadataDevice, options))
  const data = claimed.use(
    await machine.claim(dataDevice, options).catch((error: unknown) => {
      if (!(error instanceof DeltamapperError) || error.code !== 'DM_DEVICE_BUSY') throw error
      throw new DeltamapperError(error.code, error.message, `${error.remedy}; it cannot be the metadata device as well`)
    })
  )
  // Throws for an impossible block size or low-water mark.
  formatPoolTable({ metadataDevice: metadata.number, dataDevice: data.number, blockSectors, lowWaterBlocks, features })
  if (wholeBlocks(data.sizeBytes / SECTOR_BYTES, blockSectors) === 0) {
    throw invalid(
      `the data device ${data.path} has ${data.sizeBytes} bytes, less than one block of ${blockSectors * SECTOR_BYTES}`,
      'take a larger device or smaller blocks'
    )
  }
  for (const device of [metadata, data]) {
    const below = await deviceMapper.info(device.number)
    if (!below?.uuid.startsWith('LVM-')) continue
    throw new DeltamapperError(
      'DM_DEVICE_BUSY',
      `${device.path} (${below.name}) is a volume of LVM's`,
      "leave LVM's pools to LVM: they are served as they are; take a disk or partition of its own"
    )
  }
  const stack = claimed.move()
  return { metadata, data, [Symbol.asyncDispose]: () => stack.disposeAsync() }
}

async function refuseExisting(deviceMapper: PoolPort, reference: DeviceReference): Promise<void> {
  const info = await deviceMapper.info(reference)
  if (!info) return
  throw new DeltamapperError(
    'DM_NAME_TAKEN',
    `there already is a device-mapper device ${info.name}`,
    info.hasLiveTable
      ? `choose another name; \`dmsetup info ${info.name}\` tells what goes by this one`
      : `\`dmsetup remove ${info.name}\`: it is empty`
  )
}

/**
 * Whether a metadata device holds a pool that was only just formatted: it never held anything, and nothing is lost with
 * it.
 */
async function isFreshPool(path: string, { open }: PoolMachine): Promise<boolean> {
  try {
    const metadata = await openPoolMetadata(path, { liveRoot: true, open })
    try {
      const { transactionId, time, heldRoot } = metadata.superblock
      if (transactionId !== 0n || time !== 0 || heldRoot !== 0) return false
      for await (const _ of metadata.devices()) return false
      return true
    } finally {
      await metadata.close()
    }
  } catch (error) {
    if (error instanceof DeltamapperError) return false
    throw error
  }
}

function wholeBlocks(sectors: number, blockSectors: number): number {
  return Math.floor(sectors / blockSectors) * blockSectors
}
