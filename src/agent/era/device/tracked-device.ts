/**
 * A tracked volume in the kernel: two devices over its data device.
 *
 *     /dev/mapper/NAME          era      marks the blocks that are written
 *       │        └ metadata device
 *     NAME-guard                linear   its discard limit is 0: no discard reaches the devices above or below
 *       │
 *     the data device                    claimed by the guard: nothing can mount it beside us
 *
 * dm-era marks only the first block of a discard (era_map), and the limit of the era device itself opens again with
 * each new table. So the guard's limit is closed before anything stands on it, and the guard gets another table only
 * while the era device is suspended.
 *
 * Tables change by suspend, load, resume: the target reads its metadata at the load. Ask a suspended era device only
 * what the kernel answers without waiting (info, table). Status and messages would wait for the resume, perhaps for
 * ever.
 */
import { isDeepStrictEqual } from 'node:util'
import type { DeviceInfo, DeviceMapper, DeviceNumber } from '../../../../native/device-mapper.ts'
import { DeviceMapperError } from '../../../../native/device-mapper-error.ts'
import { nodeName } from '../../../../native/device.ts'
import { LOOK_BYTES, onceFree } from '../../../devicemapper/block-device.ts'
import type { BlockCounters } from '../../../devicemapper/block-queue.ts'
import { openEraMetadata } from '../../../devicemapper/era/era-metadata.ts'
import { type EraStatus, parseEraStatus } from '../../../devicemapper/era/status.ts'
import type { OpenMedium } from '../../../devicemapper/metadata-medium.ts'
import type { EraSuperblock } from '../../../devicemapper/era/superblock.ts'
import { type EraTable, formatEraTable, parseEraTable } from '../../../devicemapper/era/table.ts'
import { TargetWords } from '../../../devicemapper/target-words.ts'
import { DeltamapperError } from '../../../errors.ts'
import type { EraVolume } from '../../catalog/era-volumes.ts'
import { refuseInUse } from '../../owned-pools/active-pool.ts'
import { isKnownBy } from '../../node/device-identity.ts'
import { eraUuid, guardName, guardUuid } from '../../node/era-devices.ts'
import { dataHead, metadataState } from './lasting-traces.ts'
import { thisMachine, type TrackedMachine } from './machine.ts'
import { SECTOR_BYTES } from '../../../units.ts'

/** Formatting the metadata of a large device takes long. */
const CREATE_DEADLINE_MS = 60_000
/** How often to try to make an era device, if the kernel's error does not tell the reason. */
const MOST_TRIES = 5

/** Both devices, with the right tables. */
export interface ActiveDevices {
  readonly era: DeviceInfo
  readonly guard: DeviceInfo
  readonly table: EraTable
  readonly dataDevice: DeviceNumber
  /** Of the era device, in bytes. */
  readonly sizeBytes: number
}

export class TrackedDevice {
  readonly volume: EraVolume
  readonly #deviceMapper: DeviceMapper
  readonly #machine: TrackedMachine

  constructor(deviceMapper: DeviceMapper, volume: EraVolume, machine: TrackedMachine = thisMachine) {
    this.#deviceMapper = deviceMapper
    this.volume = volume
    this.#machine = machine
  }

  get era(): { readonly uuid: string } {
    return { uuid: eraUuid(this.volume) }
  }

  get guard(): { readonly uuid: string } {
    return { uuid: guardUuid(this.volume) }
  }

  /** The era device; undefined when the volume is not active. */
  async info(): Promise<DeviceInfo | undefined> {
    const info = await this.#deviceMapper.info(this.era)
    return info?.hasLiveTable ? info : undefined
  }

  /**
   * Both devices and the devices below them.
   *
   * @throws DM_ERA_INACTIVE; DM_CATALOG_DISAGREES when they have other tables
   */
  async active(): Promise<ActiveDevices> {
    const { name } = this.volume
    const [era, guard] = [await this.info(), await this.#deviceMapper.info(this.guard)]
    if (!era || !guard?.hasLiveTable) {
      throw new DeltamapperError(
        'DM_ERA_INACTIVE',
        `${name} is not active: what is written to ${this.volume.dataDevice} is not tracked`,
        `\`deltamapper era activate ${name}\``
      )
    }
    const [eraRow, ...moreOfEra] = await this.#deviceMapper.table(this.era)
    const [guardRow, ...moreOfGuard] = await this.#deviceMapper.table(this.guard)
    const refuse = (what: string): never => {
      throw new DeltamapperError(
        'DM_CATALOG_DISAGREES',
        `${what}: another program has changed it, and writes may go unseen`,
        `\`deltamapper era deactivate ${name}\` and \`era activate\` put it right; take a full backup`
      )
    }
    if (eraRow?.targetType !== 'era' || moreOfEra.length > 0) return refuse(`${era.name} is no era device any more`)
    const table = parseEraTable(eraRow.params)
    if (table.originDevice.major !== guard.major || table.originDevice.minor !== guard.minor) {
      return refuse(`${era.name} does not stand on ${guard.name}`)
    }
    if (table.blockSectors !== this.volume.blockSectors) return refuse(`${era.name} has blocks of another size`)
    if (guardRow?.targetType !== 'linear' || moreOfGuard.length > 0 || guardRow.lengthSectors < eraRow.lengthSectors) {
      return refuse(`${guard.name} is not the linear device that it was`)
    }
    const words = new TargetWords(guardRow.params, 'the table of a linear device')
    const dataDevice = words.device()
    if (words.number() !== 0) return refuse(`${guard.name} does not begin where it did`)
    return { era, guard, table, dataDevice, sizeBytes: eraRow.lengthSectors * SECTOR_BYTES }
  }

  /** Its status line. Do not ask while it is suspended. */
  async status(): Promise<EraStatus> {
    const [row] = await this.#deviceMapper.status(this.era)
    return row === undefined ? { state: 'unknown' } : parseEraStatus(row.params)
  }

  /**
   * Checks that the active devices stand on the right data and metadata device. An exchange for tables of the same
   * shape would not show otherwise.
   *
   * @throws DM_CATALOG_DISAGREES
   */
  async checkBelow({ table, dataDevice }: ActiveDevices): Promise<void> {
    const { name, dataDevice: dataPath, dataIdentity, metadataDevice: metadataPath, metadataIdentity } = this.volume
    for (const [path, recorded, device] of [
      [dataPath, dataIdentity, dataDevice],
      [metadataPath, metadataIdentity, table.metadataDevice]
    ] as const) {
      const identity = await this.#machine.identity(this.#deviceMapper, path, device)
      if (isKnownBy(recorded, identity, path)) continue
      throw new DeltamapperError(
        'DM_CATALOG_DISAGREES',
        `${name} stands on ${identity}, and ${path} was ${recorded}: another program has changed it, and writes may go unseen`,
        `\`deltamapper era deactivate ${name}\` and \`era activate\` put it right; take a full backup`
      )
    }
  }

  /** The metadata device of the active device. */
  async metadataPath(table: EraTable): Promise<string> {
    const info = await this.#deviceMapper.info(table.metadataDevice)
    if (info) return `/dev/mapper/${nodeName(info.name)}`
    return this.volume.metadataDevice
  }

  /**
   * Checks the data device of an inactive volume.
   *
   * @throws DM_DEVICE_BUSY when it is in use; DM_CATALOG_DISAGREES when it is another device, or has shrunk
   */
  async checkData(): Promise<{ identity: string; number: DeviceNumber; sizeBytes: number }> {
    const { dataDevice, dataIdentity, sizeBytes, name } = this.volume
    await using device = await this.#machine.claim(dataDevice)
    const identity = await this.#machine.identity(this.#deviceMapper, dataDevice, device.number)
    if (!isKnownBy(dataIdentity, identity, dataDevice)) {
      throw new DeltamapperError(
        'DM_CATALOG_DISAGREES',
        `${dataDevice} is not the device that ${name} is of: it is ${identity}, and that was ${dataIdentity}`,
        'put the device in its place, or detach the volume and attach it anew'
      )
    }
    if (device.sizeBytes < sizeBytes) {
      throw new DeltamapperError(
        'DM_CATALOG_DISAGREES',
        `${dataDevice} has ${device.sizeBytes} bytes, less than the ${sizeBytes} of ${name}`,
        'a tracked volume cannot shrink: detach it, and attach it anew'
      )
    }
    return { identity, number: device.number, sizeBytes: device.sizeBytes }
  }

  /**
   * Checks the metadata device of an inactive volume: not in use, and the same as before. @throws DM_DEVICE_BUSY,
   * DM_CATALOG_DISAGREES
   */
  async checkMetadata(): Promise<DeviceNumber> {
    const { metadataDevice, metadataIdentity, name } = this.volume
    await using device = await this.#machine.claim(metadataDevice)
    const identity = await this.#machine.identity(this.#deviceMapper, metadataDevice, device.number)
    if (isKnownBy(metadataIdentity, identity, metadataDevice)) return device.number
    throw new DeltamapperError(
      'DM_CATALOG_DISAGREES',
      `${metadataDevice} is not the metadata device of ${name}: it is ${identity}, and that was ${metadataIdentity}`,
      'put the device in its place, or detach the volume and attach it anew'
    )
  }

  /**
   * Removes a lower snapshot. The next activation then does not take it for one that was merged.
   *
   * @returns what to remember instead; undefined if nothing changes
   */
  async removeLower(remove: () => Promise<void>): Promise<LastLook | undefined> {
    const seen = parseLastLook(this.volume.lowerSeen)
    const data = await this.#machine.deviceAt(this.volume.dataDevice)
    const look = async (): Promise<string[]> => (data ? this.#machine.mergeable(this.#deviceMapper, data) : [])
    const were = await look()
    await remove()
    if (seen.state === 'never' || seen.mergeable === undefined) return undefined
    const are = await look()
    const removed = were.filter((each) => !are.includes(each))
    return { ...seen, mergeable: seen.mergeable.filter((each) => !removed.includes(each)) }
  }

  /** Makes the start of the metadata device blank, so that the kernel formats it anew. */
  async blankMetadata(): Promise<void> {
    await using device = await this.#machine.claim(this.volume.metadataDevice, { writable: true })
    await device.zeroStart(4096)
  }

  /**
   * Makes both devices. Neither may exist yet.
   *
   * @throws DM_DEVICE_BUSY, and what device-mapper calls throw; one of them may exist then
   */
  async putUp(data: DeviceNumber, metadata: DeviceNumber): Promise<void> {
    const { dmName, metadataDevice, sizeBytes, blockSectors } = this.volume
    const lengthSectors = sizeBytes / SECTOR_BYTES
    const guard = await onceFree(() =>
      this.#deviceMapper.create(guardName(this.volume), {
        uuid: this.guard.uuid,
        table: [{ startSector: 0, lengthSectors, targetType: 'linear', params: `${data.major}:${data.minor} 0` }]
      })
    )
    // Nothing stands on it yet, so no discard comes in before.
    await this.#machine.refuseDiscards(guard)
    const params = formatEraTable({ metadataDevice: metadata, originDevice: guard, blockSectors })
    const create = () =>
      this.#deviceMapper.create(dmName, {
        uuid: this.era.uuid,
        table: [{ startSector: 0, lengthSectors, targetType: 'era', params }],
        deadlineMs: CREATE_DEADLINE_MS
      })
    for (let tries = 1; ; tries++) {
      try {
        await onceFree(create)
        return
      } catch (error) {
        // The target answers EINVAL for every reason that kept it from opening a device (era_ctr), including a device
        // in use.
        const why = error instanceof DeviceMapperError ? error.errno : undefined
        if (why !== 'EINVAL' || tries === MOST_TRIES) throw error
      }
      // Waits until the device is free; throws DM_DEVICE_BUSY when that takes too long.
      await (await this.#machine.claim(metadataDevice)).close()
    }
  }

  /** Removes both devices, or any of them that exists. @throws DM_DEVICE_BUSY while the volume is in use */
  async takeDown(): Promise<void> {
    for (const reference of [this.era, this.guard]) {
      const info = await this.#deviceMapper.info(reference)
      if (!info) continue
      if (reference === this.era || info.openCount > 0) refuseInUse(info, this.volume.name)
      await this.#deviceMapper.remove(reference, { retry: true })
    }
  }

  /**
   * The state of an active volume, suspended or not. It is read once, so that nothing is lost between comparing and
   * remembering.
   */
  async look({ guard, dataDevice, era, table }: ActiveDevices): Promise<ActiveLook> {
    const limits = await Promise.all(
      [guard, era].map(async (each) => [each.name, await this.#machine.discardLimit(each)] as const)
    )
    const [open] = limits.filter(([, limit]) => limit !== 0)
    const quietBefore = isQuiet(await this.info())
    const count = async () => ({ era: await this.#machine.counters(era), guard: await this.#machine.counters(guard) })
    const counted = await count()
    const data = await this.#machine.counters(dataDevice)
    // Somebody may have opened it, written, and closed it again since.
    const isStill = isDeepStrictEqual(await count(), counted)
    return {
      ...{
        boot: await this.#machine.bootId(),
        instance: await this.#machine.instance(guard),
        dataInstance: await this.#machine.instance(dataDevice)
      },
      openLimit: open && `${open[0]} let discards through (discard_max_bytes was ${open[1]})`,
      discards: counted.guard.discards,
      data,
      dataBytes: await this.#machine.sizeOf(dataDevice),
      mergeable: await this.#machine.mergeable(this.#deviceMapper, dataDevice),
      metadataMergeable: await this.#machine.mergeable(this.#deviceMapper, table.metadataDevice),
      pastEra: counted.guard.writtenSectors - counted.era.writtenSectors,
      pastGuard: data.writtenSectors - counted.guard.writtenSectors,
      settled: quietBefore && isStill && isQuiet(await this.info())
    }
  }

  /**
   * Whether writes or discards may have gone unseen since an earlier look.
   *
   * @returns what was seen, in words; undefined when all is well
   */
  unseen(now: ActiveLook, before: LastLook): string | undefined {
    const { name, dataDevice, sizeBytes } = this.volume
    if (now.openLimit !== undefined) return now.openLimit
    // What lay beyond may have been used by another volume, and comes back with its content.
    if (now.dataBytes < sizeBytes)
      return `${dataDevice} has ${now.dataBytes} bytes, and ${name} has ${sizeBytes}: it was made smaller`
    const was = countersThen(now, before)
    if (was === 'other devices') return `${name} was deactivated and activated again by another program`
    if (now.discards > was.discards)
      return `${now.discards - was.discards} discards went through ${guardName(this.volume)}`
    if (was.beside === undefined) return undefined
    const { pastEra, pastGuard, dataDiscards } = was.beside
    if (now.data.discards > dataDiscards) {
      return `${now.data.discards - dataDiscards} discards went to ${dataDevice} beside ${name}`
    }
    if (!now.settled) return undefined
    if (now.pastEra > pastEra)
      return `${now.pastEra - pastEra} sectors were written to ${guardName(this.volume)} beside ${name}`
    if (now.pastGuard > pastGuard)
      return `${now.pastGuard - pastGuard} sectors were written to ${dataDevice} beside ${name}`
    return undefined
  }

  /**
   * What to remember of an active volume for the next look.
   *
   * @param head of the data device at this look (lasting-traces.ts)
   * @param ownEras how many eras our next action may begin before the next look
   */
  seenActive(look: ActiveLook, before: LastLook, head: string, ownEras: number): LastLook {
    const { boot, instance, discards, settled, pastEra, pastGuard, data, mergeable, metadataMergeable } = look
    const was = countersThen(look, before)
    const beside = settled
      ? { pastEra, pastGuard, dataDiscards: data.discards }
      : was === 'other devices'
        ? undefined
        : was.beside
    const lasting = { head, mergeable, metadataMergeable }
    return { state: 'active', boot, instance, discards, ownEras, ...lasting, ...(beside && { beside }) }
  }

  /**
   * What to remember of both devices of an inactive volume. First, dirty pages in the page cache of the data device are
   * written to it, and so counted. Closing the device does not write them while another opener, such as the guard,
   * remains.
   *
   * @param counted the data device's counters when the volume was last seen active, so that later writes do not count
   *   as its own
   */
  async seenInactive(data: DeviceNumber, metadata: DeviceNumber, counted?: BlockCounters): Promise<Inactive> {
    const { dataDevice, metadataDevice } = this.volume
    await this.#machine.writeBack(dataDevice)
    const { writtenSectors, discards } = counted ?? (await this.#machine.counters(data))
    return {
      ...{
        state: 'inactive',
        boot: await this.#machine.bootId(),
        instance: await this.#machine.instance(data),
        writtenSectors,
        discards
      },
      head: await dataHead(this.#machine, dataDevice),
      mergeable: await this.#machine.mergeable(this.#deviceMapper, data),
      metadataState: await metadataState(this.#machine, metadataDevice),
      metadataMergeable: await this.#machine.mergeable(this.#deviceMapper, metadata),
      metadata: { instance: await this.#machine.instance(metadata), ...(await this.#machine.counters(metadata)) }
    }
  }

  /**
   * Whether either device was written to while the volume was inactive, as far as can be told. It compares the kernel's
   * counters, which begin when a device appears; the first bytes of the data device; and the last era of the metadata.
   *
   * Counters end with the boot. So the counters at deactivation say nothing after a restart, unless deactivation was
   * the last act of that boot. For a volume that was never deactivated, any system that was booted meanwhile may have
   * written to it.
   *
   * Also, the look must be in the next boot: nothing is known of what happened in any other.
   *
   * @param trusted the operator guarantees that nothing was written between two boots
   * @returns what was seen, in words; undefined when there is no sign of a write
   */
  writtenBeside(now: Inactive, before: LastLook, trusted: boolean): string | undefined {
    if (before.state === 'never') return this.#writtenSinceBoot(now)
    return (
      this.#merged(now, before) ??
      (before.state === 'inactive' ? this.#changed(now, before) : undefined) ??
      (before.boot === now.boot ? this.#writtenInBoot(now, before) : this.#writtenBetween(now, before, trusted))
    )
  }

  #merged(now: Inactive, before: Exclude<LastLook, { state: 'never' }>): string | undefined {
    const { name, dataDevice, metadataDevice } = this.volume
    for (const [path, were, are] of [
      [dataDevice, before.mergeable, now.mergeable],
      [metadataDevice, before.metadataMergeable, now.metadataMergeable]
    ] as const) {
      const gone = were?.find((each) => !are?.includes(each))
      if (gone) return `${gone} is gone, and may have been merged into ${path} while ${name} was not active`
    }
    return undefined
  }

  #changed(now: Inactive, before: Inactive): string | undefined {
    const { name, dataDevice, metadataDevice } = this.volume
    if (before.head !== now.head) {
      return `the first ${LOOK_BYTES / 1024} KiB of ${dataDevice} are not what they were when ${name} was deactivated`
    }
    if (now.metadataState === '' || before.metadataState !== now.metadataState) {
      return `the metadata in ${metadataDevice} is not what it was when ${name} was deactivated`
    }
    return undefined
  }

  /** In the same boot as the last look. */
  #writtenInBoot(now: Inactive, before: Exclude<LastLook, { state: 'never' }>): string | undefined {
    const { name, dataDevice, metadataDevice } = this.volume
    // Another process removed the devices, without telling us and without a restart of the machine.
    if (before.state === 'active')
      return `${name} was deactivated by another program, and may have been written to since`
    for (const [path, was, is] of [
      [dataDevice, before, now],
      [metadataDevice, before.metadata, now.metadata]
    ] as const) {
      if (was === undefined || is === undefined) continue
      if (was.instance !== is.instance || is.instance === '') {
        return `${path} was itself taken down and put up again while ${name} was not active, and may have been written to`
      }
      if (was.writtenSectors !== is.writtenSectors || was.discards !== is.discards) {
        return `${path} was written to while ${name} was not active`
      }
    }
    return undefined
  }

  /** With at least one restart in between. */
  #writtenBetween(now: Inactive, before: Exclude<LastLook, { state: 'never' }>, trusted: boolean): string | undefined {
    const { name, dataDevice } = this.volume
    const wasLast = before.state === 'inactive' && before.atShutdown === true
    const isNext = before.state === 'active' || before.nextBoot === undefined || before.nextBoot === now.boot
    if (wasLast && !isNext && !trusted) {
      return `${name} was not activated in the boot before, and ${dataDevice} may have been written to in it, before this boot`
    }
    if (!wasLast && !trusted) {
      return before.state === 'active'
        ? `the machine stopped while ${name} was active, and ${dataDevice} may have been written to before this boot`
        : `${name} was not deactivated at the shutdown of the machine, and ${dataDevice} may have been written to before this boot`
    }
    return this.#writtenSinceBoot(now)
  }

  /** In this boot, without an earlier look in it. */
  #writtenSinceBoot({ writtenSectors, discards, metadata }: Inactive): string | undefined {
    const { name, dataDevice, metadataDevice } = this.volume
    if (writtenSectors !== 0 || discards !== 0) return `${dataDevice} was written to, before ${name} was activated`
    if (metadata === undefined || (metadata.writtenSectors === 0 && metadata.discards === 0)) return undefined
    return `${metadataDevice} was written to, before ${name} was activated`
  }
}

/** What is remembered of a volume's devices from one look to the next; `lowerSeen` of its record. */
export type LastLook =
  | { readonly state: 'never' }
  /** `instance`, `discards`: the guard's. */
  | {
      readonly state: 'active'
      readonly boot: string
      readonly instance: string
      readonly discards: number
      /** How many eras we may have begun since. */
      readonly ownEras?: number
      readonly head?: string
      readonly mergeable?: readonly string[]
      readonly metadataMergeable?: readonly string[]
      /** From the last look with nothing in flight; missing if there was none with these devices. */
      readonly beside?: Beside
    }
  | Inactive

/** Of the data device, unless said otherwise. */
export interface Inactive {
  readonly state: 'inactive'
  readonly boot: string
  readonly instance: string
  readonly writtenSectors: number
  readonly discards: number
  readonly head: string
  /** The snapshots that could be merged into it (mergeable.ts). */
  readonly mergeable?: readonly string[]
  /** Fingerprint of the metadata (lasting-traces.ts), and the snapshots that could be merged into its device. */
  readonly metadataState?: string
  readonly metadataMergeable?: readonly string[]
  readonly metadata?: BlockCounters & { readonly instance: string }
  /** The machine was being shut down: nothing was to write to either device any more in that boot. */
  readonly atShutdown?: boolean
  /** The first boot after that in which an agent ran. */
  readonly nextBoot?: string
}

/** Writes that reached a device by other ways than through the one above it, since both appeared. */
interface Beside {
  /**
   * Sectors of 512 bytes: how many more were written to the guard than to the era device, and to the data device than
   * to the guard.
   */
  readonly pastEra: number
  readonly pastGuard: number
  readonly dataDiscards: number
}

/** The observed state of an active volume. */
export interface ActiveLook extends Omit<Beside, 'dataDiscards'> {
  readonly boot: string
  /** The guard's, and the data device's. */
  readonly instance: string
  readonly dataInstance: string
  /** The guard's. */
  readonly discards: number
  /** Of the data device; its size in bytes. */
  readonly data: BlockCounters
  readonly dataBytes: number
  /** The snapshots that could be merged into the data device, and into the metadata device. */
  readonly mergeable: readonly string[]
  readonly metadataMergeable: readonly string[]
  /** Which device lets discards through, in words. */
  readonly openLimit: string | undefined
  /** No write is in flight between the devices. A write in flight is counted in one device and not yet in another. */
  readonly settled: boolean
}

/** Nothing can write: to a suspended device, or to one that nobody has open (closing it has flushed it). */
function isQuiet(era: DeviceInfo | undefined): boolean {
  return era !== undefined && (era.suspended || era.openCount === 0)
}

/** The counters of active devices at an earlier look. A device that was made since began at 0. */
function countersThen(
  { boot, instance, dataInstance }: Pick<ActiveLook, 'boot' | 'instance' | 'dataInstance'>,
  before: LastLook
): { discards: number; beside?: Beside | undefined } | 'other devices' {
  switch (before.state) {
    case 'never':
      return { discards: 0 }
    case 'active':
      return before.boot === boot && before.instance === instance ? before : 'other devices'
    case 'inactive':
      if (before.boot !== boot || before.instance !== dataInstance) return 'other devices'
      return {
        discards: 0,
        beside: { pastEra: 0, pastGuard: before.writtenSectors, dataDiscards: before.discards }
      }
  }
}

export function parseLastLook(text: string): LastLook {
  return text === '' ? { state: 'never' } : (JSON.parse(text) as LastLook)
}

/** The live superblock in a metadata device. */
export async function superblockOf(path: string, open?: OpenMedium): Promise<EraSuperblock> {
  const metadata = await openEraMetadata(path, { liveRoot: true, open })
  await metadata.close()
  return metadata.live
}

/** Size of the data device below an active volume, in bytes. */
export function dataBytes(
  { dataDevice }: ActiveDevices,
  { sizeOf }: Pick<TrackedMachine, 'sizeOf'> = thisMachine
): Promise<number> {
  return sizeOf(dataDevice)
}
