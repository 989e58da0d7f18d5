/**
 * A tracked volume grows to the whole of its data device: while suspended, guard and era device get larger tables.
 *
 * The caller must hold the volume's lock.
 */
import { dropInactiveTable, refuseInactiveTables } from '../../devicemapper/inactive-table.ts'
import { formatEraTable } from '../../devicemapper/era/table.ts'
import { DeltamapperError, invalid } from '../../errors.ts'
import type { EraVolume } from '../catalog/era-volumes.ts'
import { onceNoKeeper } from './history/era-slot.ts'
import { waitingForDeviceMapper } from './device/processes.ts'
import { RESUMED_BY_OTHERS, type Resumes } from './boundary/resumes.ts'
import { resumeTracked, Suspension, type SuspensionParts } from './boundary/suspension.ts'
import { type ActiveDevices, dataBytes, superblockOf, TrackedDevice } from './device/tracked-device.ts'
import { MAX_BLOCKS, metadataBytes } from './device/metadata-size.ts'
import type { VolumeParts } from './device/volume-parts.ts'
import { SECTOR_BYTES } from '../../units.ts'

/** The longest suspension while a volume grows, in milliseconds. */
const GROW_DEADLINE_MS = 30_000
/**
 * How often to suspend a volume to grow it, if other processes query it each time. Between two tries it waits for up to
 * LONGEST_PAUSE_MS, a different time each, so that it comes between the rounds of one that asks in a loop.
 */
const MOST_TRIES = 12
const LONGEST_PAUSE_MS = 500
/**
 * The most eras that begin meanwhile: one with each resume, and one if a watchdog's abandoned call comes through late.
 */
const GROW_ERAS = MOST_TRIES + 1

/** How often a grow has suspended the volume, each time to be resumed once. */
interface OwnSuspensions {
  suspensions: number
}

export class Growth {
  readonly #parts: VolumeParts & SuspensionParts

  constructor(parts: VolumeParts & SuspensionParts) {
    this.#parts = parts
  }

  /**
   * Enlarges a volume to the whole of its data device, after that has grown.
   *
   * @throws DM_ARGUMENT_INVALID when it has not grown; DM_ERA_INACTIVE, and what device-mapper calls throw
   */
  async grow(volume: EraVolume): Promise<void> {
    // Before the first look: the eras that are announced after it hide what is written under another table.
    const resumes = this.#parts.machine.countResumes()
    try {
      await this.#grow(volume, resumes)
    } finally {
      resumes.close()
    }
  }

  async #grow(volume: EraVolume, resumes: Resumes): Promise<void> {
    const { name } = volume
    const { devices } = await this.#parts.historyCheck.check(name)
    const sizeBytes = await dataBytes(devices, this.#parts.machine)
    if (sizeBytes <= volume.sizeBytes) {
      throw invalid(
        `${volume.dataDevice} has ${sizeBytes} bytes, and ${name} has ${volume.sizeBytes}`,
        sizeBytes === volume.sizeBytes
          ? 'enlarge that device first; LVM extends a thick volume in use only once it has no classic snapshot'
          : 'a tracked volume cannot shrink'
      )
    }
    const blocks = Math.ceil(sizeBytes / (volume.blockSectors * SECTOR_BYTES))
    const tracked = new TrackedDevice(this.#parts.deviceMapper, volume, this.#parts.machine)
    const status = await tracked.status()
    const metadataTotal = status.state === 'working' ? status.totalMetadataBlocks * 4096 : 0
    if (blocks >= MAX_BLOCKS || metadataTotal < metadataBytes(blocks)) {
      throw invalid(
        `${volume.metadataDevice} has ${metadataTotal} bytes, and ${blocks} blocks take ${metadataBytes(blocks)}`,
        'attach the volume anew, with a larger metadata device or larger blocks'
      )
    }
    await onceNoKeeper(volume, this.#parts.catalog.path, this.#parts.machine)
    // (Before the intent is recorded: recovery treats a loaded table as a reason to end the history.)
    await refuseInactiveTables(this.#parts.deviceMapper, devices.era, `${name} does not grow`)
    await this.#parts.catalog.eraVolumes.begin({ kind: 'grow', volume: name, sizeBytes })
    await this.#parts.historyCheck.expectEras(name, GROW_ERAS)
    const own = { suspensions: 0 }
    try {
      await this.#enlarge(volume, sizeBytes / SECTOR_BYTES, own)
    } finally {
      await this.settleGrow(volume, tracked, sizeBytes)
      const now = await tracked.info()
      const isSame = now?.major === devices.era.major && now.minor === devices.era.minor
      if (!isSame || resumes.of(devices.era) > own.suspensions)
        await this.#parts.historyCheck.end(name, RESUMED_BY_OTHERS)
    }
    await this.#parts.historyCheck.check(name)
  }

  /** Completes a `grow` that was begun, or rolls it back. @returns what was done, in words */
  async settleGrow(volume: EraVolume, tracked: TrackedDevice, sizeBytes: number): Promise<string> {
    const { name } = volume
    const left = await activeOrNone(tracked)
    if (left?.era.hasInactiveTable && !left.era.suspended) {
      // The table was loaded while the volume was being written to. It is dropped now, but it may have been live for a
      // while.
      const because = `a table was loaded into ${left.era.name} while that was in use, and an agent died before it could drop it`
      await this.#parts.historyCheck.endHistory(
        volume,
        because,
        await superblockOf(await tracked.metadataPath(left.table), this.#parts.machine.open)
      )
    }
    await resumeTracked(this.#parts, tracked)
    const devices = await activeOrNone(tracked)
    if (devices?.sizeBytes === sizeBytes) {
      await this.#parts.catalog.eraVolumes.complete(name)
      return `${name} was to grow to ${sizeBytes} bytes: it has`
    }
    await this.#parts.catalog.eraVolumes.rollBack(name)
    if (devices) await this.#parts.historyCheck.lookAfter(name)
    return `${name} was to grow to ${sizeBytes} bytes, and has not`
  }

  /**
   * Gives both devices larger tables. There is a deadlock to avoid: a process that queries the status of the suspended
   * era device waits for its resume, and the resume that exchanges the table waits for that process. So if another
   * process queries it, the device is resumed with its old table, and the exchange is tried again.
   */
  async #enlarge(volume: EraVolume, lengthSectors: number, own: OwnSuspensions): Promise<void> {
    // A process that waited before the suspension does not wait for this volume.
    const before = new Set(waitingForDeviceMapper().map(({ wait }) => wait))
    for (let tries = 1; ; tries++) {
      const asking = await this.#exchangeTables(volume, lengthSectors, before, own)
      if (!asking) return
      if (tries < MOST_TRIES) {
        await this.#parts.machine.clock.sleep(Math.random() * LONGEST_PAUSE_MS)
        continue
      }
      throw new DeltamapperError(
        'DM_DEVICE_BUSY',
        `${volume.name} cannot grow while process ${asking.pid} (${asking.name}) waits for device-mapper: it may wait for this volume`,
        'end what asks for the status of all devices (lvs, pvs, dmsetup status in a loop), or have `global_filter` in ' +
          'lvm.conf leave out the devices of tracked volumes; then ask again'
      )
    }
  }

  /** @returns the process in the way, if there is one: then no table was exchanged */
  async #exchangeTables(volume: EraVolume, lengthSectors: number, before: ReadonlySet<string>, own: OwnSuspensions) {
    const tracked = new TrackedDevice(this.#parts.deviceMapper, volume, this.#parts.machine)
    const devices = await tracked.active()
    own.suspensions++
    const suspension = await Suspension.prepare(this.#parts, tracked, GROW_DEADLINE_MS)
    try {
      await suspension.suspend()
      const isFresh = await this.#load(tracked, devices, lengthSectors)
      // As late as possible, and with the shortest way to the resume: a process that begins to wait in between is not
      // seen.
      const asking = waitingForDeviceMapper().find(({ wait }) => !before.has(wait))
      if (isFresh && !asking) await this.#parts.deviceMapper.resume(tracked.era)
      const dropped = isFresh && !asking ? undefined : await dropInactiveTable(this.#parts.deviceMapper, tracked.era)
      const { ms } = await suspension.resume()
      await dropped?.over
      const suspendedMs = Math.round(ms)
      const { sizeBytes } = await tracked.active()
      if (sizeBytes === lengthSectors * SECTOR_BYTES) {
        if (!isFresh) {
          const because = `another program has put a table of ${volume.name} in place that was loaded while it was in use`
          await this.#parts.historyCheck.endHistory(
            volume,
            because,
            await superblockOf(await tracked.metadataPath(devices.table), this.#parts.machine.open)
          )
        }
        this.#parts.logger.info({ volume: volume.name, sizeBytes, suspendedMs }, 'grown')
        return undefined
      }
      if (isFresh && asking) {
        const { pid, name } = asking
        this.#parts.logger.warn(
          { volume: volume.name, pid, process: name, suspendedMs },
          'not grown: somebody waits for it'
        )
        return asking
      }
      throw new DeltamapperError(
        'DM_SNAPSHOT_TOO_SLOW',
        `${volume.name} was resumed before it had grown`,
        'ask again; find out what took so long'
      )
    } finally {
      await suspension.end()
    }
  }

  /**
   * Gives the guard of a suspended volume its larger table, and loads the table of the era device, which reads its
   * metadata then.
   *
   * @returns whether the volume stayed suspended until then: otherwise the loaded table would lose what the live one
   *   has committed since
   */
  async #load(tracked: TrackedDevice, { table, dataDevice, guard }: ActiveDevices, lengthSectors: number) {
    const metadataPath = await tracked.metadataPath(table)
    const archived = await superblockOf(metadataPath, this.#parts.machine.open)
    const row = { startSector: 0, lengthSectors }
    await this.#parts.deviceMapper.suspend(tracked.guard)
    const linear = { ...row, targetType: 'linear', params: `${dataDevice.major}:${dataDevice.minor} 0` }
    await this.#parts.deviceMapper.reload(tracked.guard, [linear])
    await this.#parts.deviceMapper.resume(tracked.guard)
    // Its discard limit is open again now. But nothing gets through the era device above, which takes its own limit
    // from this one at its resume.
    await this.#parts.machine.refuseDiscards(guard)
    await this.#parts.deviceMapper.reload(tracked.era, [{ ...row, targetType: 'era', params: formatEraTable(table) }])
    // If it was resumed meanwhile, another era has begun, even if it is suspended again.
    const { currentEra } = await superblockOf(metadataPath, this.#parts.machine.open)
    const isSuspended = (await tracked.info())?.suspended === true
    return isSuspended && archived.currentWriteset === undefined && currentEra === archived.currentEra
  }
}

/** Both devices, if they exist and are right. */
async function activeOrNone(tracked: TrackedDevice): Promise<ActiveDevices | undefined> {
  return tracked.active().catch((error: unknown) => {
    const code = error instanceof DeltamapperError ? error.code : undefined
    if (code === 'DM_ERA_INACTIVE' || code === 'DM_CATALOG_DISAGREES') return undefined
    throw error
  })
}
