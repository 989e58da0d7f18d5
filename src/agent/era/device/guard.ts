/**
 * Whether the writes to a tracked volume are still all seen: the look that every boundary and every answer from live metadata begins with.
 *
 * What is looked at:
 *
 * - both devices are there, with the tables that they had;
 * - neither lets discards through, and none has gone through the guard since it was last looked at (the kernel counts them, so that a limit
 *   that was open for a moment only does not go unnoticed);
 * - while nothing is in flight, as many sectors more as the last time were written to the data device than to the guard, and to the guard
 *   than to the era device (the kernel counts those as well): more of them came by another way, and no era has them;
 * - the metadata is in the era that was seen last, but for those that we began ourselves since then; a later one says that somebody else has
 *   suspended the volume (or sent it a message), and may have put other tables in its place meanwhile;
 * - both devices stand on what they stood on;
 * - no snapshot is being merged into the data device, which writes to it from below.
 *
 * Whatever is not so voids the history from the last look on: a new line begins in the catalog before anybody is told.
 */
import type { Logger } from 'pino'
import type { DeviceInfo, DeviceMapper } from '../../../../native/device-mapper.ts'
import { nodeName } from '../../../../native/device.ts'
import { type BlockCounters, refuseDiscards } from '../../../devicemapper/block-queue.ts'
import { continuedHistory, type EraHistory } from '../../../devicemapper/era/history.ts'
import type { EraSuperblock } from '../../../devicemapper/era/superblock.ts'
import { asDeltamapperError, DeltamapperError } from '../../../errors.ts'
import type { Catalog } from '../../catalog/catalog.ts'
import type { EraVolume } from '../../catalog/era-volumes.ts'
import { dataHead } from './lasting-traces.ts'
import { type ActiveDevices, type LowerSeen, parseLowerSeen, superblockOf, TrackedDevice } from './tracked-device.ts'

export type GuardCatalog = Pick<Catalog, 'findEraVolume' | 'sawEraVolume' | 'breakEraLine'>

export interface GuardedVolume {
  /** As it is in the catalog now. */
  readonly volume: EraVolume
  readonly devices: ActiveDevices
  readonly device: DeviceInfo
  readonly metadataPath: string
  /** The live superblock. */
  readonly superblock: EraSuperblock
  /** Of the data device. */
  readonly counted: BlockCounters
}

export class EraGuard {
  readonly #catalog: GuardCatalog
  readonly #deviceMapper: DeviceMapper
  readonly #logger: Logger

  constructor(catalog: GuardCatalog, deviceMapper: DeviceMapper, logger: Logger) {
    this.#catalog = catalog
    this.#deviceMapper = deviceMapper
    this.#logger = logger
  }

  /**
   * Looks at an active volume, suspended or not, and remembers what was seen.
   *
   * @param suspended by us: what was to begin eras may still do so. (A watchdog resumes at its deadline, whoever looks: that is for the caller to see.)
   * @throws DM_ERA_HISTORY_LOST after a new line was begun; DM_ERA_INACTIVE, DM_NO_SUCH_DEVICE, DM_CATALOG_DISAGREES, and what reading
   *   metadata and device-mapper calls throw
   */
  async check(name: string, { suspended = false }: { suspended?: boolean } = {}): Promise<GuardedVolume> {
    const volume = await this.#volume(name)
    const tracked = new TrackedDevice(this.#deviceMapper, volume)
    const devices = await this.#devices(volume, tracked)
    const metadataPath = await tracked.metadataPath(devices.table)
    const superblock = await superblockOf(metadataPath)
    const [before, now] = [parseLowerSeen(volume.lowerSeen), await tracked.look(devices)]
    const because = tracked.unseen(now, before) ?? (await this.#merging(devices, volume))
    const ownEras = ownErasOf(before)
    const history = continued(volume, superblock, metadataPath, ownEras)
    const [head, guardCheckedAt] = [await this.#head(devices, before), Date.now()]
    if (because !== undefined || history instanceof DeltamapperError) {
      // (The limit first: until it is closed, the new line would be void as well.)
      await refuseDiscards(devices.guard)
      // Its own is open where it got a table meanwhile, and would be found so each time.
      if (!devices.era.suspended) await refuseDiscards(devices.era)
      const why = because ?? (history as DeltamapperError).message
      await this.breakLine(volume, why, superblock)
      // The new line begins with its first snapshot: what was counted until then is nothing to it.
      const lowerSeen = JSON.stringify(tracked.seenActive(now, { state: 'never' }, head, suspended ? ownEras : 0))
      await this.#catalog.sawEraVolume(name, { lowerSeen, guardCheckedAt })
      throw historyLost(name, why)
    }
    const { newestEra, blocks: seenBlocks } = history
    const lowerSeen = JSON.stringify(tracked.seenActive(now, before, head, suspended ? ownEras : 0))
    await this.#catalog.sawEraVolume(name, { newestEra, seenBlocks, lowerSeen, guardCheckedAt })
    const seen = { ...volume, newestEra, seenBlocks, lowerSeen, guardCheckedAt }
    return { volume: seen, devices, device: devices.era, metadataPath, superblock, counted: now.data }
  }

  /**
   * Remembers that so many eras may begin by what is about to be done to an active volume, until it is looked at again. Ahead of that, because
   * whoever does it may die.
   */
  async expectEras(name: string, ownEras: number): Promise<void> {
    const before = parseLowerSeen((await this.#volume(name)).lowerSeen)
    if (before.state !== 'active') return
    await this.#catalog.sawEraVolume(name, { lowerSeen: JSON.stringify({ ...before, ownEras } satisfies LowerSeen) })
  }

  /** A look after what was done, so that whatever comes next is somebody else's. What it finds is in the catalog and the log; nobody is kept. */
  async lookAfter(name: string): Promise<void> {
    await this.check(name).catch((error: unknown) => {
      this.#logger.warn({ volume: name, what: asDeltamapperError(error).line }, 'looked at a tracked volume')
    })
  }

  /** Begins a new line: nothing that was recorded before can be the base of anything recorded from now on. */
  async breakLine(
    volume: EraVolume,
    because: string,
    superblock: Pick<EraSuperblock, 'currentEra' | 'blocks'>
  ): Promise<EraVolume> {
    this.#logger.warn({ volume: volume.name, because, line: volume.line }, 'the history of a tracked volume is void')
    return this.#catalog.breakEraLine(volume.name, because, {
      newestEra: superblock.currentEra,
      seenBlocks: superblock.blocks
    })
  }

  /** Of the data device; as it was at the last look where somebody has suspended that, because reading would wait for its resume. */
  async #head({ dataDevice, guard }: ActiveDevices, before: LowerSeen): Promise<string> {
    const info = await this.#deviceMapper.info(dataDevice)
    if (info?.suspended) return before.state === 'never' ? '' : (before.head ?? '')
    return dataHead(`/dev/mapper/${nodeName(guard.name)}`)
  }

  /** Where somebody has exchanged them, no later look may find them as they were and take the history to go on. */
  async #devices(volume: EraVolume, tracked: TrackedDevice): Promise<ActiveDevices> {
    try {
      const devices = await tracked.active()
      await tracked.checkBelow(devices)
      return devices
    } catch (error) {
      if (!(error instanceof DeltamapperError) || error.code !== 'DM_CATALOG_DISAGREES') throw error
      const { newestEra: currentEra, seenBlocks: blocks } = volume
      await this.breakLine(volume, error.message, { currentEra, blocks })
      throw error
    }
  }

  async #volume(name: string): Promise<EraVolume> {
    const volume = await this.#catalog.findEraVolume(name)
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

/** How many eras may have begun since an earlier look by what we did ourselves. Activating begins one. */
function ownErasOf(before: LowerSeen): number {
  return before.state === 'active' ? (before.ownEras ?? 0) : 1
}

/**
 * What is to be remembered of the metadata after this look, or why it is not what it was.
 *
 * @param ownEras how many eras may have begun by what we did ourselves
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
