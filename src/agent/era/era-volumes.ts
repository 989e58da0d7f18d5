/**
 * The tracked volumes, as the Admin service drives them: attach, activate, grow, snapshot, detach.
 *
 *     call ─▶ the volume's lock ─▶ recovery.ts ─▶ attachment.ts · activation.ts · growth.ts · boundary/ ─▶ as it is now
 *
 * One change at a time in each volume. A suspension for a driver (BeginSnapshot) keeps the lock until it ends, at its
 * deadline at the latest. The agent activates nothing at its start: a person does, or the unit that runs `deltamapper
 * era activate`.
 */
import type { Logger } from 'pino'
import type { DeviceMapper } from '../../../native/device-mapper.ts'
import { asDeltamapperError, DeltamapperError, invalid, shuttingDown } from '../../errors.ts'
import type { Catalog } from '../catalog/catalog.ts'
import type { EraSnapshot } from '../catalog/era-snapshots.ts'
import type { EraVolume } from '../catalog/era-volumes.ts'
import { nameTaken } from '../catalog/name-taken.ts'
import { checkPoolName, checkThinName } from '../node/naming.ts'
import { checkCount } from '../node/request-checks.ts'
import { KeyedLock } from '../node/keyed-lock.ts'
import { Activation } from './activation.ts'
import { Attachment } from './attachment.ts'
import { Boundary, type BoundaryParts, type EraHistoryRecorder } from './boundary/boundary.ts'
import {
  type DescribedEraSnapshot,
  type DescribedEraVolume,
  describeEraSnapshot,
  describeEraVolume
} from './description.ts'
import { DriverSuspensions } from './boundary/driver-suspensions.ts'
import { Growth } from './growth.ts'
import { Recovery } from './recovery.ts'
import { HistoryCheck, noSuchVolume } from './device/history-check.ts'
import {
  formatSnapshotBy,
  type LowerSnapshotRecord,
  LowerSnapshots,
  type LowerSnapshotting,
  type SnapshotCommands
} from './boundary/lower-snapshot.ts'
import { unmountedSince } from './boundary/mounted.ts'
import { type BoundaryMachine, thisBoundaryMachine } from './boundary/boundary-machine.ts'
import { StatusGate } from './device/status-gate.ts'
import { TrackedDevice } from './device/tracked-device.ts'

/** Block sizes are a multiple of this, in bytes. */
const BLOCK_UNIT = 4096
/** How long a start waits for the recovery, in milliseconds. */
const SETTLE_AT_START_MS = 5000
/** The longest suspension that a caller may ask for, in milliseconds. */
const MAX_DEADLINE_MS = 600_000
/**
 * The part of a suspension's time that is kept for the resume, in milliseconds: the lower snapshot must be done before.
 */
const RESUME_MARGIN_MS = 500

export interface EraVolumesOptions {
  readonly catalog: Catalog
  readonly deviceMapper: DeviceMapper
  readonly recorder: EraHistoryRecorder
  readonly logger: Logger
  /** The words that start LVM. */
  readonly lvmCommand: readonly string[]
  /** Commands that take lower snapshots where LVM does not, by the volume's name. */
  readonly commands?: Readonly<Record<string, SnapshotCommands>>
  /**
   * The history continues after any restart if no write shows: the operator guarantees it for other systems that were
   * booted.
   */
  readonly trustRestarts?: boolean
  /** How long a volume may be suspended, in milliseconds, unless a caller gives a deadline. */
  readonly deadlineMs: number
  /** This one by default. */
  readonly machine?: BoundaryMachine
  /** How lower snapshots are taken; by default, by LVM and the configured commands. */
  readonly lower?: LowerSnapshotting
  /** What else answers to this source name, in words; undefined if nothing does. */
  readonly takenBy?: (name: string) => Promise<string | undefined>
}

/** What is asked for of a volume that is to be tracked. The devices are absolute paths. */
export interface TrackingRequest {
  readonly name: string
  readonly dataDevice: string
  readonly metadataDevice: string
  readonly blockBytes: number
  /** How large LVM is to make snapshots of a volume that is in no thin pool; empty for its own choice. */
  readonly snapshotSize: string
  readonly allowLossyKernel: boolean
}

/** The snapshot that is to be taken; `deadlineMs` 0: as configured. */
interface SnapshotRequest {
  readonly volume: string
  readonly name: string
  readonly deadlineMs: number
}

/** How a suspension is to end: with what the driver has taken, or abandoned. */
interface SnapshotEnd {
  readonly token: string
  readonly reference: string
  readonly abandon: boolean
}

export class EraVolumes {
  readonly #options: EraVolumesOptions
  readonly #catalog: Catalog
  readonly #deviceMapper: DeviceMapper
  readonly #logger: Logger
  readonly #lower: LowerSnapshotting
  readonly #attachment: Attachment
  readonly #activation: Activation
  readonly #growth: Growth
  readonly #recovery: Recovery
  readonly #parts: BoundaryParts
  readonly #locks = new KeyedLock()
  readonly #statusGate = new StatusGate()
  readonly #suspensions: DriverSuspensions
  /** Aborted when the agent stops. */
  readonly #closing = new AbortController()

  constructor(options: EraVolumesOptions) {
    const { catalog, deviceMapper, recorder, logger, lvmCommand, commands = {}, trustRestarts = false } = options
    const { machine = thisBoundaryMachine } = options
    this.#options = options
    this.#catalog = catalog
    this.#deviceMapper = deviceMapper
    this.#logger = logger
    const parts = {
      catalog,
      deviceMapper,
      historyCheck: new HistoryCheck(catalog, deviceMapper, logger, machine),
      logger,
      machine
    }
    const lower = options.lower ?? new LowerSnapshots(deviceMapper, lvmCommand, commands)
    this.#lower = lower
    this.#attachment = new Attachment(parts)
    this.#activation = new Activation({ ...parts, trustRestarts })
    this.#growth = new Growth(parts)
    this.#recovery = new Recovery({ ...parts, lower, attachment: this.#attachment, growth: this.#growth })
    this.#suspensions = new DriverSuspensions(logger)
    this.#parts = { ...parts, recorder, places: () => machine.neededPaths(catalog.path) }
  }

  /**
   * Recovers what the last agent left, and looks at every volume. The log names what cannot be recovered, and the next
   * change tries again. A call that hangs does not keep the agent from starting.
   *
   * @returns when the recovery is complete or was given up. Before that, send an era device no query that might wait
   *   for its resume
   */
  async start(): Promise<{ settled: Promise<void> }> {
    const { volumes } = await this.#catalog.eraVolumes.view()
    const settled = Promise.all(volumes.map(({ name }) => this.#settleAtStart(name))).then(() => undefined)
    await Promise.race([settled, this.#parts.machine.clock.sleep(SETTLE_AT_START_MS, true)])
    return { settled }
  }

  /** Ends all suspensions, and waits for everything else that is running. */
  async close(): Promise<void> {
    const why = 'the agent is stopping: the volume is resumed, and the snapshot given up'
    this.#closing.abort(shuttingDown(why))
    await this.#suspensions.close()
    await this.#locks.close()
  }

  /** Whether a source name is that of a tracked volume. */
  async has(name: string): Promise<boolean> {
    return (await this.#catalog.eraVolumes.find(name)) !== undefined
  }

  async attachEra(request: TrackingRequest): Promise<DescribedEraVolume> {
    const { name, blockBytes, snapshotSize } = request
    checkPoolName(name)
    checkCount('block_bytes', blockBytes, BLOCK_UNIT)
    const snapshotBy = formatSnapshotBy(snapshotSize)
    // One at a time for all names: two calls may name the same devices.
    await this.#locks.take('', () =>
      this.#locks.take(name, async () => {
        await this.#settle(name)
        const takenBy = (await this.has(name))
          ? 'a volume that is tracked already'
          : await this.#options.takenBy?.(name)
        if (takenBy !== undefined) {
          throw nameTaken(`the name ${name} is taken: ${takenBy} answers to it`)
        }
        await this.#attachment.attach({ ...request, snapshotBy })
      })
    )
    return this.#shown(name)
  }

  async detachEra({ volume }: { volume: string }): Promise<object> {
    await this.inTurn(volume, (tracked) => this.#attachment.detach(tracked))
    return {}
  }

  async activateEra({ volume, startOver }: { volume: string; startOver: boolean }): Promise<DescribedEraVolume> {
    await this.inTurn(volume, (tracked) => this.#activation.activate(tracked, startOver))
    return this.#shown(volume)
  }

  async deactivateEra({ volume, atShutdown }: { volume: string; atShutdown: boolean }): Promise<DescribedEraVolume> {
    await this.inTurn(volume, (tracked) => this.#activation.deactivate(tracked, atShutdown))
    return this.#shown(volume)
  }

  async growEra({ volume }: { volume: string }): Promise<DescribedEraVolume> {
    await this.inTurn(volume, (tracked) => this.#growth.grow(tracked))
    return this.#shown(volume)
  }

  async listEra({ volume }: { volume: string }): Promise<{ volumes: DescribedEraVolume[] }> {
    const { volumes, intents } = await this.#catalog.eraVolumes.view()
    const wanted = volumes.filter((each) => volume === '' || each.name === volume)
    if (volume !== '' && wanted.length === 0) throw noSuchVolume(volume)
    const snapshots = await this.#catalog.eraSnapshots.list()
    return {
      volumes: await Promise.all(
        wanted.map((each) => describeEraVolume(this.#parts, each, intents, snapshots, this.#statusGate))
      )
    }
  }

  async createEraSnapshot({ volume, name, deadlineMs }: SnapshotRequest): Promise<DescribedEraSnapshot> {
    checkThinName(name)
    const deadline = this.#deadline(deadlineMs)
    const recorded = await this.inTurn(volume, async (tracked) => {
      const begun = performance.now()
      const unmounted = await this.#unmounted(tracked)
      const { boundary, prepared } = await Boundary.begin(this.#parts, volume, name, deadline, (checked, token) =>
        this.#lower.prepare(checked.volume, checked.devices.dataDevice, name, token)
      )
      try {
        const over = AbortSignal.any([boundary.lost, this.#closing.signal])
        await prepared.take(Math.max(1, deadline - RESUME_MARGIN_MS), over)
        this.#logger.debug(
          { volume, snapshot: name, ms: Math.round(performance.now() - begun) },
          'lower snapshot taken'
        )
        return { snapshot: await boundary.complete(prepared.lower), unmounted }
      } catch (error) {
        await boundary.abandon(async () => {
          await prepared.remove().catch((failure: unknown) => {
            this.#logger.warn({ volume, snapshot: name, err: failure }, 'the lower snapshot could not be removed')
          })
        })
        throw error
      }
    })
    return describeEraSnapshot(volume, recorded.snapshot, recorded.unmounted)
  }

  async beginSnapshot({
    volume,
    name,
    deadlineMs
  }: SnapshotRequest): Promise<{ token: string; boundaryEra: number; deadlineMs: number }> {
    checkThinName(name)
    const deadline = this.#deadline(deadlineMs)
    const begun = Promise.withResolvers<Boundary>()
    // The lock is kept after this call has been answered.
    void this.inTurn(volume, async (tracked) => {
      const unmounted = await this.#unmounted(tracked)
      const { boundary } = await Boundary.begin(this.#parts, volume, name, deadline, () => Promise.resolve())
      await this.#suspensions.keep({ boundary, unmounted }, deadline, () => begun.resolve(boundary))
    }).catch((error: unknown) => begun.reject(error as Error))
    const { token, boundaryEra } = await begun.promise
    return { token, boundaryEra, deadlineMs: deadline }
  }

  async endSnapshot({ token, reference, abandon }: SnapshotEnd): Promise<{ snapshot?: DescribedEraSnapshot }> {
    const ended = await this.#suspensions.end(token, reference, abandon)
    return ended ? { snapshot: describeEraSnapshot(ended.volume, ended.snapshot, ended.unmounted) } : {}
  }

  async listEraSnapshots({ volume }: { volume: string }): Promise<{ snapshots: DescribedEraSnapshot[] }> {
    const { volumes } = await this.#catalog.eraVolumes.view()
    const names = new Map(volumes.map(({ id, name }) => [id, name]))
    if (volume !== '' && !volumes.some(({ name }) => name === volume)) throw noSuchVolume(volume)
    const snapshots = await this.#catalog.eraSnapshots.list(volume === '' ? undefined : volume)
    const there = snapshots.filter(({ removedAt }) => removedAt === undefined)
    return { snapshots: there.map((each) => describeEraSnapshot(names.get(each.volume) ?? '', each)) }
  }

  /**
   * Removes the lower snapshot, unless a driver must do it. The record of the snapshot stays, as a base for later ones.
   */
  async deleteSnapshot(volume: string, name: string): Promise<void> {
    await this.inTurn(volume, async (tracked) => {
      const snapshot = await this.#snapshot(volume, name)
      const lower = JSON.parse(snapshot.lower) as LowerSnapshotRecord
      await this.#recovery.removeLower(tracked, await this.#lower.recorded(lower, tracked))
      await this.#catalog.eraSnapshots.delete(volume, name)
    })
  }

  /**
   * Does work that needs the volume's lock, such as sending its device a message. Recovers what was interrupted first.
   *
   * @throws DM_NO_SUCH_DEVICE, and what `work` and the recovery throw
   */
  async inTurn<T>(name: string, work: (volume: EraVolume) => Promise<T>): Promise<T> {
    if (!(await this.has(name))) throw noSuchVolume(name)
    return this.#locks.take(name, async () => {
      await this.#settle(name)
      const volume = await this.#catalog.eraVolumes.find(name)
      if (!volume) throw noSuchVolume(name)
      return this.#statusGate.keep(name, () => work(volume))
    })
  }

  async #snapshot(volume: string, name: string): Promise<EraSnapshot> {
    const snapshot = await this.#catalog.eraSnapshots.find(volume, name)
    if (snapshot && snapshot.removedAt === undefined) return snapshot
    throw new DeltamapperError(
      'DM_NO_SUCH_DEVICE',
      `${volume} has no snapshot ${JSON.stringify(name.slice(0, 200))}`,
      '`deltamapper snapshot list` lists those there are'
    )
  }

  /** A warning for a volume that is not mounted where it was. The snapshot is taken nevertheless. */
  async #unmounted(volume: EraVolume): Promise<string | undefined> {
    const info = await new TrackedDevice(this.#deviceMapper, volume, this.#parts.machine).info()
    const said = info && unmountedSince(info, await this.#catalog.eraSnapshots.list(volume.name))
    if (said !== undefined) this.#logger.warn({ volume: volume.name, what: said }, 'not mounted where it was')
    return said
  }

  async #settle(name: string): Promise<void> {
    const because = await this.#statusGate.keep(name, () => this.#recovery.settle(name))
    if (because !== undefined) this.#logger.warn({ volume: name, because }, 'recovered what was interrupted')
  }

  /** Never rejects: the caller may be gone. */
  async #settleAtStart(volume: string): Promise<void> {
    try {
      await this.#locks.take(volume, async () => {
        await this.#settle(volume)
        await this.#activation.lookAtStart(volume)
      })
    } catch (error) {
      const { code, message } = asDeltamapperError(error)
      if (code !== 'DM_SHUTTING_DOWN') this.#logger.error({ volume, code, what: message }, 'not settled')
    }
  }

  async #shown(name: string): Promise<DescribedEraVolume> {
    const [volume] = (await this.listEra({ volume: name })).volumes
    if (volume) return volume
    throw noSuchVolume(name)
  }

  #deadline(asked: number): number {
    if (asked === 0) return this.#options.deadlineMs
    checkCount('deadline_ms', asked)
    if (asked <= MAX_DEADLINE_MS) return asked
    throw invalid(
      `a volume cannot be suspended for ${asked} ms`,
      `give at most ${MAX_DEADLINE_MS}: everything that writes to it waits`
    )
  }
}
