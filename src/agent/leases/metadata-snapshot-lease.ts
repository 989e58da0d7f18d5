/**
 * The lease of a pool's metadata snapshot, for uses that cannot do without one: external tools, a volume that is being
 * written. (Walks of snapshots take none: see pool-metadata.ts.)
 *
 * A pool has one slot, and filling it costs the pool (pool-slot.ts). So there is one lease for each pool, which its
 * users share:
 *
 *     acquire ─▶ does the agent's own lease suffice? ── yes ─▶ one more user ────────────────▶ the last user's release
 *                  │ no                                                                        releases it
 *                  ├─ another holder ─▶ wait, up to `waitMs` ─▶ DM_DEVICE_BUSY                     ▲
 *                  └─ free ─▶ may the pool hold one? ─▶ record ─▶ reserve ─▶ record ─▶ first user ─┘
 *
 * A lease also ends when its time is up, when free metadata gets scarce, or when another process has released the
 * metadata snapshot. Then its users' signals abort with DM_LEASE_LOST, and the slot is released without waiting for
 * them.
 *
 * The content of the slot is ours as long as the keeper lives (lease-keeper-process.ts), and after that if the record
 * proves it (catalog/lease.ts). Everything else is foreign and stays.
 */
import type { Logger } from 'pino'
import type { DeviceMapper, DeviceReference } from '../../../native/device-mapper.ts'
import { describeDevice } from '../../../native/device.ts'
import { parsePoolStatus, type PoolStatus } from '../../devicemapper/thin/status.ts'
import { type Clock, systemClock } from '../../clock.ts'
import type { OpenMedium } from '../../devicemapper/metadata-medium.ts'
import type { ThinSuperblock } from '../../devicemapper/thin/superblock.ts'
import { asDeltamapperError, DeltamapperError, shuttingDown } from '../../errors.ts'
import type { Catalog } from '../catalog/catalog.ts'
import { type LeaseRecord, leaseVerdict, poolFacts } from '../catalog/lease.ts'
import { isEraSlot } from './era-slot-content.ts'
import { type Keeper, KeeperLost, type Keepers, processKeepers } from './lease-keeper.ts'
import { findPoolDevice, type PoolDevice } from '../node/pool-device.ts'
import { checkHolds, type Headroom, keyedPool, poolKey, type PoolSlot, readSlot, wantedBlocks } from './pool-slot.ts'

export interface LeaseOptions {
  /** The least free metadata for taking one; a held one ends at half of it. */
  readonly headroom: Headroom
  /** How long a lease may be held, in milliseconds. Nobody joins one in the second half of its time. */
  readonly holdMs: number
  /** How long to wait for another holder of the slot, in milliseconds, unless a caller says so. */
  readonly waitMs: number
  /** How often a held lease is checked, in milliseconds. */
  readonly watchMs?: number
  /** How often a failed recovery is tried again, in milliseconds. */
  readonly retryMs?: number
  /** How long a message to the pool may take, in milliseconds. */
  readonly deadlineMs?: number
  /** Called for each lease that has ended: how long it was held, in milliseconds, and whether it still had users. */
  readonly onEnd?: (heldMs: number, lost: boolean) => void
}

/** Processes, time and files, as leases see them. */
export interface LeaseSurroundings {
  readonly keepers?: Keepers
  readonly clock?: Clock
  /** What opens metadata. */
  readonly open?: OpenMedium
}

/** `lease` of a configuration file. */
export interface LeaseConfig {
  readonly freePercent: number
  readonly freeBlocks: number
  readonly holdSeconds: number
  readonly waitSeconds: number
}

/** The options that a configuration file sets. */
export function leaseOptions({ freePercent, freeBlocks, holdSeconds, waitSeconds }: LeaseConfig): LeaseOptions {
  return {
    headroom: { percent: freePercent, blocks: freeBlocks },
    holdMs: holdSeconds * 1000,
    waitMs: waitSeconds * 1000
  }
}

export interface AcquireOptions {
  /** What for, in words for people: others that must wait see it. */
  readonly purpose: string
  /** Ends the waiting, and the use of the lease. */
  readonly signal?: AbortSignal
  readonly waitMs?: number
  /**
   * Whether a metadata snapshot that was reserved before this call is good enough, for instance because it is younger
   * than the snapshots to compare. Any is by default. One that was reserved after this call always is.
   */
  readonly suffices?: (held: ThinSuperblock) => boolean
}

/** A use of a pool's metadata snapshot. Release it however the use ends: `await using`. */
export interface MetadataSnapshotLease extends AsyncDisposable {
  readonly pool: PoolDevice
  /** Block of the metadata snapshot on the pool's metadata device. */
  readonly heldRoot: number
  /** The superblock copy that it is. */
  readonly held: ThinSuperblock
  /**
   * Aborted with DM_LEASE_LOST when the metadata snapshot is released early, or with the reason of the caller's own
   * signal.
   */
  readonly signal: AbortSignal
  /**
   * Ends this use, once; resolves when the slot is free if it was the last. Never rejects: a failed release is tried
   * again later.
   */
  release(): Promise<void>
}

/** What this process holds, for the inventory. */
export interface HeldLease {
  /** See `poolKey`. */
  readonly device: string
  readonly purposes: readonly string[]
  /** Milliseconds since 1970. */
  readonly takenAt: number
  readonly endsAt: number
}

export type LeaseCatalog = Pick<Catalog, 'path' | 'leases'>

export type LeaseDeviceMapper = Pick<DeviceMapper, 'info' | 'table' | 'status'>

/** Who has the metadata snapshot, so that there is no lease yet. */
interface Holder {
  readonly who: string
  readonly remedy: string
}

/** The outcome of recovering a record without a lease. */
type Settlement = { readonly settled: true } | { readonly settled: false; readonly why: string }

const SLOT_POLL_MS = 200

/** One pool's slot: actions on it run one after the other. */
class Slot {
  readonly key: string
  lease: Lease | undefined
  #last: Promise<unknown> = Promise.resolve()

  constructor(key: string) {
    this.key = key
  }

  exclusively<T>(action: () => Promise<T>): Promise<T> {
    const result = this.#last.then(action)
    this.#last = result.catch(() => undefined)
    return result
  }
}

interface User {
  readonly purpose: string
  readonly controller: AbortController
}

interface Lease {
  readonly pool: PoolDevice
  readonly keeper: Keeper
  readonly heldRoot: number
  readonly facts: string
  readonly held: ThinSuperblock
  readonly users: Set<User>
  /** Clock.monotonic() when it was requested; it serves everyone who has asked before. */
  readonly begunAt: number
  readonly takenAt: number
  readonly endsAt: number
  /** A caller waits for a newer one: no further users. */
  closed: boolean
  ended: boolean
  /** What take its timers back. */
  timers: (() => void)[]
}

export class MetadataSnapshotLeases {
  readonly #catalog: LeaseCatalog
  readonly #deviceMapper: LeaseDeviceMapper
  readonly #keepers: Keepers
  readonly #clock: Clock
  readonly #open: OpenMedium | undefined
  readonly #options: Required<LeaseOptions>
  readonly #logger: Logger
  readonly #slots = new Map<string, Slot>()
  readonly #closing = new AbortController()
  /** The last message logged about a record, so that it is logged once. */
  readonly #said = new Map<string, string>()
  #retry: (() => void) | undefined
  #settling: Promise<void> | undefined

  /** @param surroundings left out: those of this machine */
  constructor(
    catalog: LeaseCatalog,
    deviceMapper: LeaseDeviceMapper,
    options: LeaseOptions,
    logger: Logger,
    { keepers = processKeepers, clock = systemClock, open }: LeaseSurroundings = {}
  ) {
    this.#catalog = catalog
    this.#keepers = keepers
    this.#clock = clock
    this.#open = open
    this.#deviceMapper = deviceMapper
    this.#options = { watchMs: 1000, retryMs: 30_000, deadlineMs: 10_000, onEnd: () => undefined, ...options }
    this.#logger = logger
  }

  /** What is held now. */
  get current(): HeldLease[] {
    return [...this.#slots.values()].flatMap(({ key, lease }) =>
      lease === undefined
        ? []
        : {
            device: key,
            purposes: [...lease.users].map(({ purpose }) => purpose),
            takenAt: lease.takenAt,
            endsAt: lease.endsAt
          }
    )
  }

  /**
   * A use of the pool's metadata snapshot, shared with others if that suffices.
   *
   * @throws DM_DEVICE_BUSY when another process still holds it after `waitMs`; DM_LEASE_REFUSED; DM_POOL_INACTIVE;
   *   DM_NOT_TRACKED when the device is no thin pool; DM_SHUTTING_DOWN; the signal's reason; what device-mapper, the
   *   catalog and reading metadata throw
   */
  async acquire(reference: DeviceReference, options: AcquireOptions): Promise<MetadataSnapshotLease> {
    const { signal, waitMs = this.#options.waitMs } = options
    const stop = signal === undefined ? this.#closing.signal : AbortSignal.any([signal, this.#closing.signal])
    const askedAt = this.#clock.monotonic()
    for (;;) {
      stop.throwIfAborted()
      const { pool, key } = await this.#find(reference)
      const slot = this.#slot(key)
      const outcome = await slot.exclusively(() => this.#attempt(slot, pool, askedAt, options, stop))
      if (!('who' in outcome)) {
        if (stop.aborted) await outcome.release()
        stop.throwIfAborted()
        return outcome
      }
      const left = askedAt + waitMs - this.#clock.monotonic()
      if (left <= 0) {
        throw new DeltamapperError(
          'DM_DEVICE_BUSY',
          `the metadata snapshot of ${pool.name} is taken: ${outcome.who}`,
          outcome.remedy
        )
      }
      await this.#clock.sleep(Math.min(SLOT_POLL_MS, left), stop)
    }
  }

  /**
   * Recovers every record that has no lease: releases what is proven to be ours, forgets what is over, and keeps the
   * rest, which it tries again from time to time. For the agent's start; never rejects.
   */
  async recover(): Promise<void> {
    this.#settling ??= this.#settleAll().finally(() => (this.#settling = undefined))
    await this.#settling
  }

  /** Ends every lease, and waits until the slots are free, or are left to the next start. */
  async close(): Promise<void> {
    this.#closing.abort(shuttingDown())
    this.#retry?.()
    await this.#settling
    const stopping = this.#closing.signal.reason as DeltamapperError
    // After the running action.
    await Promise.all(
      [...this.#slots.values()].map((slot) =>
        slot.exclusively(async () => {
          if (slot.lease !== undefined) await this.#end(slot, slot.lease, stopping)
        })
      )
    )
  }

  #slot(key: string): Slot {
    const known = this.#slots.get(key)
    if (known !== undefined) return known
    const slot = new Slot(key)
    this.#slots.set(key, slot)
    return slot
  }

  async #find(reference: DeviceReference): Promise<{ pool: PoolDevice; key: string }> {
    const info = await this.#deviceMapper.info(reference)
    const pool = info && (await findPoolDevice(this.#deviceMapper, { major: info.major, minor: info.minor }))
    if (info !== undefined && pool !== undefined) return { pool, key: poolKey(info) }
    throw new DeltamapperError(
      'DM_POOL_INACTIVE',
      `there is no active thin pool ${describeDevice(reference)} here`,
      'activate it, or check its name'
    )
  }

  async #status({ major, minor }: PoolDevice): Promise<PoolStatus> {
    const [row] = await this.#deviceMapper.status({ major, minor }, { deadlineMs: this.#options.deadlineMs })
    return parsePoolStatus(row?.params ?? '')
  }

  async #readSlot({ metadataPath, metadataDevice }: PoolDevice): Promise<PoolSlot> {
    return readSlot(metadataPath, metadataDevice, this.#open)
  }

  /** One attempt: a use of the present metadata snapshot, or of a new one, or the holder in the way. */
  async #attempt(
    slot: Slot,
    pool: PoolDevice,
    askedAt: number,
    { purpose, suffices = () => true }: AcquireOptions,
    stop: AbortSignal
  ): Promise<MetadataSnapshotLease | Holder> {
    stop.throwIfAborted()
    const { lease } = slot
    if (lease !== undefined) {
      const timeLeft = lease.endsAt - this.#clock.now()
      const serves = lease.begunAt >= askedAt || suffices(lease.held)
      if (serves && !lease.closed && timeLeft >= this.#options.holdMs / 2) return this.#join(slot, lease, purpose, stop)
      // Otherwise users that are content with it could keep a caller waiting for ever that is not.
      lease.closed = true
      const users = [...lease.users].map((each) => each.purpose)
      return {
        who: `this agent holds one since ${date(lease.takenAt)}, for ${users.join(', ') || purpose}, that does not serve`,
        remedy: `it ends at ${date(lease.endsAt)} at the latest; ask again`
      }
    }

    const record = await this.#catalog.leases.find(slot.key)
    const settlement = record && (await this.#settle(slot, record))
    const status = await this.#status(pool)
    checkHolds(pool.name, status, this.#options.headroom)
    if (settlement?.settled === false) return this.#unsettled(pool, settlement.why)
    if (status.heldRoot !== undefined) return foreign(pool, await this.#readSlot(pool))
    if (await this.#keepers.atWork(slot.key, this.#catalog.path))
      return this.#unsettled(pool, 'another process is at work on it')
    try {
      return await this.#take(slot, pool, purpose, stop)
    } catch (error) {
      // Another process was quicker; the next look shows which.
      if (!(error instanceof DeltamapperError) || error.code !== 'DM_DEVICE_BUSY') throw error
      return { who: error.message, remedy: error.remedy }
    }
  }

  #unsettled(pool: PoolDevice, why: string): Holder {
    return { who: why, remedy: `ask again; \`deltamapper doctor\` shows what is in the slot of ${pool.name}` }
  }

  /**
   * @throws DM_DEVICE_BUSY when another process takes it at the same time. Whenever it throws, the metadata snapshot is
   *   not held, or recovered later
   */
  async #take(slot: Slot, pool: PoolDevice, purpose: string, stop: AbortSignal): Promise<MetadataSnapshotLease> {
    const begunAt = this.#clock.monotonic()
    const { live } = await this.#readSlot(pool)
    const takenAt = this.#clock.now()
    const keeper = await this.#startKeeper(slot.key, takenAt, pool)
    let lease: Lease
    try {
      await this.#catalog.leases.begin({ device: slot.key, purpose, factsBefore: poolFacts(live) }, takenAt)
      const { heldRoot, facts, held } = await keeper.reserve().catch(async (error: unknown) => {
        // Reserved or not: the record decides.
        if (!(error instanceof KeeperLost)) await this.#catalog.leases.clear(slot.key)
        throw error
      })
      await this.#catalog.leases.confirm(slot.key, { heldRoot, factsHeld: facts })
      if (held === undefined) throw new Error('the superblock of a metadata snapshot is missing')
      const users = new Set<User>()
      const endsAt = takenAt + this.#options.holdMs
      lease = {
        ...{ pool, keeper, heldRoot, facts, held, users, begunAt, takenAt, endsAt },
        ...{ closed: false, ended: false, timers: [] }
      }
    } catch (error) {
      // It releases what it holds.
      await keeper.end()
      this.#tryAgainLater()
      throw error
    }
    slot.lease = lease
    this.#watch(slot, lease)
    this.#logger.debug({ pool: pool.name, block: lease.heldRoot, purpose }, 'holding the metadata snapshot')
    return this.#join(slot, lease, purpose, stop)
  }

  #join(slot: Slot, lease: Lease, purpose: string, stop: AbortSignal): MetadataSnapshotLease {
    const user: User = { purpose, controller: new AbortController() }
    lease.users.add(user)
    let released: Promise<void> | undefined
    const release = () => (released ??= this.#leave(slot, lease, user, stop, onStop))
    const onStop = () => {
      user.controller.abort(stop.reason)
      void release()
    }
    stop.addEventListener('abort', onStop)
    if (stop.aborted) onStop()
    const { pool, heldRoot, held } = lease
    return { pool, heldRoot, held, signal: user.controller.signal, release, [Symbol.asyncDispose]: release }
  }

  async #leave(slot: Slot, lease: Lease, user: User, stop: AbortSignal, onStop: () => void): Promise<void> {
    stop.removeEventListener('abort', onStop)
    lease.users.delete(user)
    if (lease.users.size > 0) return
    await slot.exclusively(async () => {
      // Meanwhile another user may have joined, or the lease may have ended.
      if (lease.users.size === 0) await this.#end(slot, lease)
    })
  }

  /** Ends a lease, and tells its remaining users why. */
  async #end(slot: Slot, lease: Lease, why?: DeltamapperError): Promise<void> {
    if (lease.ended) return
    lease.ended = true
    for (const cancel of lease.timers) cancel()
    this.#options.onEnd(this.#clock.now() - lease.takenAt, lease.users.size > 0)
    for (const { controller } of lease.users) controller.abort(why)
    if (why !== undefined) {
      const { pool, takenAt } = lease
      this.#logger.warn(
        {
          pool: pool.name,
          why: why.message,
          takenAt: date(takenAt),
          users: [...lease.users].map((each) => each.purpose)
        },
        'a metadata snapshot is given back before its users are done'
      )
    }
    slot.lease = undefined
    await this.#giveBack(slot.key, lease.pool, lease.keeper, lease)
  }

  /** @returns whether the slot is no longer ours and the record is cleared; never rejects */
  async #giveBack(
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
      this.#tryAgainLater()
      return { settled: false, why }
    } finally {
      await keeper.end()
    }
  }

  async #startKeeper(device: string, takenAt: number, pool: PoolDevice): Promise<Keeper> {
    const metadata = { path: pool.metadataPath, device: pool.metadataDevice }
    return this.#keepers.start({ device, takenAt }, metadata, this.#catalog.path, this.#options.deadlineMs)
  }

  /** Forgets a lease, then the release note of its keeper. */
  async #clear(device: string): Promise<void> {
    await this.#catalog.leases.clear(device)
    await this.#keepers.removeNote(device, this.#catalog.path)
  }

  /** Ends a lease when its time is up, when metadata gets scarce, or when the slot is another's. */
  #watch(slot: Slot, lease: Lease): void {
    const { pool } = lease
    const end = (what: string, remedy: string) => {
      const why = new DeltamapperError(
        'DM_LEASE_LOST',
        `the metadata snapshot of ${pool.name} was given back: ${what}`,
        remedy
      )
      void slot.exclusively(() => this.#end(slot, lease, why))
    }
    const { holdMs, watchMs, headroom } = this.#options
    const look = async () => {
      const status = await this.#status(pool).catch(() => undefined)
      if (lease.ended) return
      if (status?.state === 'failed') return end('the pool has failed', 'look into the kernel log')
      if (status?.state === 'working') {
        if (status.heldRoot !== lease.heldRoot)
          return end('another program has released it', 'find out who, and ask again')
        const free = status.totalMetadataBlocks - status.usedMetadataBlocks
        if (free < wantedBlocks(status, headroom) / 2) {
          return end(
            `only ${free} of ${status.totalMetadataBlocks} metadata blocks are free`,
            'extend the metadata (LVM: lvextend --poolmetadatasize), and ask again'
          )
        }
      }
      lease.timers[1] = this.#clock.after(watchMs, () => void look())
    }
    lease.timers = [
      this.#clock.after(holdMs, () => {
        end(
          `it was held for ${holdMs / 1000} s`,
          'ask again; `lease.holdSeconds` in the configuration allows more time'
        )
      }),
      this.#clock.after(watchMs, () => void look())
    ]
  }

  async #settleAll(): Promise<void> {
    try {
      for (const { device } of await this.#catalog.leases.list()) {
        // Leases of tracked volumes are recovered elsewhere (era/history/era-slot.ts).
        if (isEraSlot(device)) continue
        if (this.#closing.signal.aborted) return
        const slot = this.#slot(device)
        await slot.exclusively(async () => {
          const record = await this.#catalog.leases.find(device)
          if (record === undefined || slot.lease !== undefined) return
          const settlement = await this.#settle(slot, record)
          if (!settlement.settled) this.#tryAgainLater()
        })
      }
    } catch (error) {
      this.#logger.error({ err: error }, 'leases of metadata snapshots could not be looked after')
      this.#tryAgainLater()
    }
  }

  #tryAgainLater(): void {
    if (this.#closing.signal.aborted) return
    this.#retry?.()
    this.#retry = this.#clock.after(this.#options.retryMs, () => void this.recover(), true)
  }

  /** Decides on a record without a lease, from what the pool shows now. Never rejects. */
  async #settle({ key }: Slot, record: LeaseRecord): Promise<Settlement> {
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
      const status = await this.#status(pool)
      if (status.state !== 'working') return keep('the pool has failed')
      const heldRoot = status.heldRoot ?? 0
      const facts = heldRoot === 0 ? undefined : (await this.#readSlot(pool)).facts
      const verdict = leaseVerdict(await this.#keepers.withNote(record, this.#catalog.path), { heldRoot, facts })
      if (verdict.whose === 'ours' && record.heldRoot !== undefined && record.factsHeld !== undefined) {
        if (status.mode !== 'read-write' && status.mode !== 'out-of-data-space') {
          return keep('it is ours, and the pool is read-only')
        }
        const held = { heldRoot: record.heldRoot, facts: record.factsHeld, takenAt: record.takenAt }
        const keeper = await this.#startKeeper(key, held.takenAt, pool)
        await keeper.adopt(held.heldRoot, held.facts)
        const settlement = await this.#giveBack(key, pool, keeper, held)
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
}

function foreign({ name }: PoolDevice, { live, held, heldRoot }: PoolSlot): Holder {
  const age =
    held === undefined
      ? ''
      : `, ${live.time - held.time} snapshots and ${live.transactionId - held.transactionId} transactions ago`
  return {
    who: `another program has reserved it (block ${heldRoot}${age})`,
    remedy: `wait for the tool that did (thin_delta, thin_dump, a backup); if none runs any more: dmsetup message ${name} 0 release_metadata_snap`
  }
}

function date(milliseconds: number): string {
  return new Date(milliseconds).toISOString()
}
