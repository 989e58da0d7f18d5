/**
 * The boundary between two eras at which a snapshot is taken. (dm-era's own message for ending an era is `checkpoint`.)
 *
 *     check ─▶ intent ─▶ watchdog suspends (file system frozen, era N archived)
 *                          ─▶ check ─▶ lower snapshot ─▶ resume (era N + 1 begins; nobody else resumed it)
 *                               ─▶ record: the intent is complete
 *
 * The snapshot contains the writes of era N and before, and none from era N + 1 on, because no write is in flight while
 * the device is suspended. If a step fails, the device is resumed first. Then the lower snapshot is removed, because it
 * may be of any moment, and nothing is recorded.
 *
 * The caller must hold the volume's lock.
 */
import { randomUUID } from 'node:crypto'
import type { Logger } from 'pino'
import type { DeviceMapper, DeviceNumber } from '../../../../native/device-mapper.ts'
import { inactiveTableError, refuseInactiveTables } from '../../../devicemapper/inactive-table.ts'
import { asDeltamapperError, DeltamapperError } from '../../../errors.ts'
import type { Catalog } from '../../catalog/catalog.ts'
import type { EraSnapshot } from '../../catalog/era-snapshots.ts'
import type { EraVolume } from '../../catalog/era-volumes.ts'
import type { CheckedVolume, HistoryCheck } from '../device/history-check.ts'
import type { LowerSnapshotRecord } from './lower-snapshot.ts'
import type { BoundaryMachine } from './boundary-machine.ts'
import type { NeededPath } from '../device/self-hosting.ts'
import { RESUMED_BY_OTHERS, type Resumes } from './resumes.ts'
import { Suspension } from './suspension.ts'
import { superblockOf, TrackedDevice } from '../device/tracked-device.ts'

/**
 * The most eras that begin with a boundary: with the resume, with the metadata snapshot that its history is read from,
 * and once more if a watchdog's abandoned call comes through late.
 */
const BOUNDARY_ERAS = 3

/** A snapshot between resume and record. */
export interface TakenEraSnapshot {
  /** As in the catalog; the snapshot belongs to its history. */
  readonly volume: EraVolume
  readonly name: string
  /** The first era after the snapshot. */
  readonly boundaryEra: number
  /** Size of the era device then, in bytes. */
  readonly sizeBytes: number
  /** Milliseconds since 1970. */
  readonly takenAt: number
  readonly suspendedMs: number
  /** JSON of a `RecordedLowerSnapshot`. */
  readonly lower: string
}

/** Adds a boundary to the volume's history. */
export interface EraHistoryRecorder {
  /** Waits until recording is possible. @throws DM_DEVICE_BUSY and the like: then nothing must be suspended */
  ready(volume: EraVolume): Promise<void>
  /** Durable when it resolves; the volume's intent is complete then. */
  record(taken: TakenEraSnapshot): Promise<EraSnapshot>
}

export interface BoundaryParts {
  readonly catalog: Pick<Catalog, 'eraVolumes'>
  readonly deviceMapper: DeviceMapper
  readonly historyCheck: HistoryCheck
  readonly machine: BoundaryMachine
  readonly recorder: EraHistoryRecorder
  readonly logger: Logger
  /** Paths that must not be on a volume that is suspended. */
  readonly places: () => Promise<readonly NeededPath[]>
}

export class Boundary {
  readonly volume: EraVolume
  readonly name: string
  /** Names this boundary in its intent, and on everything that is made for it. */
  readonly token: string
  /** The first era after it. */
  readonly boundaryEra: number
  readonly #parts: BoundaryParts
  readonly #suspension: Suspension
  readonly #metadataPath: string
  readonly #sizeBytes: number
  readonly #takenAt: number
  readonly #mountedAt: readonly string[]
  readonly #device: DeviceNumber
  readonly #resumes: Resumes
  #ended = false

  private constructor(parts: BoundaryParts, token: string, name: string, suspension: Suspension, at: SuspendedAt) {
    this.#parts = parts
    this.#device = at.device
    this.#resumes = at.resumes
    this.token = token
    this.name = name
    this.#suspension = suspension
    this.volume = at.volume
    this.boundaryEra = at.era + 1
    this.#metadataPath = at.metadataPath
    this.#sizeBytes = at.sizeBytes
    this.#takenAt = parts.machine.clock.now()
    this.#mountedAt = at.mountedAt
  }

  /**
   * Suspends a volume for a snapshot.
   *
   * @param prepare collects what is needed before the suspension
   * @param deadlineMs after so many milliseconds the volume is resumed, whether or not the snapshot is complete
   * @throws DM_DEVICE_BUSY, DM_ERA_HISTORY_LOST, DM_ERA_INACTIVE, DM_PERMISSION, and what suspending throws. The volume
   *   is resumed and the intent rolled back then; if resuming fails, the intent stays, and the next change recovers it
   */
  static async begin<T>(
    parts: BoundaryParts,
    volumeName: string,
    name: string,
    deadlineMs: number,
    prepare: (checked: CheckedVolume, token: string) => Promise<T>
  ): Promise<{ boundary: Boundary; prepared: T }> {
    // Before the first look: what happens after that look may be hidden by the eras that are announced.
    const resumes = parts.machine.countResumes()
    try {
      return await Boundary.#begin(parts, volumeName, name, deadlineMs, prepare, resumes)
    } catch (error) {
      resumes.close()
      throw error
    }
  }

  static async #begin<T>(
    parts: BoundaryParts,
    volumeName: string,
    name: string,
    deadlineMs: number,
    prepare: (checked: CheckedVolume, token: string) => Promise<T>,
    resumes: Resumes
  ): Promise<{ boundary: Boundary; prepared: T }> {
    const { catalog, deviceMapper, historyCheck, logger, machine } = parts
    const checked = await historyCheck.check(volumeName)
    const { volume, devices, metadataPath } = checked
    if (devices.era.suspended) {
      throw new DeltamapperError(
        'DM_DEVICE_BUSY',
        `${volumeName} is suspended already, by another program`,
        `find out by which; \`dmsetup resume ${devices.era.name}\` if that program is gone`
      )
    }
    await machine.refuseSelfHosting(devices.era, volumeName, await parts.places())
    await parts.recorder.ready(volume)
    const token = randomUUID()
    const prepared = await prepare(checked, token)
    const mountedAt = await machine.mountPoints(devices.era)
    await refuseInactiveTables(deviceMapper, devices.era, `no snapshot is taken of ${volumeName}`, machine.clock)
    await catalog.eraVolumes.begin({ kind: 'snapshot', volume: volumeName, snapshot: name, token })
    let suspension: Suspension | undefined
    let [isSuspended, isDisturbed] = [false, false]
    try {
      await historyCheck.expectEras(volumeName, BOUNDARY_ERAS)
      suspension = await Suspension.prepare(parts, new TrackedDevice(deviceMapper, volume, machine), deadlineMs)
      const ms = await suspension.suspend()
      isSuspended = true
      logger.debug({ volume: volumeName, snapshot: name, ms: rounded(ms) }, 'suspended')
      // Again: until now, writes and discards went on, and tables could be loaded. (A loaded table is dropped before
      // the resume.)
      const { superblock, devices: now } = await historyCheck.check(volumeName, { suspended: true })
      // A table that was loaded before the suspension lacks what was marked since; a resume can put it in place.
      isDisturbed = now.era.hasInactiveTable
      const loaded = [now.era, now.guard].find(({ hasInactiveTable }) => hasInactiveTable)
      if (loaded) throw inactiveTableError(loaded, `no snapshot is taken of ${volumeName}`)
      const isSame = now.era.major === devices.era.major && now.era.minor === devices.era.minor
      isDisturbed = !isSame || resumes.of(devices.era) > 0
      if (superblock.currentWriteset !== undefined || isDisturbed) {
        throw new DeltamapperError(
          'DM_SNAPSHOT_TOO_SLOW',
          `${volumeName} was resumed by another program while a snapshot was to be taken`,
          'find out by whom, and take it again'
        )
      }
      const { sizeBytes, era: device } = devices
      const at = { volume, device, era: superblock.currentEra, metadataPath, sizeBytes, mountedAt, resumes }
      return { boundary: new Boundary(parts, token, name, suspension, at), prepared }
    } catch (error) {
      isDisturbed ||= isSuspended && resumes.of(devices.era) > 0
      if (await ended(suspension, volumeName, logger)) {
        await catalog.eraVolumes.rollBack(volumeName)
        isDisturbed ||= isSuspended ? resumes.of(devices.era) !== 1 : resumes.of(devices.era) > 1
        if (isDisturbed) await historyCheck.end(volumeName, RESUMED_BY_OTHERS)
        await historyCheck.lookAfter(volumeName)
      }
      throw error
    }
  }

  /**
   * Aborted when the watchdog has died. Abandon the boundary at once then, because nothing else ends the suspension.
   */
  get lost(): AbortSignal {
    return this.#suspension.lost
  }

  /**
   * Ends the suspension and records the snapshot that was taken during it.
   *
   * @throws DM_SNAPSHOT_TOO_SLOW when the suspension had ended before; what the check and recording throw. Then nothing
   *   is recorded
   */
  async complete(lower: LowerSnapshotRecord): Promise<EraSnapshot> {
    const { historyCheck, logger, recorder } = this.#parts
    const { name, boundaryEra, volume } = this
    // Once more: the snapshot contains what was written beside the volume since the last look.
    await historyCheck.check(volume.name, { suspended: true })
    // If anything had resumed it, the next era would have begun.
    const { currentEra } = await superblockOf(this.#metadataPath, this.#parts.machine.open)
    const { ms, held } = await this.#suspension.resume()
    const suspendedMs = Math.round(ms)
    if (held && this.#resumes.of(this.#device) === 0) {
      throw new DeltamapperError(
        'DM_PERMISSION',
        `the kernel has not announced that ${volume.name} was resumed: it would not show if another program had changed it`,
        'see whether the agent is in a user namespace of its own (the kernel sends its events to no other), or another device is in the place of the volume'
      )
    }
    if (!held || currentEra + 1 !== boundaryEra || this.#wasDisturbed) {
      throw new DeltamapperError(
        'DM_SNAPSHOT_TOO_SLOW',
        `${volume.name} was resumed after ${suspendedMs} ms, before snapshot ${name} was done: it may be of any moment`,
        'remove what was taken of it, and take another; find out what took so long, or give it a later deadline'
      )
    }
    logger.info({ volume: volume.name, snapshot: name, boundaryEra, suspendedMs }, 'snapshot taken')
    // Recording may take long, and the eras allowed for the suspension must not hide those of other processes
    // meanwhile. One era began with the resume; the metadata snapshot begins one more.
    await historyCheck.expectEras(volume.name, 1)
    await historyCheck.lookAfter(volume.name)
    await historyCheck.expectEras(volume.name, 1)
    const snapshot = await recorder.record({
      ...{ volume, name, boundaryEra, suspendedMs, sizeBytes: this.#sizeBytes, takenAt: this.#takenAt },
      lower: JSON.stringify({ ...lower, ...(this.#mountedAt.length > 0 && { mountedAt: this.#mountedAt }) })
    })
    this.#ended = true
    await ended(this.#suspension, volume.name, logger)
    await this.#lastLook()
    return snapshot
  }

  /** Ends the suspension without a snapshot, once. Does nothing after `complete` has succeeded. */
  async abandon(remove: () => Promise<void> = () => Promise.resolve()): Promise<void> {
    if (this.#ended) return
    this.#ended = true
    const { catalog, logger } = this.#parts
    const { volume, name } = this
    const because = this.lost.aborted ? asDeltamapperError(this.lost.reason).message : undefined
    // The next change, or the next agent, recovers what is left.
    if (!(await ended(this.#suspension, volume.name, logger))) return this.#resumes.close()
    await remove()
    await catalog.eraVolumes.rollBack(volume.name)
    await this.#lastLook()
    logger.warn({ volume: volume.name, snapshot: name, because }, 'snapshot given up')
  }

  /**
   * Whether somebody else has resumed the volume as well, which the suspension does once, or has put another device in
   * its place, which nobody has resumed by this number. The eras that were announced
   * would hide what was written meanwhile under another table. (One resume of somebody else's in place of ours hides
   * nothing: no table was loaded when the suspension began, and one loaded since has read what was archived then.)
   */
  get #wasDisturbed(): boolean {
    return this.#resumes.of(this.#device) !== 1
  }

  async #lastLook(): Promise<void> {
    const { historyCheck } = this.#parts
    if (this.#wasDisturbed) await historyCheck.end(this.volume.name, RESUMED_BY_OTHERS)
    this.#resumes.close()
    await historyCheck.lookAfter(this.volume.name)
  }
}

interface SuspendedAt {
  readonly volume: EraVolume
  /** The era device. */
  readonly device: DeviceNumber
  readonly era: number
  readonly metadataPath: string
  readonly sizeBytes: number
  readonly mountedAt: readonly string[]
  /** Counted since before the first look. */
  readonly resumes: Resumes
}

/** Ends a suspension, if there is one. @returns whether the volume is known to be resumed; otherwise the log says so */
async function ended(suspension: Suspension | undefined, volume: string, logger: Logger): Promise<boolean> {
  try {
    await suspension?.end()
    return true
  } catch (error) {
    logger.error({ volume, what: asDeltamapperError(error).line }, 'not known to be resumed')
    return false
  }
}

function rounded(ms: number): number {
  return Math.round(ms * 10) / 10
}
