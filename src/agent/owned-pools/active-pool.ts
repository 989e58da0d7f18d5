/**
 * An owned pool as the kernel has it now: its target's status, the content of its metadata, and the devices made of its
 * thins, by any process.
 */
import type { DeviceInfo, DeviceMapper } from '../../../native/device-mapper.ts'
import type { DeviceDetails } from '../../devicemapper/thin/device-details.ts'
import { type PoolPlan, ThinPool, wipePool } from '../../devicemapper/thin/pool.ts'
import type { PoolMachine } from '../../devicemapper/thin/pool-machine.ts'
import type { ReadOptions } from '../../devicemapper/block-reader.ts'
import { openPoolMetadata } from '../../devicemapper/thin/pool-metadata.ts'
import type { PoolNumbers } from '../../devicemapper/thin/status.ts'
import { DeltamapperError } from '../../errors.ts'
import type { OwnedPool, OwnedThin } from '../catalog/owned-pools.ts'
import { findPoolDevice, type PoolDevice } from '../node/pool-device.ts'
import { type ThinDevice, thinDevices } from './kernel-view.ts'
import { isLvm, surveyDevices } from '../node/survey.ts'
import { poolUuid, thinUuid } from '../node/naming.ts'
import { SECTOR_BYTES } from '../../units.ts'

const noFeatures = {
  skipBlockZeroing: false,
  ignoreDiscard: false,
  noDiscardPassdown: false,
  readOnly: false,
  errorIfNoSpace: false
}

/** The devices that it is made of. */
export function planOf(pool: Omit<OwnedPool, 'createdAt'>): PoolPlan {
  return {
    name: pool.dmName,
    uuid: poolUuid(pool),
    metadataDevice: pool.metadataDevice,
    dataDevice: pool.dataDevice,
    blockSectors: pool.dataBlockSectors,
    lowWaterBlocks: pool.lowWaterBlocks,
    features: { ...noFeatures, errorIfNoSpace: pool.features.split(' ').includes('error_if_no_space') }
  }
}

export class ActivePool {
  readonly pool: OwnedPool
  /** Its interface to the kernel. */
  readonly target: ThinPool
  readonly #deviceMapper: DeviceMapper
  readonly #machine: PoolMachine

  constructor(deviceMapper: DeviceMapper, pool: OwnedPool, machine: PoolMachine) {
    this.pool = pool
    this.target = new ThinPool(deviceMapper, poolUuid(pool), machine)
    this.#deviceMapper = deviceMapper
    this.#machine = machine
  }

  async isActive(): Promise<boolean> {
    return (await this.target.info()) !== undefined
  }

  /** @throws DM_POOL_INACTIVE */
  async refuseInactive(): Promise<void> {
    if (await this.isActive()) return
    const { name } = this.pool
    throw new DeltamapperError(
      'DM_POOL_INACTIVE',
      `pool ${name} is not active`,
      `activate it: \`deltamapper pool activate ${name}\``
    )
  }

  /** Its status line. @throws DM_POOL_READ_ONLY when it has failed */
  async numbers(): Promise<PoolNumbers> {
    const status = await this.target.status()
    if (status.state === 'working') return status
    throw new DeltamapperError(
      'DM_POOL_READ_ONLY',
      `pool ${this.pool.name} has failed`,
      'find out why in the kernel log; `thin_check` and `thin_repair` are for its metadata'
    )
  }

  /**
   * Everything in its metadata, by thin id.
   *
   * @param options.deadlineMs how long one read may take, in milliseconds
   * @throws DM_POOL_INACTIVE, and what reading metadata throws
   */
  async thins(options?: { deadlineMs: number }): Promise<ReadonlyMap<number, DeviceDetails>> {
    const { metadataPath, metadataDevice } = await this.#device()
    return thinsOn(metadataPath, { device: metadataDevice, open: this.#machine.open, ...options })
  }

  /** One of them, and the byte at which its highest mapping ends. @throws DM_DEVICE_NOT_FOUND, and the same */
  async look(thinId: number): Promise<{ details: DeviceDetails; mappedEnd: number }> {
    const { metadataPath, metadataDevice } = await this.#device()
    const { open } = this.#machine
    const metadata = await openPoolMetadata(metadataPath, { liveRoot: true, device: metadataDevice, open })
    try {
      const found = await metadata.device(thinId)
      return { details: found.details, mappedEnd: await metadata.mappedEnd(found) }
    } finally {
      await metadata.close()
    }
  }

  /** The active devices of its thins, made by any process. */
  async devices(): Promise<ThinDevice[]> {
    const devices = thinDevices(await surveyDevices(this.#deviceMapper))
    return devices.filter((each) => each.poolUuid === poolUuid(this.pool) && !isLvm(each.info))
  }

  /** The device that we made of a thin, if it is active. */
  async deviceOf(thin: OwnedThin): Promise<{ info: DeviceInfo; sizeBytes: number } | undefined> {
    const info = await this.#deviceMapper.info({ uuid: thinUuid(thin) })
    if (!info?.hasLiveTable) return undefined
    const [row] = await this.#deviceMapper.table({ uuid: info.uuid })
    return row && { info, sizeBytes: row.lengthSectors * SECTOR_BYTES }
  }

  /**
   * Refuses to change a thin that another process has activated, or whose active size differs from the catalog's.
   *
   * @throws DM_DEVICE_BUSY when another process has made a device of it
   */
  async onlyDevice(thin: OwnedThin): Promise<ThinDevice | undefined> {
    const devices = (await this.devices()).filter((each) => each.thinId === thin.thinId)
    const foreign = devices.find(({ info }) => info.uuid !== thinUuid(thin))
    if (!foreign) return devices[0]
    throw new DeltamapperError(
      'DM_DEVICE_BUSY',
      `${this.pool.name}/${thin.name} is active as ${foreign.dmName}, which this agent has not made and does not touch`,
      `\`dmsetup remove ${foreign.dmName}\``
    )
  }

  /**
   * Deactivates the pool, and with `withVolumes` its thins; `ours` are those in the catalog. Does nothing if it is not
   * active.
   */
  async deactivate(ours: readonly OwnedThin[], withVolumes: boolean): Promise<void> {
    if (!(await this.isActive())) return
    const { name } = this.pool
    const devices = await this.devices()
    const [first] = devices
    if (first && !withVolumes) {
      throw new DeltamapperError(
        'DM_DEVICE_BUSY',
        `pool ${name} has ${devices.length} active volumes and snapshots (${first.dmName} …)`,
        'deactivate them first, or all together (`--with-volumes`)'
      )
    }
    const uuids = new Set(ours.map(thinUuid))
    // All of them are checked before the first is removed.
    for (const { info } of devices) {
      refuseInUse(info, info.name)
      if (uuids.has(info.uuid)) continue
      throw new DeltamapperError(
        'DM_DEVICE_BUSY',
        `${info.name} is in pool ${name}, and was not made by this agent`,
        `\`dmsetup remove ${info.name}\``
      )
    }
    for (const { info } of devices) await this.target.deactivateThin({ uuid: info.uuid })
    await this.target.deactivate()
  }

  /**
   * Makes the start of its disks blank. @throws DM_DEVICE_NOT_BLANK when the pool holds something that the catalog does
   * not know
   */
  async wipe(): Promise<void> {
    const plan = planOf(this.pool)
    const inside = await thinsOn(plan.metadataDevice, { open: this.#machine.open }).catch((error: unknown) => {
      if (error instanceof DeltamapperError && error.code === 'DM_METADATA_FOREIGN') return undefined
      throw error
    })
    if (inside !== undefined && inside.size > 0) {
      throw new DeltamapperError(
        'DM_DEVICE_NOT_BLANK',
        `${plan.metadataDevice} still has ${inside.size} thin devices that the catalog does not know of (${[...inside.keys()][0]} …)`,
        'activate the pool, adopt and delete them, or remove it without --wipe'
      )
    }
    await wipePool(this.#deviceMapper, plan, this.#machine)
  }

  async #device(): Promise<PoolDevice> {
    const device = await findPoolDevice(this.#deviceMapper, { uuid: poolUuid(this.pool) })
    if (device) return device
    await this.refuseInactive()
    throw new DeltamapperError('DM_NO_SUCH_DEVICE', `pool ${this.pool.name} was not active for a moment`, 'ask again')
  }
}

/** @throws DM_DEVICE_BUSY while the device is open */
export function refuseInUse(info: DeviceInfo, what: string): void {
  if (info.openCount === 0) return
  throw new DeltamapperError(
    'DM_DEVICE_BUSY',
    `${what} is in use (${info.name} is open ${info.openCount} times)`,
    'unmount it, or find who holds it open (`lsblk`, `lsof`)'
  )
}

async function thinsOn(metadataPath: string, options: ReadOptions): Promise<Map<number, DeviceDetails>> {
  const metadata = await openPoolMetadata(metadataPath, { liveRoot: true, ...options })
  try {
    const thins = new Map<number, DeviceDetails>()
    for await (const { id, details } of metadata.devices()) thins.set(id, details)
    return thins
  } finally {
    await metadata.close()
  }
}
