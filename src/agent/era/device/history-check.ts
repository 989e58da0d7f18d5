/**
 * The history check: whether all writes to a tracked volume have been seen. Every boundary, and every answer from live
 * metadata, begins with it.
 *
 * It checks that
 *
 * - both devices exist, with the tables that they had;
 * - neither lets discards through, and none went through the guard since the last look (the kernel counts them, so a
 *   limit that was open only for a moment shows);
 * - the gaps between the write counters of data device, guard and era device have not grown since the last look,
 *   measured while nothing is in flight: otherwise some writes bypassed the era device, and no era has them;
 * - the metadata is in the era that was seen last, apart from eras that we began: a later era shows that another
 *   process suspended the volume or sent it a message, and it may have exchanged tables meanwhile;
 * - both devices stand on the same devices as before;
 * - no snapshot is being merged into the data device, which writes to it from below.
 *
 * If one of these fails, the history ends at the last look: the catalog has a new history before anyone is told.
 */
import type { Logger } from 'pino'
import type { DeviceInfo, DeviceMapper } from '../../../../native/device-mapper.ts'
import { nodeName } from '../../../../native/device.ts'
import type { BlockCounters } from '../../../devicemapper/block-queue.ts'
import { continuedHistory, type EraHistory } from '../../../devicemapper/era/history.ts'
import type { EraSuperblock } from '../../../devicemapper/era/superblock.ts'
import { asDeltamapperError, DeltamapperError } from '../../../errors.ts'
import type { Catalog } from '../../catalog/catalog.ts'
import type { EraVolume } from '../../catalog/era-volumes.ts'
import { dataHead } from './lasting-traces.ts'
import { thisMachine, type TrackedMachine } from './machine.ts'
import { type ActiveDevices, type LastLook, parseLastLook, superblockOf, TrackedDevice } from './tracked-device.ts'

export type HistoryCheckCatalog = Pick<Catalog, 'eraVolumes'>

export interface CheckedVolume {
  /** As in the catalog now. */
  readonly volume: EraVolume
  readonly devices: ActiveDevices
  readonly device: DeviceInfo
  readonly metadataPath: string
  /** The live superblock. */
  readonly superblock: EraSuperblock
  /** Of the data device. */
  readonly counted: BlockCounters
}

export class HistoryCheck {
  readonly #catalog: HistoryCheckCatalog
  readonly #deviceMapper: DeviceMapper
  readonly #logger: Logger
  readonly #machine: TrackedMachine

  constructor(
    catalog: HistoryCheckCatalog,
    deviceMapper: DeviceMapper,
    logger: Logger,
    machine: TrackedMachine = thisMachine
  ) {
    this.#catalog = catalog
    this.#machine = machine
    this.#deviceMapper = deviceMapper
    this.#logger = logger
  }

  /**
   * Checks an active volume, suspended or not, and records the look.
   *
   * @param suspended by us: the eras that we announced may still begin. (A watchdog resumes at its deadline; the caller
   *   must check for that.)
   * @throws DM_ERA_HISTORY_LOST after a new history was begun; DM_ERA_INACTIVE, DM_NO_SUCH_DEVICE,
   *   DM_CATALOG_DISAGREES, and what reading metadata and device-mapper calls throw
   */
  async check(name: string, { suspended = false }: { suspended?: boolean } = {}): Promise<CheckedVolume> {
    const volume = await this.#volume(name)
    const tracked = new TrackedDevice(this.#deviceMapper, volume, this.#machine)
    const devices = await this.#devices(volume, tracked)
    const metadataPath = await tracked.metadataPath(devices.table)
    const superblock = await superblockOf(metadataPath, this.#machine.open)
    const [before, now] = [parseLastLook(volume.lowerSeen), await tracked.look(devices)]
    const because = tracked.unseen(now, before) ?? (await this.#merging(devices, volume))
    const ownEras = ownErasOf(before)
    const history = continued(volume, superblock, metadataPath, ownEras)
    const [head, guardCheckedAt] = [await this.#head(devices, before), this.#machine.clock.now()]
    if (because !== undefined || history instanceof DeltamapperError) {
      // (The limit first: until it is closed, the new history would be void as well.)
      await this.#machine.refuseDiscards(devices.guard)
      // Its own limit is open if it got a table meanwhile, and each look would find it so.
      if (!devices.era.suspended) await this.#machine.refuseDiscards(devices.era)
      const why = because ?? (history as DeltamapperError).message
      await this.endHistory(volume, why, superblock)
      // The new history begins with its first snapshot, so earlier counts do not matter to it.
      const lowerSeen = JSON.stringify(tracked.seenActive(now, { state: 'never' }, head, suspended ? ownEras : 0))
      await this.#catalog.eraVolumes.saw(name, { lowerSeen, guardCheckedAt })
      throw historyLost(name, why)
    }
    const { newestEra, blocks: seenBlocks } = history
    const lowerSeen = JSON.stringify(tracked.seenActive(now, before, head, suspended ? ownEras : 0))
    await this.#catalog.eraVolumes.saw(name, { newestEra, seenBlocks, lowerSeen, guardCheckedAt })
    const seen = { ...volume, newestEra, seenBlocks, lowerSeen, guardCheckedAt }
    return { volume: seen, devices, device: devices.era, metadataPath, superblock, counted: now.data }
  }

  /**
   * Announces that the next action may begin so many eras, until the next look at the volume. It is recorded before the
   * action, because the process that acts may die.
   */
  async expectEras(name: string, ownEras: number): Promise<void> {
    const before = parseLastLook((await this.#volume(name)).lowerSeen)
    if (before.state !== 'active') return
    await this.#catalog.eraVolumes.saw(name, { lowerSeen: JSON.stringify({ ...before, ownEras } satisfies LastLook) })
  }

  /**
   * A look after our own action, so that any later change is another process's. Findings go to the catalog and the log;
   * it never fails. Where nothing could be seen, no era is allowed any more either: another process's would hide there,
   * and if our own had begun, the history ends at the next look.
   */
  async lookAfter(name: string): Promise<void> {
    const log = (error: unknown) => {
      this.#logger.warn({ volume: name, what: asDeltamapperError(error).line }, 'looked at a tracked volume')
    }
    await this.check(name).catch(async (error: unknown) => {
      log(error)
      await this.expectEras(name, 0).catch(log)
    })
  }

  /** Begins a new history for a reason that no look shows. */
  async end(name: string, because: string): Promise<void> {
    await this.endHistory(await this.#volume(name), because)
  }

  /** Begins a new history: no snapshot recorded before can be the base of one recorded from now on. */
  async endHistory(
    volume: EraVolume,
    because: string,
    superblock: Pick<EraSuperblock, 'currentEra' | 'blocks'> = {
      currentEra: volume.newestEra,
      blocks: volume.seenBlocks
    }
  ): Promise<EraVolume> {
    this.#logger.warn({ volume: volume.name, because, line: volume.line }, 'the history of a tracked volume is void')
    return this.#catalog.eraVolumes.endHistory(volume.name, because, {
      newestEra: superblock.currentEra,
      seenBlocks: superblock.blocks
    })
  }

  /**
   * Of the data device. If another process has suspended it, reading would wait for its resume, so the value of the
   * last look is used.
   */
  async #head({ dataDevice, guard }: ActiveDevices, before: LastLook): Promise<string> {
    const info = await this.#deviceMapper.info(dataDevice)
    if (info?.suspended) return before.state === 'never' ? '' : (before.head ?? '')
    return dataHead(this.#machine, `/dev/mapper/${nodeName(guard.name)}`)
  }

  /**
   * If the tables were exchanged, a new history begins now. Otherwise a later look could find them restored, and
   * continue the history.
   */
  async #devices(volume: EraVolume, tracked: TrackedDevice): Promise<ActiveDevices> {
    try {
      const devices = await tracked.active()
      await tracked.checkBelow(devices)
      return devices
    } catch (error) {
      if (!(error instanceof DeltamapperError) || error.code !== 'DM_CATALOG_DISAGREES') throw error
      await this.endHistory(volume, error.message)
      throw error
    }
  }

  async #volume(name: string): Promise<EraVolume> {
    const volume = await this.#catalog.eraVolumes.find(name)
    if (volume) return volume
    throw noSuchVolume(name)
  }

  async #merging({ dataDevice }: ActiveDevices, { dataDevice: path }: EraVolume): Promise<string | undefined> {
    if (!(await this.#deviceMapper.info(dataDevice))) return undefined
    const rows = await this.#deviceMapper.table(dataDevice)
    if (!rows.some(({ targetType }) => targetType === 'snapshot-merge')) return undefined
    return `a snapshot is being merged into ${path}`
  }
}

/** How many eras we may have begun since an earlier look. Activating begins one. */
function ownErasOf(before: LastLook): number {
  return before.state === 'active' ? (before.ownEras ?? 0) : 1
}

/**
 * What to remember of the metadata after this look, or why it is not what it was.
 *
 * @param ownEras how many eras we may have begun ourselves
 */
export function continued(
  volume: EraVolume,
  superblock: EraSuperblock,
  path: string,
  ownEras: number | 'any'
): EraHistory | DeltamapperError {
  const { blockSectors, newestEra, seenBlocks } = volume
  const seen = newestEra === 0 ? undefined : { blockSectors, newestEra, blocks: seenBlocks }
  try {
    return continuedHistory(seen, superblock, path, ownEras)
  } catch (error) {
    if (error instanceof DeltamapperError) return error
    throw error
  }
}

export function noSuchVolume(name: string): DeltamapperError {
  return new DeltamapperError(
    'DM_NO_SUCH_DEVICE',
    name === '' ? 'no volume was named' : `${JSON.stringify(name.slice(0, 200))} is no volume that this agent tracks`,
    '`deltamapper era status` lists those that are'
  )
}

export function historyLost(name: string, because: string): DeltamapperError {
  return new DeltamapperError(
    'DM_ERA_HISTORY_LOST',
    `the history of ${name} is void: ${because}`,
    'take a new snapshot, and a full backup of it; older pairs of snapshots can still be compared'
  )
}
