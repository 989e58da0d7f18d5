/**
 * The metadata-snapshot slot of an era device. It is held for as long as the writes between two snapshots are read.
 *
 * As with pools, the content is ours only if the catalog says so (catalog/lease.ts). A process of its own holds it, so
 * that it is released even if the agent dies (lease-keeper-process.ts). Foreign content stays. Unlike a pool's slot, it
 * has one user at a time: the one that holds the volume's lock.
 */
import type { Logger } from 'pino'
import type { DeviceInfo, DeviceMapper } from '../../../../native/device-mapper.ts'
import { openEraMetadata } from '../../../devicemapper/era/era-metadata.ts'
import type { EraTable } from '../../../devicemapper/era/table.ts'
import { asDeltamapperError, DeltamapperError } from '../../../errors.ts'
import type { Catalog } from '../../catalog/catalog.ts'
import { type LeaseRecord, leaseVerdict } from '../../catalog/lease.ts'
import type { EraVolume } from '../../catalog/era-volumes.ts'
import { thisMachine, type TrackedMachine } from '../device/machine.ts'
import { type Keeper, KeeperLost, type MetadataPlace, slotMessages } from '../../leases/lease-keeper.ts'
import { KeyedLock } from '../../node/keyed-lock.ts'
import { wantedBlocks } from '../../leases/pool-slot.ts'
import { eraFacts, isEraSlot, readEraSlot, slotKey } from '../../leases/era-slot-content.ts'
import { TrackedDevice } from '../device/tracked-device.ts'

/** The least free metadata for taking one. It is held for seconds, in which few blocks are written anew. */
const HEADROOM = { percent: 5, blocks: 256 }
/** How long to wait for another holder, and how often to look; milliseconds. */
const WAIT_MS = 10_000
const LOOK_MS = 200
/** How long a message may take, in milliseconds. */
const DEADLINE_MS = 30_000

export interface EraSlotParts {
  readonly catalog: Pick<Catalog, 'path' | 'leases' | 'eraVolumes'>
  readonly deviceMapper: DeviceMapper
  readonly logger: Logger
  readonly machine?: TrackedMachine
}

/** A metadata snapshot that is held. */
export interface HeldEraSnapshot {
  /** The metadata device to read it from. */
  readonly metadata: MetadataPlace
  readonly heldRoot: number
}

/** Runs `work` under a volume's lock. Rejects as `work` does, or when the lock is not to be had. */
export type InVolumesTurn = <T>(volume: string, work: () => Promise<T>) => Promise<T>

/** A message or status query would wait for the resume, and for ever if the resume puts another table in place. */
function refuseSuspended({ name, suspended }: DeviceInfo): void {
  if (!suspended) return
  throw new DeltamapperError(
    'DM_DEVICE_BUSY',
    `${name} is suspended`,
    `ask again; if nobody is at work on it, \`dmsetup resume ${name}\``
  )
}

/**
 * Waits until no process holds a volume's metadata snapshot. Call it before giving the device another table: a message
 * to the suspended device waits for the resume, and the resume would wait for the message. A keeper sends such a
 * message soon after its agent dies, perhaps after the next agent has begun.
 *
 * @throws DM_DEVICE_BUSY
 */
export async function onceNoKeeper(
  volume: EraVolume,
  catalogPath: string,
  { keepers, clock }: Pick<TrackedMachine, 'keepers' | 'clock'> = thisMachine
): Promise<void> {
  for (const until = clock.monotonic() + WAIT_MS; await keepers.atWork(slotKey(volume), catalogPath);) {
    if (clock.monotonic() > until) throw atWorkError(volume.name)
    await clock.sleep(LOOK_MS)
  }
}

export class EraSlots {
  readonly #parts: EraSlotParts
  readonly #machine: TrackedMachine
  /** One action at a time on a slot, including the recovery at start. */
  readonly #locks = new KeyedLock()

  constructor(parts: EraSlotParts) {
    this.#parts = parts
    this.#machine = parts.machine ?? thisMachine
  }

  /**
   * Holds a metadata snapshot of an active volume while `use` runs. The caller must hold the volume's lock.
   *
   * @throws DM_DEVICE_BUSY when another process has the slot; DM_LEASE_REFUSED; DM_ERA_INACTIVE; what device-mapper,
   *   the catalog, reading metadata and `use` throw
   */
  async hold<T>(volume: EraVolume, purpose: string, use: (held: HeldEraSnapshot) => Promise<T>): Promise<T> {
    return this.#locks.take(slotKey(volume), () => this.#hold(volume, purpose, use))
  }

  /**
   * Waits until no other process has the metadata snapshot of an active volume, so that the volume is not suspended in
   * vain. The caller must hold the volume's lock.
   *
   * @throws DM_DEVICE_BUSY, DM_LEASE_REFUSED, DM_ERA_INACTIVE; what device-mapper and reading metadata throw
   */
  async ready(volume: EraVolume): Promise<void> {
    const tracked = new TrackedDevice(this.#parts.deviceMapper, volume, this.#machine)
    const { table, era } = await tracked.active()
    refuseSuspended(era)
    const { path, device } = await metadataOf(tracked, table)
    const isTaken = async () =>
      (await readEraSlot(path, device, this.#machine.open)).heldRoot !== 0 &&
      // Our own is recovered when the slot is needed.
      (await this.#parts.catalog.leases.find(slotKey(volume))) === undefined
    for (
      const until = this.#machine.clock.monotonic() + WAIT_MS;
      await isTaken();
      await this.#machine.clock.sleep(LOOK_MS)
    ) {
      if (this.#machine.clock.monotonic() > until) throw takenError(era.name)
    }
    await this.#checkHeadroom(tracked)
  }

  /**
   * Recovers what an earlier agent left, as far as possible. Never rejects.
   *
   * @param inTurn runs its argument under the volume's lock: nothing may suspend a volume while a message is sent to it
   */
  async recover(inTurn: InVolumesTurn): Promise<void> {
    const { catalog, logger } = this.#parts
    try {
      const [records, { volumes }] = [await catalog.leases.list(), await catalog.eraVolumes.view()]
      for (const { device } of records.filter((each) => isEraSlot(each.device))) {
        const volume = volumes.find((each) => slotKey(each) === device)
        if (volume === undefined) {
          await this.#locks.take(device, () => this.#clear(device))
          continue
        }
        const why = await inTurn(volume.name, () =>
          this.#locks.take(device, () => this.#recover(volume, device))
        ).catch((error: unknown) => asDeltamapperError(error).line)
        if (why === undefined) continue
        logger.warn({ volume: volume.name, why }, 'a metadata snapshot on record is left as it is')
      }
    } catch (error) {
      logger.warn({ err: error }, 'metadata snapshots of tracked volumes could not be looked after')
    }
  }

  /** @returns why the lease record of an active volume cannot be recovered; undefined when there is none (any more) */
  async #recover(volume: EraVolume, key: string): Promise<string | undefined> {
    const record = await this.#parts.catalog.leases.find(key)
    if (record === undefined) return undefined
    const tracked = new TrackedDevice(this.#parts.deviceMapper, volume, this.#machine)
    if ((await tracked.info()) === undefined) return undefined
    const { table, era } = await tracked.active()
    refuseSuspended(era)
    return this.#settle(record, await metadataOf(tracked, table))
  }

  async #hold<T>(volume: EraVolume, purpose: string, use: (held: HeldEraSnapshot) => Promise<T>): Promise<T> {
    const { catalog, logger } = this.#parts
    const key = slotKey(volume)
    const tracked = new TrackedDevice(this.#parts.deviceMapper, volume, this.#machine)
    const { table, era } = await tracked.active()
    refuseSuspended(era)
    const metadata = await metadataOf(tracked, table)
    await this.#free(key, era.name, metadata)
    await this.#checkHeadroom(tracked)
    const before = await openEraMetadata(metadata.path, {
      liveRoot: true,
      device: metadata.device,
      open: this.#machine.open
    })
    await before.close()
    const takenAt = this.#machine.clock.now()
    const keeper = await this.#startKeeper(key, takenAt, metadata)
    try {
      await catalog.leases.begin({ device: key, purpose, factsBefore: eraFacts(before.live) }, takenAt)
      const { heldRoot, facts } = await keeper.reserve().catch(async (error: unknown) => {
        // Taken or not: if that is unknown, the record stays.
        if (!(error instanceof KeeperLost)) await catalog.leases.clear(key)
        throw error
      })
      await catalog.leases.confirm(key, { heldRoot, factsHeld: facts })
      try {
        return await use({ metadata, heldRoot })
      } finally {
        await this.#giveBack(key, keeper).catch((error: unknown) => {
          // The keeper drops it when it ends; anything left is recovered the next time.
          logger.warn(
            { volume: volume.name, what: asDeltamapperError(error).line },
            'a metadata snapshot is not given back yet'
          )
        })
      }
    } finally {
      await keeper.end()
    }
  }

  /** Waits until the slot is empty. @throws DM_DEVICE_BUSY */
  async #free(key: string, device: string, metadata: MetadataPlace): Promise<void> {
    for (const until = this.#machine.clock.monotonic() + WAIT_MS; ;) {
      const record = await this.#parts.catalog.leases.find(key)
      const why = record && (await this.#settle(record, metadata))
      const { heldRoot } = await readEraSlot(metadata.path, metadata.device, this.#machine.open)
      const atWork = await this.#machine.keepers.atWork(key, this.#parts.catalog.path)
      if (why === undefined && heldRoot === 0 && !atWork) return
      // (If none is held, there is nothing to drop.)
      if (this.#machine.clock.monotonic() > until)
        throw heldRoot === 0 && atWork ? atWorkError(device) : takenError(device, why)
      await this.#machine.clock.sleep(LOOK_MS)
    }
  }

  /** @returns why a record cannot be recovered; undefined when there is none any more */
  async #settle(record: LeaseRecord, metadata: MetadataPlace): Promise<string | undefined> {
    const { device } = record
    if (await this.#machine.keepers.atWork(device, this.#parts.catalog.path))
      return 'another process is still at work on it'
    const slot = await readEraSlot(metadata.path, metadata.device, this.#machine.open)
    const verdict = leaseVerdict(await this.#machine.keepers.withNote(record, this.#parts.catalog.path), slot)
    if (verdict.whose === 'ours' && record.heldRoot !== undefined && record.factsHeld !== undefined) {
      const keeper = await this.#startKeeper(device, record.takenAt, metadata)
      try {
        await keeper.adopt(record.heldRoot, record.factsHeld)
        await this.#giveBack(device, keeper)
      } finally {
        await keeper.end()
      }
      return undefined
    }
    if (verdict.record === 'keep') return verdict.because
    await this.#clear(device)
    return undefined
  }

  async #giveBack(key: string, keeper: Keeper): Promise<void> {
    const { catalog } = this.#parts
    await catalog.leases.beginRelease(key)
    try {
      await keeper.release()
    } catch (error) {
      if (!(error instanceof KeeperLost)) await catalog.leases.keep(key)
      throw error
    }
    await this.#clear(key)
  }

  async #checkHeadroom(tracked: TrackedDevice): Promise<void> {
    const status = await tracked.status()
    const refuse = (why: string, remedy: string): never => {
      throw new DeltamapperError(
        'DM_LEASE_REFUSED',
        `no metadata snapshot is taken of ${tracked.volume.name}: ${why}`,
        remedy
      )
    }
    if (status.state !== 'working') return refuse('the kernel could not tell its state', 'look into the kernel log')
    const free = status.totalMetadataBlocks - status.usedMetadataBlocks
    const wanted = wantedBlocks(status, HEADROOM)
    if (free >= wanted) return
    refuse(
      `${free} of its ${status.totalMetadataBlocks} metadata blocks are free, and ${wanted} should be`,
      'give it a larger metadata device'
    )
  }

  #startKeeper(key: string, takenAt: number, metadata: MetadataPlace): Promise<Keeper> {
    return this.#machine.keepers.start({ device: key, takenAt }, metadata, this.#parts.catalog.path, DEADLINE_MS)
  }

  /** Forgets a lease, then the release note of its keeper. */
  async #clear(key: string): Promise<void> {
    const { catalog } = this.#parts
    await catalog.leases.clear(key)
    await this.#machine.keepers.removeNote(key, catalog.path)
  }
}

/** The metadata device of the active volume. Its node may lead elsewhere by now; the number in its table does not. */
async function metadataOf(tracked: TrackedDevice, table: EraTable): Promise<MetadataPlace> {
  return { path: await tracked.metadataPath(table), device: table.metadataDevice }
}

function atWorkError(device: string): DeltamapperError {
  return new DeltamapperError(
    'DM_DEVICE_BUSY',
    `the metadata snapshot of ${device} is taken: another process holds it, or is about to`,
    'ask again when it has ended'
  )
}

function takenError(device: string, why = 'another program has it'): DeltamapperError {
  return new DeltamapperError(
    'DM_DEVICE_BUSY',
    `the metadata snapshot of ${device} is taken: ${why}`,
    `ask again when it is dropped; if nobody uses it: dmsetup message ${device} 0 ${slotMessages.era.release}`
  )
}
