/**
 * How a volume comes to be tracked, and how that ends. Each change is on record before it begins, so that one that was
 * interrupted is completed or rolled back.
 *
 * The caller must hold the volume's lock.
 */
import { randomUUID } from 'node:crypto'
import { formatEraTable } from '../../devicemapper/era/table.ts'
import { DeltamapperError, invalid } from '../../errors.ts'
import type { EraVolume } from '../catalog/era-volumes.ts'
import { isPathOnly } from '../node/device-identity.ts'
import { superblockOf, TrackedDevice } from './device/tracked-device.ts'
import { MAX_BLOCKS, metadataBytes } from './device/metadata-size.ts'
import type { Claim } from '../../devicemapper/block-device.ts'
import { refuseLossyKernel, refuseTakenNames } from './device/may-be-made.ts'
import type { VolumeParts } from './device/volume-parts.ts'
import { SECTOR_BYTES } from '../../units.ts'

export interface AttachRequest {
  readonly name: string
  readonly dataDevice: string
  readonly metadataDevice: string
  readonly blockBytes: number
  readonly snapshotBy: string
  readonly allowLossyKernel: boolean
}

export class Attachment {
  readonly #parts: VolumeParts

  constructor(parts: VolumeParts) {
    this.#parts = parts
  }

  /**
   * Begins to track a device.
   *
   * @throws DM_KERNEL_LOSSY; DM_DEVICE_BUSY when a device or name is in use; DM_DEVICE_NOT_BLANK; DM_ARGUMENT_INVALID
   *   for an unusable block size or metadata device; and what device-mapper calls and the catalog throw
   */
  async attach(request: AttachRequest): Promise<void> {
    const { name, dataDevice, metadataDevice, snapshotBy, allowLossyKernel } = request
    refuseLossyKernel(allowLossyKernel)
    const blockSectors = request.blockBytes / SECTOR_BYTES
    await refuseTakenNames(this.#parts.deviceMapper, { dmName: name })
    const { data, metadata } = await this.#claimFree(dataDevice, metadataDevice)
    for (const { path, identity } of [data, metadata]) {
      if (!isPathOnly(identity)) continue
      this.#parts.logger.warn(
        { volume: name, device: path },
        'nothing but its path tells this device from others: give it a serial number or partitions, or make it a volume of LVM'
      )
    }
    const blocks = Math.ceil(data.sizeBytes / request.blockBytes)
    // Throws for an impossible block size.
    formatEraTable({ metadataDevice: metadata.number, originDevice: data.number, blockSectors })
    if (blocks >= MAX_BLOCKS) {
      throw invalid(`${dataDevice} would have ${blocks} blocks of ${request.blockBytes} bytes`, 'take larger blocks')
    }
    const wanted = metadataBytes(blocks)
    if (metadata.sizeBytes < wanted) {
      throw invalid(
        `${metadataDevice} has ${metadata.sizeBytes} bytes, and ${blocks} blocks take ${wanted}`,
        'take a larger metadata device, or larger blocks: a full one fails writes'
      )
    }
    const id = `era:${randomUUID()}`
    const volume = {
      ...{ id, name, dmName: name, dataDevice, dataIdentity: data.identity },
      ...{ metadataDevice, metadataIdentity: metadata.identity, blockSectors, sizeBytes: data.sizeBytes },
      ...{ line: randomUUID(), lineBecause: 'attached', newestEra: 0, seenBlocks: 0 },
      ...{ guardCheckedAt: this.#parts.machine.clock.now(), lowerSeen: '', allowLossyKernel, snapshotBy }
    }
    await this.#parts.catalog.eraVolumes.begin({ kind: 'attach', volume })
    const tracked = new TrackedDevice(this.#parts.deviceMapper, { ...volume, createdAt: 0 }, this.#parts.machine)
    try {
      await tracked.blankMetadata()
      await tracked.putUp(data.number, metadata.number)
    } finally {
      await this.settleAttach(name, tracked)
    }
    await this.#parts.historyCheck.check(name)
  }

  /** Completes an `attach` that was begun, or rolls it back. @returns what was done, in words */
  async settleAttach(name: string, tracked: TrackedDevice): Promise<string> {
    const complete = await tracked.active().then(
      (devices) => !devices.era.suspended,
      () => false
    )
    if (complete) {
      const devices = await tracked.active()
      await this.#parts.machine.refuseDiscards(devices.guard)
      await this.#parts.catalog.eraVolumes.complete(name)
      return `${name} was to be attached: it is`
    }
    await tracked.takeDown()
    // The device was blank before, so nothing is lost. If it cannot be blanked, the next attach reports its content.
    await tracked.blankMetadata().catch(() => undefined)
    await this.#parts.catalog.eraVolumes.rollBack(name)
    return `${name} was to be attached, and is not`
  }

  /**
   * Ends the tracking. The data device keeps its contents, the history is forgotten, and the metadata device is made
   * blank. @throws DM_DEVICE_BUSY while the volume is in use
   */
  async detach(volume: EraVolume): Promise<void> {
    const tracked = new TrackedDevice(this.#parts.deviceMapper, volume, this.#parts.machine)
    const info = await tracked.info()
    if (info && info.openCount > 0) await tracked.takeDown()
    await this.#parts.catalog.eraVolumes.begin({ kind: 'detach', volume: volume.name })
    await this.settleDetach(volume, tracked)
  }

  /** Completes a `detach` that was begun. @returns what was done, in words */
  async settleDetach({ name, metadataDevice }: EraVolume, tracked: TrackedDevice): Promise<string> {
    await tracked.takeDown()
    // Makes the metadata device usable again. Anything that is not recognised as era metadata of this volume stays.
    await tracked
      .checkMetadata()
      .then(() => superblockOf(metadataDevice, this.#parts.machine.open))
      .then(() => tracked.blankMetadata())
      .catch((error: unknown) => {
        this.#parts.logger.warn({ volume: name, err: error }, 'the metadata device was not made blank')
      })
    await this.#parts.catalog.eraVolumes.complete(name)
    return `${name} was to be detached: it is`
  }

  /** Both devices of a new volume. @throws DM_DEVICE_BUSY, DM_DEVICE_NOT_BLANK, DM_ARGUMENT_INVALID */
  async #claimFree(dataPath: string, metadataPath: string) {
    await using data = await this.#parts.machine.claim(dataPath)
    await using metadata = await this.#parts.machine.claim(metadataPath).catch((error: unknown) => {
      if (!(error instanceof DeltamapperError) || error.code !== 'DM_DEVICE_BUSY') throw error
      throw new DeltamapperError(error.code, error.message, `${error.remedy}; it cannot be the data device as well`)
    })
    const content = await metadata.content()
    if (content !== undefined) {
      throw new DeltamapperError(
        'DM_DEVICE_NOT_BLANK',
        `${metadataPath} holds ${content}, which era metadata would overwrite`,
        `if nothing on it is needed any more, \`wipefs --all ${metadataPath}\` and \`dd if=/dev/zero of=${metadataPath} bs=4096 count=1 conv=fsync\``
      )
    }
    const describe = async (device: Claim) => ({
      path: device.path,
      number: device.number,
      sizeBytes: device.sizeBytes,
      identity: await this.#parts.machine.identity(this.#parts.deviceMapper, device.path, device.number)
    })
    return { data: await describe(data), metadata: await describe(metadata) }
  }
}
