/**
 * Pools' metadata-snapshot slots, and the records of them: taken, given back, recovered. Whatever fails, slot and
 * record agree afterwards, or the record is left to be recovered. (Sharing a slot among users:
 * metadata-snapshot-lease.ts.)
 *
 * The caller must hold the slot's lock.
 */
import type { Logger } from 'pino'
import type { DeviceMapper, DeviceReference } from '../../../native/device-mapper.ts'
import { describeDevice } from '../../../native/device.ts'
import type { Clock } from '../../clock.ts'
import type { OpenMedium } from '../../devicemapper/metadata-medium.ts'
import { parsePoolStatus, type PoolStatus } from '../../devicemapper/thin/status.ts'
import type { ThinSuperblock } from '../../devicemapper/thin/superblock.ts'
import { asDeltamapperError, DeltamapperError } from '../../errors.ts'
import type { Catalog } from '../catalog/catalog.ts'
import { type LeaseRecord, leaseVerdict, poolFacts } from '../catalog/lease.ts'
import { findPoolDevice, type PoolDevice } from '../node/pool-device.ts'
import { type Keeper, KeeperLost, type Keepers } from './lease-keeper.ts'
import { keyedPool, poolKey, type PoolSlot, readSlot } from './pool-slot.ts'

export type LeaseCatalog = Pick<Catalog, 'path' | 'leases'>

export type LeaseDeviceMapper = Pick<DeviceMapper, 'info' | 'table' | 'status'>

/** A metadata snapshot in a keeper's hands. */
export interface TakenSlot {
  readonly pool: PoolDevice
  readonly keeper: Keeper
  /** Its block on the metadata device. */
  readonly heldRoot: number
  readonly facts: string
  /** The superblock copy that it is. */
  readonly held: ThinSuperblock
  /** Clock.monotonic() when it was requested; it serves everyone who has asked before. */
  readonly begunAt: number
  /** Milliseconds since 1970. */
  readonly takenAt: number
}

/** The outcome of recovering a record without a lease. */
export type Settlement = { readonly settled: true } | { readonly settled: false; readonly why: string }

export interface RecordedSlotsParts {
  readonly catalog: LeaseCatalog
  readonly deviceMapper: LeaseDeviceMapper
  readonly keepers: Keepers
  readonly clock: Clock
  /** What opens metadata. */
  readonly open: OpenMedium | undefined
  /** How long a message to the pool may take, in milliseconds. */
  readonly deadlineMs: number
  readonly logger: Logger
  /** Called when something is left to be recovered. */
  readonly onLeft: () => void
}

export class RecordedSlots {
  readonly #parts: RecordedSlotsParts
  readonly #catalog: LeaseCatalog
  readonly #deviceMapper: LeaseDeviceMapper
  readonly #keepers: Keepers
  readonly #clock: Clock
  readonly #logger: Logger
  /** The last message logged about a record, so that it is logged once. */
  readonly #said = new Map<string, string>()

  constructor(parts: RecordedSlotsParts) {
    this.#parts = parts
    this.#catalog = parts.catalog
    this.#deviceMapper = parts.deviceMapper
    this.#keepers = parts.keepers
    this.#clock = parts.clock
    this.#logger = parts.logger
  }

  /** The pool, and the key of its slot. @throws DM_POOL_INACTIVE; DM_NOT_TRACKED when the device is no thin pool */
  async find(reference: DeviceReference): Promise<{ pool: PoolDevice; key: string }> {
    const info = await this.#deviceMapper.info(reference)
    const pool = info && (await findPoolDevice(this.#deviceMapper, { major: info.major, minor: info.minor }))
    if (info !== undefined && pool !== undefined) return { pool, key: poolKey(info) }
    throw new DeltamapperError(
      'DM_POOL_INACTIVE',
      `there is no active thin pool ${describeDevice(reference)} here`,
      'activate it, or check its name'
    )
  }

  /** @throws what device-mapper throws */
  async status({ major, minor }: PoolDevice): Promise<PoolStatus> {
    const [row] = await this.#deviceMapper.status({ major, minor }, { deadlineMs: this.#parts.deadlineMs })
    return parsePoolStatus(row?.params ?? '')
  }

  /** What is in the slot. @throws what reading metadata throws */
  async content({ metadataPath, metadataDevice }: PoolDevice): Promise<PoolSlot> {
    return readSlot(metadataPath, metadataDevice, this.#parts.open)
  }

  /** Whether another process is dealing with the slot. */
  async atWork(key: string): Promise<boolean> {
    return this.#keepers.atWork(key, this.#catalog.path)
  }

  /**
   * Takes a free slot: on record, reserved, on record again.
   *
   * @throws DM_DEVICE_BUSY when another process takes it at the same time. Whenever it throws, the metadata snapshot is
   *   not held, or recovered later
   */
  async take(key: string, pool: PoolDevice, purpose: string): Promise<TakenSlot> {
    const begunAt = this.#clock.monotonic()
    const { live } = await this.content(pool)
    const takenAt = this.#clock.now()
    const keeper = await this.#startKeeper(key, takenAt, pool)
    try {
      await this.#catalog.leases.begin({ device: key, purpose, factsBefore: poolFacts(live) }, takenAt)
      const { heldRoot, facts, held } = await keeper.reserve().catch(async (error: unknown) => {
        // Reserved or not: the record decides.
        if (!(error instanceof KeeperLost)) await this.#catalog.leases.clear(key)
        throw error
      })
      await this.#catalog.leases.confirm(key, { heldRoot, factsHeld: facts })
      if (held === undefined) throw new Error('the superblock of a metadata snapshot is missing')
      return { pool, keeper, heldRoot, facts, held, begunAt, takenAt }
    } catch (error) {
      // It releases what it holds.
      await keeper.end()
      this.#parts.onLeft()
      throw error
    }
  }

  /** Gives a slot back. @returns whether the slot is no longer ours and the record is cleared; never rejects */
  async giveBack(
    key: string,
    pool: PoolDevice,
    keeper: Keeper,
    held: { heldRoot: number; facts: string; takenAt: number }
  ): Promise<Settlement> {
    let begun = false
    try {
      if (!keeper.alive) {
        // It has died, and left the metadata snapshot behind.
        keeper = await this.#startKeeper(key, held.takenAt, pool)
        await keeper.adopt(held.heldRoot, held.facts)
      }
      await this.#catalog.leases.beginRelease(key)
      begun = true
      const outcome = await keeper.release()
      await this.#clear(key)
      if (outcome === 'not-ours') {
        this.#logger.warn({ pool: pool.name }, 'another program has released our metadata snapshot')
      }
      return { settled: true }
    } catch (thrown) {
      const error = asDeltamapperError(thrown)
      const why = `it could not be released (${error.message})`
      this.#logger.warn(
        { pool: pool.name, code: error.code, what: error.message },
        'a metadata snapshot could not be released'
      )
      if (begun && !(error instanceof KeeperLost)) {
        await this.#catalog.leases.keep(key).catch((failed: unknown) => {
          this.#logger.error({ err: failed }, 'the record of a metadata snapshot is not as it should be')
        })
      }
      this.#parts.onLeft()
      return { settled: false, why }
    } finally {
      await keeper.end()
    }
  }

  /** Decides on a record without a lease, from what the pool shows now. Never rejects. */
  async settle(key: string, record: LeaseRecord): Promise<Settlement> {
    const log = (level: 'info' | 'warn', because: string, message: string) => {
      if (this.#said.get(key) === message + because) return
      this.#said.set(key, message + because)
      const { purpose, state, takenAt } = record
      this.#logger[level]({ pool: key, purpose, state, takenAt: date(takenAt), because }, message)
    }
    const keep = (because: string): Settlement => {
      log('warn', because, 'a metadata snapshot on record is left as it is')
      return { settled: false, why: because }
    }
    try {
      if (await this.#keepers.atWork(key, this.#catalog.path)) return keep('another process is still at work on it')
      const pool = await findPoolDevice(this.#deviceMapper, keyedPool(key))
      if (pool === undefined) return keep('the pool is not active')
      const status = await this.status(pool)
      if (status.state !== 'working') return keep('the pool has failed')
      const heldRoot = status.heldRoot ?? 0
      const facts = heldRoot === 0 ? undefined : (await this.content(pool)).facts
      const verdict = leaseVerdict(await this.#keepers.withNote(record, this.#catalog.path), { heldRoot, facts })
      if (verdict.whose === 'ours' && record.heldRoot !== undefined && record.factsHeld !== undefined) {
        if (status.mode !== 'read-write' && status.mode !== 'out-of-data-space') {
          return keep('it is ours, and the pool is read-only')
        }
        const held = { heldRoot: record.heldRoot, facts: record.factsHeld, takenAt: record.takenAt }
        const keeper = await this.#startKeeper(key, held.takenAt, pool)
        await keeper.adopt(held.heldRoot, held.facts)
        const settlement = await this.giveBack(key, pool, keeper, held)
        if (settlement.settled) log('info', verdict.because, 'released a metadata snapshot that was left behind')
        return settlement
      }
      if (verdict.record === 'clear') {
        await this.#clear(key)
        log('info', verdict.because, 'forgot a metadata snapshot that is not ours any more')
        return { settled: true }
      }
      return keep(`${verdict.because}; if nobody uses it: dmsetup message ${pool.name} 0 release_metadata_snap`)
    } catch (thrown) {
      return keep(asDeltamapperError(thrown).message)
    }
  }

  async #startKeeper(device: string, takenAt: number, pool: PoolDevice): Promise<Keeper> {
    const metadata = { path: pool.metadataPath, device: pool.metadataDevice }
    return this.#keepers.start({ device, takenAt }, metadata, this.#catalog.path, this.#parts.deadlineMs)
  }

  /** Forgets a lease, then the release note of its keeper. */
  async #clear(device: string): Promise<void> {
    await this.#catalog.leases.clear(device)
    await this.#keepers.removeNote(device, this.#catalog.path)
  }
}

function date(milliseconds: number): string {
  return new Date(milliseconds).toISOString()
}
