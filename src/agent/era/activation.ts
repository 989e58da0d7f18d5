/**
 * A tracked volume's devices are made and removed, and what the devices below were like is remembered in between: after
 * a restart, that tells whether the history continues.
 *
 * The caller must hold the volume's lock.
 */
import { DeltamapperError } from '../../errors.ts'
import type { EraVolume } from '../catalog/era-volumes.ts'
import { refuseInUse } from '../owned-pools/active-pool.ts'
import { continued } from './device/history-check.ts'
import { headWritten } from './device/lasting-traces.ts'
import { type Inactive, type LastLook, parseLastLook, superblockOf, TrackedDevice } from './device/tracked-device.ts'
import { refuseLossyKernel, refuseTakenNames } from './device/may-be-made.ts'
import type { VolumeParts } from './device/volume-parts.ts'

export interface ActivationParts extends VolumeParts {
  /** The operator guarantees that nothing writes to the devices below between two boots. */
  readonly trustRestarts: boolean
}

export class Activation {
  readonly #parts: ActivationParts

  constructor(parts: ActivationParts) {
    this.#parts = parts
  }

  /**
   * Makes the devices of a volume. Does nothing if they exist and are right.
   *
   * @param startOver if the metadata is not what it was, format it anew and begin a new history
   * @throws DM_ERA_HISTORY_LOST when the metadata is not what it was; DM_KERNEL_LOSSY, DM_DEVICE_BUSY,
   *   DM_CATALOG_DISAGREES
   */
  async activate(volume: EraVolume, startOver: boolean): Promise<void> {
    const { name, metadataDevice } = volume
    const tracked = new TrackedDevice(this.#parts.deviceMapper, volume, this.#parts.machine)
    if (await tracked.info()) {
      await this.#parts.historyCheck.check(name)
      return
    }
    refuseLossyKernel(volume.allowLossyKernel)
    // An interrupted call left it: nothing stands on it.
    await tracked.takeDown()
    await refuseTakenNames(this.#parts.deviceMapper, volume)
    const data = await tracked.checkData()
    const metadata = await tracked.checkMetadata()
    const below = await tracked.seenInactive(data.number, metadata)
    const before = parseLastLook(volume.lowerSeen)
    const superblock = await superblockOf(metadataDevice, this.#parts.machine.open).catch((error: unknown) => {
      if (error instanceof DeltamapperError && error.code !== 'DM_READ_FAILED') return error
      throw error
    })
    const seen =
      superblock instanceof DeltamapperError
        ? superblock
        : // Since it was deactivated, nothing but its activation has begun eras: its metadata is looked at as a whole.
          continued(volume, superblock, metadataDevice, before.state === 'active' ? (before.ownEras ?? 0) : 'any')
    const isOther = seen instanceof DeltamapperError && seen.code !== 'DM_ERA_HISTORY_LOST'
    if (isOther) {
      if (!startOver) {
        throw new DeltamapperError(
          'DM_ERA_HISTORY_LOST',
          `the metadata of ${name} is not what it was: ${seen.message}`,
          `if it is gone for good, \`deltamapper era activate ${name} --start-over\` formats ${metadataDevice} anew; then take a full backup`
        )
      }
      await tracked.blankMetadata()
    }
    const now = superblock instanceof DeltamapperError || isOther ? undefined : superblock
    const because =
      seen instanceof DeltamapperError
        ? seen.message
        : ((await this.#headExchanged(volume, below, before)) ??
          tracked.writtenBeside(below, before, this.#parts.trustRestarts))
    const metadataSeen = { newestEra: now?.currentEra ?? 0, seenBlocks: now?.blocks ?? 0 }
    // On disk before anything can be written through the devices, and before a snapshot of the old history could be
    // taken.
    if (because !== undefined) {
      await this.#parts.catalog.eraVolumes.endHistory(name, because, metadataSeen)
      this.#parts.logger.warn({ volume: name, because }, 'the history of a tracked volume is void')
    }
    // From here on, every write to it must come through the devices, whoever checks next.
    await this.#parts.catalog.eraVolumes.saw(name, { lowerSeen: JSON.stringify(below), ...metadataSeen })
    await tracked.putUp(data.number, metadata)
    await this.#parts.historyCheck.check(name)
  }

  /**
   * Removes the devices, and remembers the state of the devices below.
   *
   * @param atShutdown nothing writes to the devices below any more in this boot, so the history continues after the
   *   restart
   * @throws DM_DEVICE_BUSY while the volume is in use
   */
  async deactivate(volume: EraVolume, atShutdown: boolean): Promise<void> {
    const tracked = new TrackedDevice(this.#parts.deviceMapper, volume, this.#parts.machine)
    const active = await tracked.info()
    // No write may be in flight: after this look, nothing may write to the data device.
    if (active) refuseInUse(active, volume.name)
    // What they counted matters, even though they are being removed.
    const checked = active && (await this.#lastLook(volume.name))
    await tracked.takeDown()
    if (!active && atShutdown) await this.#stillInactive(volume, tracked)
    if (!checked) return
    const { dataDevice, table } = checked.devices
    const seen = await tracked.seenInactive(dataDevice, table.metadataDevice, checked.counted)
    const { currentEra, blocks } = await superblockOf(volume.metadataDevice, this.#parts.machine.open)
    // If something wrote beside the volume since the look, the counters show it in this boot only.
    const { writtenSectors, discards } = await this.#parts.machine.counters(dataDevice)
    const isLast = atShutdown && writtenSectors === seen.writtenSectors && discards === seen.discards
    await this.#parts.catalog.eraVolumes.saw(volume.name, {
      lowerSeen: JSON.stringify({ ...seen, atShutdown: isLast } satisfies LastLook),
      newestEra: Math.max(currentEra, checked.volume.newestEra),
      seenBlocks: blocks
    })
  }

  /**
   * At shutdown, for a volume that was deactivated before: if nothing was written since then, nothing will be until the
   * next boot.
   */
  async #stillInactive(volume: EraVolume, tracked: TrackedDevice): Promise<void> {
    const before = parseLastLook(volume.lowerSeen)
    if (before.state !== 'inactive') return
    const remember = (seen: LastLook) =>
      this.#parts.catalog.eraVolumes.saw(volume.name, { lowerSeen: JSON.stringify(seen) })
    // The earlier shutdown was not the last act of its boot. This comes first, because a device in use cannot be
    // inspected.
    await remember({ ...before, atShutdown: false })
    const [data, metadata] = [await tracked.checkData(), await tracked.checkMetadata()]
    const now = await tracked.seenInactive(data.number, metadata)
    if (tracked.writtenBeside(now, before, false) === undefined) await remember({ ...now, atShutdown: true })
  }

  /**
   * The first look at a volume when an agent starts, before anything queries it. An active volume may have begun eras
   * for an agent that died; none of these may hide the era of another process. For a volume that was shut down in
   * order, this boot is the next one, whether the volume is activated or not.
   */
  async lookAtStart(name: string): Promise<void> {
    const volume = await this.#parts.catalog.eraVolumes.find(name)
    if (!volume) return
    if (await new TrackedDevice(this.#parts.deviceMapper, volume, this.#parts.machine).info())
      return this.#parts.historyCheck.lookAfter(name)
    const [before, nextBoot] = [parseLastLook(volume.lowerSeen), await this.#parts.machine.bootId()]
    if (before.state !== 'inactive' || !before.atShutdown || before.nextBoot !== undefined) return
    if (before.boot === nextBoot) return
    const lowerSeen = JSON.stringify({ ...before, nextBoot } satisfies LastLook)
    await this.#parts.catalog.eraVolumes.saw(name, { lowerSeen })
  }

  /**
   * For a volume that was active when its machine stopped, and whose history is to continue: whether the first bytes of
   * the data device differ from the last look, although the volume has not written to them since.
   */
  async #headExchanged({ name, dataDevice, metadataDevice, newestEra }: EraVolume, now: Inactive, before: LastLook) {
    if (!this.#parts.trustRestarts || before.state !== 'active' || before.head === now.head) return undefined
    if (await headWritten(this.#parts.machine, metadataDevice, newestEra)) return undefined
    return `the first bytes of ${dataDevice} are not what they were, and ${name} did not write to them`
  }

  /**
   * A look that records its findings and never fails. Undefined if there is nothing to inspect that could be
   * understood.
   */
  async #lastLook(name: string) {
    try {
      return await this.#parts.historyCheck.check(name)
    } catch (error) {
      const code = error instanceof DeltamapperError ? error.code : undefined
      if (code === 'DM_ERA_INACTIVE' || code === 'DM_CATALOG_DISAGREES') return undefined
      // The catalog has it by now: from here on, this is a new history.
      if (code === 'DM_ERA_HISTORY_LOST') return this.#parts.historyCheck.check(name)
      throw error
    }
  }
}
