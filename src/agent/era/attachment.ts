/**
 * The life of a tracked volume in the kernel: attach, activate, deactivate, grow, detach. It also completes or rolls
 * back what an interrupted call left.
 *
 * The caller must hold the volume's lock.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { randomUUID } from 'node:crypto'
import { release } from 'node:os'
import type { Logger } from 'pino'
import type { DeviceMapper } from '../../../native/device-mapper.ts'
import { ClaimedDevice } from '../../devicemapper/block-device.ts'
import { blockCounters, bootId, refuseDiscards } from '../../devicemapper/block-queue.ts'
import { dropInactiveTable, refuseInactiveTables } from '../../devicemapper/inactive-table.ts'
import { losesEras } from '../../devicemapper/era/kernel.ts'
import { formatEraTable } from '../../devicemapper/era/table.ts'
import { DeltamapperError, invalid } from '../../errors.ts'
import type { Catalog } from '../catalog/catalog.ts'
import type { EraIntent, EraVolume } from '../catalog/era-volumes.ts'
import { deviceNameTaken } from '../catalog/name-taken.ts'
import { refuseInUse } from '../owned-pools/active-pool.ts'
import { deviceIdentity, isPathOnly } from '../node/device-identity.ts'
import { guardName } from '../node/era-devices.ts'
import { onceNoKeeper } from './history/era-slot.ts'
import { continued, type HistoryCheck } from './device/history-check.ts'
import { headWritten } from './device/lasting-traces.ts'
import type { LowerSnapshot, LowerSnapshots } from './boundary/lower-snapshot.ts'
import { waitingForDeviceMapper } from './device/processes.ts'
import { resumeTracked, Suspension } from './boundary/suspension.ts'
import {
  type ActiveDevices,
  dataBytes,
  type Inactive,
  type LastLook,
  parseLastLook,
  superblockOf,
  TrackedDevice
} from './device/tracked-device.ts'
import { SECTOR_BYTES } from '../../units.ts'

/**
 * Bytes of metadata for each tracked block: an era and some bits, twice, because a metadata snapshot may be held. And
 * the least size of a metadata device.
 */
const METADATA_BYTES_PER_BLOCK = 10
const LEAST_METADATA_BYTES = 2 ** 20
/** The kernel takes fewer blocks than this (valid_nr_blocks). */
const MAX_BLOCKS = 2 ** 31
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

export interface AttachRequest {
  readonly name: string
  readonly dataDevice: string
  readonly metadataDevice: string
  readonly blockBytes: number
  readonly snapshotBy: string
  readonly allowLossyKernel: boolean
}

export type AttachmentCatalog = Pick<Catalog, 'path' | 'eraVolumes'>

export class Attachment {
  readonly #catalog: AttachmentCatalog
  readonly #deviceMapper: DeviceMapper
  readonly #historyCheck: HistoryCheck
  readonly #lower: LowerSnapshots
  readonly #logger: Logger
  readonly #trustRestarts: boolean

  /** @param trustRestarts the operator guarantees that nothing writes to the devices below between two boots */
  constructor(
    catalog: AttachmentCatalog,
    deviceMapper: DeviceMapper,
    historyCheck: HistoryCheck,
    lower: LowerSnapshots,
    { logger, trustRestarts }: { logger: Logger; trustRestarts: boolean }
  ) {
    this.#catalog = catalog
    this.#deviceMapper = deviceMapper
    this.#historyCheck = historyCheck
    this.#lower = lower
    this.#logger = logger
    this.#trustRestarts = trustRestarts
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
    for (const each of [name, guardName({ dmName: name })]) await this.#refuseTaken(each)
    const { data, metadata } = await this.#claimFree(dataDevice, metadataDevice)
    for (const { path, identity } of [data, metadata]) {
      if (!isPathOnly(identity)) continue
      this.#logger.warn(
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
      ...{ guardCheckedAt: Date.now(), lowerSeen: '', allowLossyKernel, snapshotBy }
    }
    await this.#catalog.eraVolumes.begin({ kind: 'attach', volume })
    try {
      const tracked = new TrackedDevice(this.#deviceMapper, { ...volume, createdAt: 0 })
      await tracked.blankMetadata()
      await tracked.putUp(data.number, metadata.number)
    } catch (error) {
      await this.settle(name)
      throw error
    }
    await this.settle(name)
    await this.#historyCheck.check(name)
  }

  /**
   * Makes the devices of a volume. Does nothing if they exist and are right.
   *
   * @param startOver if the metadata is not what it was, format it anew and begin a new history
   * @throws DM_ERA_HISTORY_LOST when the metadata is not what it was; DM_KERNEL_LOSSY, DM_DEVICE_BUSY,
   *   DM_CATALOG_DISAGREES
   */
  async activate(volume: EraVolume, startOver: boolean): Promise<void> {
    const { name, metadataDevice, dmName } = volume
    const tracked = new TrackedDevice(this.#deviceMapper, volume)
    if (await tracked.info()) {
      await this.#historyCheck.check(name)
      return
    }
    refuseLossyKernel(volume.allowLossyKernel)
    // An interrupted call left it: nothing stands on it.
    await tracked.takeDown()
    for (const each of [dmName, guardName(volume)]) await this.#refuseTaken(each)
    const data = await tracked.checkData()
    const metadata = await tracked.checkMetadata()
    const below = await tracked.seenInactive(data.number, metadata)
    const before = parseLastLook(volume.lowerSeen)
    const superblock = await superblockOf(metadataDevice).catch((error: unknown) => {
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
          tracked.writtenBeside(below, before, this.#trustRestarts))
    const metadataSeen = { newestEra: now?.currentEra ?? 0, seenBlocks: now?.blocks ?? 0 }
    // On disk before anything can be written through the devices, and before a snapshot of the old history could be
    // taken.
    if (because !== undefined) {
      await this.#catalog.eraVolumes.endHistory(name, because, metadataSeen)
      this.#logger.warn({ volume: name, because }, 'the history of a tracked volume is void')
    }
    // From here on, every write to it must come through the devices, whoever checks next.
    await this.#catalog.eraVolumes.saw(name, { lowerSeen: JSON.stringify(below), ...metadataSeen })
    await tracked.putUp(data.number, metadata)
    await this.#historyCheck.check(name)
  }

  /**
   * Removes the devices, and remembers the state of the devices below.
   *
   * @param atShutdown nothing writes to the devices below any more in this boot, so the history continues after the
   *   restart
   * @throws DM_DEVICE_BUSY while the volume is in use
   */
  async deactivate(volume: EraVolume, atShutdown: boolean): Promise<void> {
    const tracked = new TrackedDevice(this.#deviceMapper, volume)
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
    const { currentEra, blocks } = await superblockOf(volume.metadataDevice)
    // If something wrote beside the volume since the look, the counters show it in this boot only.
    const { writtenSectors, discards } = await blockCounters(dataDevice)
    const isLast = atShutdown && writtenSectors === seen.writtenSectors && discards === seen.discards
    await this.#catalog.eraVolumes.saw(volume.name, {
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
    const remember = (seen: LastLook) => this.#catalog.eraVolumes.saw(volume.name, { lowerSeen: JSON.stringify(seen) })
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
    const volume = await this.#catalog.eraVolumes.find(name)
    if (!volume) return
    if (await new TrackedDevice(this.#deviceMapper, volume).info()) return this.#historyCheck.lookAfter(name)
    const [before, nextBoot] = [parseLastLook(volume.lowerSeen), await bootId()]
    if (before.state !== 'inactive' || !before.atShutdown || before.nextBoot !== undefined) return
    if (before.boot === nextBoot) return
    const lowerSeen = JSON.stringify({ ...before, nextBoot } satisfies LastLook)
    await this.#catalog.eraVolumes.saw(name, { lowerSeen })
  }

  /**
   * For a volume that was active when its machine stopped, and whose history is to continue: whether the first bytes of
   * the data device differ from the last look, although the volume has not written to them since.
   */
  async #headExchanged({ name, dataDevice, metadataDevice, newestEra }: EraVolume, now: Inactive, before: LastLook) {
    if (!this.#trustRestarts || before.state !== 'active' || before.head === now.head) return undefined
    if (await headWritten(metadataDevice, newestEra)) return undefined
    return `the first bytes of ${dataDevice} are not what they were, and ${name} did not write to them`
  }

  /**
   * Ends the tracking. The data device keeps its contents, the history is forgotten, and the metadata device is made
   * blank. @throws DM_DEVICE_BUSY while the volume is in use
   */
  async detach(volume: EraVolume): Promise<void> {
    const tracked = new TrackedDevice(this.#deviceMapper, volume)
    const info = await tracked.info()
    if (info && info.openCount > 0) await tracked.takeDown()
    await this.#catalog.eraVolumes.begin({ kind: 'detach', volume: volume.name })
    await this.settle(volume.name)
  }

  /**
   * Enlarges a volume to the whole of its data device, after that has grown.
   *
   * @throws DM_ARGUMENT_INVALID when it has not grown; DM_ERA_INACTIVE, and what device-mapper calls throw
   */
  async grow(volume: EraVolume): Promise<void> {
    const { name } = volume
    const { devices } = await this.#historyCheck.check(name)
    const sizeBytes = await dataBytes(devices)
    if (sizeBytes <= volume.sizeBytes) {
      throw invalid(
        `${volume.dataDevice} has ${sizeBytes} bytes, and ${name} has ${volume.sizeBytes}`,
        sizeBytes === volume.sizeBytes
          ? 'enlarge that device first; LVM extends a thick volume in use only once it has no classic snapshot'
          : 'a tracked volume cannot shrink'
      )
    }
    const blocks = Math.ceil(sizeBytes / (volume.blockSectors * SECTOR_BYTES))
    const tracked = new TrackedDevice(this.#deviceMapper, volume)
    const status = await tracked.status()
    const metadataTotal = status.state === 'working' ? status.totalMetadataBlocks * 4096 : 0
    if (blocks >= MAX_BLOCKS || metadataTotal < metadataBytes(blocks)) {
      throw invalid(
        `${volume.metadataDevice} has ${metadataTotal} bytes, and ${blocks} blocks take ${metadataBytes(blocks)}`,
        'attach the volume anew, with a larger metadata device or larger blocks'
      )
    }
    await onceNoKeeper(volume, this.#catalog.path)
    // (Before the intent is recorded: recovery treats a loaded table as a reason to end the history.)
    await refuseInactiveTables(this.#deviceMapper, devices.era, `${name} does not grow`)
    await this.#catalog.eraVolumes.begin({ kind: 'grow', volume: name, sizeBytes })
    await this.#historyCheck.expectEras(name, GROW_ERAS)
    let failure: unknown
    try {
      await this.#enlarge(volume, sizeBytes / SECTOR_BYTES)
    } catch (error) {
      failure = error
    }
    await this.settle(name)
    if (failure !== undefined) throw failure as Error
    await this.#historyCheck.check(name)
  }

  /**
   * Completes or rolls back the intent of a volume that is still in the catalog.
   *
   * @returns what was done, in words; undefined when there was no intent
   */
  async settle(name: string): Promise<string | undefined> {
    const { volumes, intents } = await this.#catalog.eraVolumes.view()
    const volume = volumes.find((each) => each.name === name)
    const intent = intents.find((each) => each.volume === name)
    if (!volume || !intent) return undefined
    const tracked = new TrackedDevice(this.#deviceMapper, volume)
    switch (intent.kind) {
      case 'attach':
        return this.#settleAttach(volume, tracked)
      case 'detach':
        await tracked.takeDown()
        // Makes the metadata device usable again. Anything that is not recognised as era metadata of this volume stays.
        await tracked
          .checkMetadata()
          .then(() => superblockOf(volume.metadataDevice))
          .then(() => tracked.blankMetadata())
          .catch((error: unknown) => {
            this.#logger.warn({ volume: name, err: error }, 'the metadata device was not made blank')
          })
        await this.#catalog.eraVolumes.complete(name)
        return `${name} was to be detached: it is`
      case 'grow':
        return this.#settleGrow(volume, tracked, intent)
      case 'snapshot': {
        await resumeTracked(this.#deviceMapper, tracked)
        const left = await this.#lower.unfinished(volume, intent.snapshot, intent.token)
        await this.removeLower(volume, left).catch((error: unknown) => {
          // No snapshot in the catalog refers to it, so leaving it only costs space.
          this.#logger.warn(
            { volume: name, snapshot: intent.snapshot, err: error },
            'the lower snapshot could not be removed'
          )
        })
        await this.#catalog.eraVolumes.rollBack(name)
        if (await tracked.info()) await this.#historyCheck.lookAfter(name)
        return `snapshot ${name}/${intent.snapshot} was not finished: it is given up`
      }
    }
  }

  /** Removes the lower snapshot; does nothing if a driver is responsible for it. @throws what removing throws */
  async removeLower(volume: EraVolume, lower: Pick<LowerSnapshot, 'remove'> | undefined): Promise<void> {
    if (lower === undefined) return
    const seen = await new TrackedDevice(this.#deviceMapper, volume).removeLower(() => lower.remove())
    if (seen) await this.#catalog.eraVolumes.saw(volume.name, { lowerSeen: JSON.stringify(seen) })
  }

  async #settleAttach(volume: EraVolume, tracked: TrackedDevice): Promise<string> {
    const { name } = volume
    const complete = await tracked.active().then(
      (devices) => !devices.era.suspended,
      () => false
    )
    if (complete) {
      const devices = await tracked.active()
      await refuseDiscards(devices.guard)
      await this.#catalog.eraVolumes.complete(name)
      return `${name} was to be attached: it is`
    }
    await tracked.takeDown()
    // The device was blank before, so nothing is lost. If it cannot be blanked, the next attach reports its content.
    await tracked.blankMetadata().catch(() => undefined)
    await this.#catalog.eraVolumes.rollBack(name)
    return `${name} was to be attached, and is not`
  }

  async #settleGrow(
    volume: EraVolume,
    tracked: TrackedDevice,
    { sizeBytes }: Extract<EraIntent, { kind: 'grow' }>
  ): Promise<string> {
    const { name } = volume
    const left = await activeOrNone(tracked)
    if (left?.era.hasInactiveTable && !left.era.suspended) {
      // The table was loaded while the volume was being written to. It is dropped now, but it may have been live for a
      // while.
      const because = `a table was loaded into ${left.era.name} while that was in use, and an agent died before it could drop it`
      await this.#historyCheck.endHistory(volume, because, await superblockOf(await tracked.metadataPath(left.table)))
    }
    await resumeTracked(this.#deviceMapper, tracked)
    const devices = await activeOrNone(tracked)
    if (devices?.sizeBytes === sizeBytes) {
      await this.#catalog.eraVolumes.complete(name)
      return `${name} was to grow to ${sizeBytes} bytes: it has`
    }
    await this.#catalog.eraVolumes.rollBack(name)
    if (devices) await this.#historyCheck.lookAfter(name)
    return `${name} was to grow to ${sizeBytes} bytes, and has not`
  }

  /**
   * A look that records its findings and never fails. Undefined if there is nothing to inspect that could be
   * understood.
   */
  async #lastLook(name: string) {
    try {
      return await this.#historyCheck.check(name)
    } catch (error) {
      const code = error instanceof DeltamapperError ? error.code : undefined
      if (code === 'DM_ERA_INACTIVE' || code === 'DM_CATALOG_DISAGREES') return undefined
      // The catalog has it by now: from here on, this is a new history.
      if (code === 'DM_ERA_HISTORY_LOST') return this.#historyCheck.check(name)
      throw error
    }
  }

  /**
   * Gives both devices larger tables. There is a deadlock to avoid: a process that queries the status of the suspended
   * era device waits for its resume, and the resume that exchanges the table waits for that process. So if another
   * process queries it, the device is resumed with its old table, and the exchange is tried again.
   */
  async #enlarge(volume: EraVolume, lengthSectors: number): Promise<void> {
    // A process that waited before the suspension does not wait for this volume.
    const before = new Set(waitingForDeviceMapper().map(({ wait }) => wait))
    for (let tries = 1; ; tries++) {
      const asking = await this.#exchangeTables(volume, lengthSectors, before)
      if (!asking) return
      if (tries < MOST_TRIES) {
        await sleep(Math.random() * LONGEST_PAUSE_MS)
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
  async #exchangeTables(volume: EraVolume, lengthSectors: number, before: ReadonlySet<string>) {
    const tracked = new TrackedDevice(this.#deviceMapper, volume)
    const devices = await tracked.active()
    const suspension = await Suspension.prepare(this.#deviceMapper, tracked, GROW_DEADLINE_MS)
    try {
      await suspension.suspend()
      const isFresh = await this.#load(tracked, devices, lengthSectors)
      // As late as possible, and with the shortest way to the resume: a process that begins to wait in between is not
      // seen.
      const asking = waitingForDeviceMapper().find(({ wait }) => !before.has(wait))
      if (isFresh && !asking) await this.#deviceMapper.resume(tracked.era)
      const dropped = isFresh && !asking ? undefined : await dropInactiveTable(this.#deviceMapper, tracked.era)
      const { ms } = await suspension.resume()
      await dropped?.over
      const suspendedMs = Math.round(ms)
      const { sizeBytes } = await tracked.active()
      if (sizeBytes === lengthSectors * SECTOR_BYTES) {
        if (!isFresh) {
          const because = `another program has put a table of ${volume.name} in place that was loaded while it was in use`
          await this.#historyCheck.endHistory(
            volume,
            because,
            await superblockOf(await tracked.metadataPath(devices.table))
          )
        }
        this.#logger.info({ volume: volume.name, sizeBytes, suspendedMs }, 'grown')
        return undefined
      }
      if (isFresh && asking) {
        const { pid, name } = asking
        this.#logger.warn({ volume: volume.name, pid, process: name, suspendedMs }, 'not grown: somebody waits for it')
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
    const archived = await superblockOf(metadataPath)
    const row = { startSector: 0, lengthSectors }
    await this.#deviceMapper.suspend(tracked.guard)
    const linear = { ...row, targetType: 'linear', params: `${dataDevice.major}:${dataDevice.minor} 0` }
    await this.#deviceMapper.reload(tracked.guard, [linear])
    await this.#deviceMapper.resume(tracked.guard)
    // Its discard limit is open again now. But nothing gets through the era device above, which takes its own limit
    // from this one at its resume.
    await refuseDiscards(guard)
    await this.#deviceMapper.reload(tracked.era, [{ ...row, targetType: 'era', params: formatEraTable(table) }])
    // If it was resumed meanwhile, another era has begun, even if it is suspended again.
    const { currentEra } = await superblockOf(metadataPath)
    const isSuspended = (await tracked.info())?.suspended === true
    return isSuspended && archived.currentWriteset === undefined && currentEra === archived.currentEra
  }

  async #refuseTaken(dmName: string): Promise<void> {
    if (await this.#deviceMapper.info(dmName)) throw deviceNameTaken(dmName)
  }

  /** Both devices of a new volume. @throws DM_DEVICE_BUSY, DM_DEVICE_NOT_BLANK, DM_ARGUMENT_INVALID */
  async #claimFree(dataPath: string, metadataPath: string) {
    await using data = await ClaimedDevice.open(dataPath)
    await using metadata = await ClaimedDevice.open(metadataPath).catch((error: unknown) => {
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
    const describe = async (device: ClaimedDevice) => ({
      path: device.path,
      number: device.number,
      sizeBytes: device.sizeBytes,
      identity: await deviceIdentity(this.#deviceMapper, device.path, device.number)
    })
    return { data: await describe(data), metadata: await describe(metadata) }
  }
}

/** The most bytes of metadata that so many blocks take. */
export function metadataBytes(blocks: number): number {
  return LEAST_METADATA_BYTES + METADATA_BYTES_PER_BLOCK * blocks
}

/** Both devices, if they exist and are right. */
async function activeOrNone(tracked: TrackedDevice): Promise<ActiveDevices | undefined> {
  return tracked.active().catch((error: unknown) => {
    const code = error instanceof DeltamapperError ? error.code : undefined
    if (code === 'DM_ERA_INACTIVE' || code === 'DM_CATALOG_DISAGREES') return undefined
    throw error
  })
}

function refuseLossyKernel(allowed: boolean): void {
  if (allowed || !losesEras(release())) return
  throw new DeltamapperError(
    'DM_KERNEL_LOSSY',
    `Linux ${release()} forgets what was written in the current era when it crashes, and nothing shows it`,
    'update to Linux 5.12 or later; where your kernel has the dm-era fixes of March 2021, attach with --allow-lossy-kernel'
  )
}
