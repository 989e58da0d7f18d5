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
import type { DeviceReference } from '../../../native/device-mapper.ts'
import { type Clock, systemClock } from '../../clock.ts'
import type { OpenMedium } from '../../devicemapper/metadata-medium.ts'
import type { ThinSuperblock } from '../../devicemapper/thin/superblock.ts'
import { DeltamapperError, shuttingDown } from '../../errors.ts'
import { KeyedLock } from '../node/keyed-lock.ts'
import type { PoolDevice } from '../node/pool-device.ts'
import { type Keepers, processKeepers } from './lease-keeper.ts'
import { LeaseRecovery } from './lease-recovery.ts'
import { checkHolds, type Headroom, type PoolSlot, wantedBlocks } from './pool-slot.ts'
import { type LeaseCatalog, type LeaseDeviceMapper, RecordedSlots, type TakenSlot } from './recorded-slots.ts'

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

/** Who has the metadata snapshot, so that there is no lease yet. */
interface Holder {
  readonly who: string
  readonly remedy: string
}

const SLOT_POLL_MS = 200

interface User {
  readonly purpose: string
  readonly controller: AbortController
}

interface Lease extends TakenSlot {
  readonly key: string
  readonly users: Set<User>
  readonly endsAt: number
  /** A caller waits for a newer one: no further users. */
  closed: boolean
  ended: boolean
  /** What take its timers back. */
  timers: (() => void)[]
}

export class MetadataSnapshotLeases {
  readonly #catalog: LeaseCatalog
  readonly #clock: Clock
  readonly #options: Required<LeaseOptions>
  readonly #logger: Logger
  readonly #slots: RecordedSlots
  readonly #recovery: LeaseRecovery
  /** By key. */
  readonly #leases = new Map<string, Lease>()
  /** Of all slots that were asked for. */
  readonly #keys = new Set<string>()
  /** Actions on a pool's slot run one after the other. */
  readonly #locks = new KeyedLock()
  readonly #closing = new AbortController()

  /** @param surroundings left out: those of this machine */
  constructor(
    catalog: LeaseCatalog,
    deviceMapper: LeaseDeviceMapper,
    options: LeaseOptions,
    logger: Logger,
    { keepers = processKeepers, clock = systemClock, open }: LeaseSurroundings = {}
  ) {
    this.#catalog = catalog
    this.#clock = clock
    this.#options = { watchMs: 1000, retryMs: 30_000, deadlineMs: 10_000, onEnd: () => undefined, ...options }
    this.#logger = logger
    const { deadlineMs, retryMs } = this.#options
    const onLeft = () => this.#recovery.tryAgainLater()
    this.#slots = new RecordedSlots({ catalog, deviceMapper, keepers, clock, open, deadlineMs, logger, onLeft })
    this.#recovery = new LeaseRecovery({
      ...{ catalog, slots: this.#slots, locks: this.#locks, clock, logger, retryMs },
      isHeld: (key) => this.#leases.has(key)
    })
  }

  /** What is held now. */
  get current(): HeldLease[] {
    return [...this.#leases.values()].map(({ key, users, takenAt, endsAt }) => ({
      device: key,
      purposes: [...users].map(({ purpose }) => purpose),
      takenAt,
      endsAt
    }))
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
      const { pool, key } = await this.#slots.find(reference)
      this.#keys.add(key)
      const outcome = await this.#locks.take(key, () => this.#attempt(key, pool, askedAt, options, stop))
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
    await this.#recovery.recover()
  }

  /** Ends every lease, and waits until the slots are free, or are left to the next start. */
  async close(): Promise<void> {
    this.#closing.abort(shuttingDown())
    await this.#recovery.close()
    const stopping = this.#closing.signal.reason as DeltamapperError
    // After the running action, which may just be taking one.
    await Promise.all(
      [...this.#keys].map((key) =>
        this.#locks.take(key, async () => {
          const lease = this.#leases.get(key)
          if (lease !== undefined) await this.#end(lease, stopping)
        })
      )
    )
  }

  /** One attempt: a use of the present metadata snapshot, or of a new one, or the holder in the way. */
  async #attempt(
    key: string,
    pool: PoolDevice,
    askedAt: number,
    { purpose, suffices = () => true }: AcquireOptions,
    stop: AbortSignal
  ): Promise<MetadataSnapshotLease | Holder> {
    stop.throwIfAborted()
    const lease = this.#leases.get(key)
    if (lease !== undefined) {
      const timeLeft = lease.endsAt - this.#clock.now()
      const serves = lease.begunAt >= askedAt || suffices(lease.held)
      if (serves && !lease.closed && timeLeft >= this.#options.holdMs / 2) return this.#join(lease, purpose, stop)
      // Otherwise users that are content with it could keep a caller waiting for ever that is not.
      lease.closed = true
      const users = [...lease.users].map((each) => each.purpose)
      return {
        who: `this agent holds one since ${date(lease.takenAt)}, for ${users.join(', ') || purpose}, that does not serve`,
        remedy: `it ends at ${date(lease.endsAt)} at the latest; ask again`
      }
    }

    const record = await this.#catalog.leases.find(key)
    const settlement = record && (await this.#slots.settle(key, record))
    const status = await this.#slots.status(pool)
    checkHolds(pool.name, status, this.#options.headroom)
    if (settlement?.settled === false) return this.#unsettled(pool, settlement.why)
    if (status.heldRoot !== undefined) return foreign(pool, await this.#slots.content(pool))
    if (await this.#slots.atWork(key)) return this.#unsettled(pool, 'another process is at work on it')
    try {
      return await this.#takeNew(key, pool, purpose, stop)
    } catch (error) {
      // Another process was quicker; the next look shows which.
      if (!(error instanceof DeltamapperError) || error.code !== 'DM_DEVICE_BUSY') throw error
      return { who: error.message, remedy: error.remedy }
    }
  }

  #unsettled(pool: PoolDevice, why: string): Holder {
    return { who: why, remedy: `ask again; \`deltamapper doctor\` shows what is in the slot of ${pool.name}` }
  }

  async #takeNew(key: string, pool: PoolDevice, purpose: string, stop: AbortSignal): Promise<MetadataSnapshotLease> {
    const taken = await this.#slots.take(key, pool, purpose)
    const endsAt = taken.takenAt + this.#options.holdMs
    const lease: Lease = { ...taken, key, users: new Set(), endsAt, closed: false, ended: false, timers: [] }
    this.#leases.set(key, lease)
    this.#watch(lease)
    this.#logger.debug({ pool: pool.name, block: lease.heldRoot, purpose }, 'holding the metadata snapshot')
    return this.#join(lease, purpose, stop)
  }

  #join(lease: Lease, purpose: string, stop: AbortSignal): MetadataSnapshotLease {
    const user: User = { purpose, controller: new AbortController() }
    lease.users.add(user)
    let released: Promise<void> | undefined
    const release = () => (released ??= this.#leave(lease, user, stop, onStop))
    const onStop = () => {
      user.controller.abort(stop.reason)
      void release()
    }
    stop.addEventListener('abort', onStop)
    if (stop.aborted) onStop()
    const { pool, heldRoot, held } = lease
    return { pool, heldRoot, held, signal: user.controller.signal, release, [Symbol.asyncDispose]: release }
  }

  async #leave(lease: Lease, user: User, stop: AbortSignal, onStop: () => void): Promise<void> {
    stop.removeEventListener('abort', onStop)
    lease.users.delete(user)
    if (lease.users.size > 0) return
    await this.#locks.take(lease.key, async () => {
      // Meanwhile another user may have joined, or the lease may have ended.
      if (lease.users.size === 0) await this.#end(lease)
    })
  }

  /** Ends a lease, and tells its remaining users why. */
  async #end(lease: Lease, why?: DeltamapperError): Promise<void> {
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
    this.#leases.delete(lease.key)
    await this.#slots.giveBack(lease.key, lease.pool, lease.keeper, lease)
  }

  /** Ends a lease when its time is up, when metadata gets scarce, or when the slot is another's. */
  #watch(lease: Lease): void {
    const { pool } = lease
    const end = (what: string, remedy: string) => {
      const why = new DeltamapperError(
        'DM_LEASE_LOST',
        `the metadata snapshot of ${pool.name} was given back: ${what}`,
        remedy
      )
      void this.#locks.take(lease.key, () => this.#end(lease, why))
    }
    const { holdMs, watchMs, headroom } = this.#options
    const look = async () => {
      const status = await this.#slots.status(pool).catch(() => undefined)
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
