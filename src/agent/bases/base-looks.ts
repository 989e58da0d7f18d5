/**
 * Looks at every snapshot that a record may stand for, from its first answer to its end: whether it is still read-only,
 * what it was, and how far its pool has come. What happens wholly between two looks is not seen (docs/guarantees.md).
 *
 *     catalog: which ones ─▶ one LVM report ─▶ each pool's metadata ─▶ catalog: as it was, changed, or gone
 */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Logger } from 'pino'
import { deviceInstance } from '../../devicemapper/block-queue.ts'
import type { PoolMetadata, ThinDevice } from '../../devicemapper/thin/pool-metadata.ts'
import { DeltamapperError } from '../../errors.ts'
import { type BaseRecords, uptimeNow } from '../answers/base-records.ts'
import { DeviceMapperLook, LvmLook, type LvmPort } from '../answers/one-look.ts'
import { ownedPoolSource } from '../answers/owned-pool.ts'
import type { PoolClockLooks } from '../answers/pool-clock-looks.ts'
import { servedTarget } from '../answers/served-target.ts'
import { thinPoolUuid, volumeGroupSource } from '../answers/volume-group.ts'
import type { KnownBase } from '../catalog/bases.ts'
import type { Catalog } from '../catalog/catalog.ts'
import { isOwnPoolUuid, poolNameOf } from '../node/naming.ts'
import { type DeviceMapperPort, findPoolDevice, type PoolDevice } from '../node/pool-device.ts'
import { poolIdentity } from '../node/pool-identity.ts'
import type { Snapshot } from '../walks/snapshot.ts'

/** Every so many looks are at all. */
const LOOKS_AT_ALL = 60
/** Milliseconds; LONGEST_UNWATCHED_MS (catalog/bases.ts) allows for one that fails. */
const INTERVAL_MS = 10_000

export interface BaseLooksOptions {
  readonly catalog: Pick<Catalog, 'bases' | 'ownedPools'>
  readonly deviceMapper: DeviceMapperPort
  readonly lvm: LvmPort
  readonly records: BaseRecords
  /** Questions look at the same clocks, in one order. */
  readonly clocks: Pick<PoolClockLooks, 'lend'>
  readonly logger: Pick<Logger, 'warn'>
  /** Milliseconds; 10,000 by default. */
  readonly intervalMs?: number
}

/** A pool at one look. */
interface PoolAtLook {
  /** Undefined while it is not active. */
  readonly device: PoolDevice | undefined
  /** The snapshot with this identity; undefined if there is none. */
  readonly snapshot: (identity: string) => Promise<Snapshot | undefined>
}

export class BaseLooks {
  readonly #options: BaseLooksOptions
  readonly #stopping = new AbortController()
  #running: Promise<void> | undefined
  /** What the last look at a pool failed with: each failure is logged once. */
  readonly #failures = new Map<string, string>()

  constructor(options: BaseLooksOptions) {
    this.#options = options
  }

  /** Looks at once, and then again and again. */
  start(): void {
    this.#running = this.#repeat()
  }

  async close(): Promise<void> {
    this.#stopping.abort()
    await this.#running
  }

  /**
   * One look. Never rejects: a pool that cannot be looked at counts as not looked at.
   *
   * @param all also at the pools of snapshots that are gone, for `base list`; questions look for themselves
   */
  async look({ all = false } = {}): Promise<void> {
    const { catalog, deviceMapper, lvm } = this.#options
    let due: Map<string, KnownBase[]>
    try {
      const bases = all ? (await catalog.bases.list()).filter(isDue) : await catalog.bases.watched()
      due = Map.groupBy(bases, ({ pool }) => pool)
    } catch {
      // The catalog's own alarms say so.
      return
    }
    const look = { deviceMapper: new DeviceMapperLook(deviceMapper), lvm: new LvmLook(lvm) }
    for (const [pool, bases] of due) {
      try {
        await this.#lookAtPool(pool, bases, look)
        this.#failures.delete(pool)
      } catch (error) {
        this.#sayFailure(pool, error)
      }
    }
  }

  async #repeat(): Promise<void> {
    const { signal } = this.#stopping
    for (let i = 0; !signal.aborted; i++) {
      await this.look({ all: i % LOOKS_AT_ALL === 0 })
      await sleep(this.#options.intervalMs ?? INTERVAL_MS, undefined, { signal, ref: false }).catch(() => undefined)
    }
  }

  async #lookAtPool(
    pool: string,
    bases: readonly KnownBase[],
    look: { deviceMapper: DeviceMapperPort; lvm: LvmPort }
  ): Promise<void> {
    const { catalog, clocks, deviceMapper } = this.#options
    // Older than anything that is seen.
    const uptimeMs = uptimeNow()
    const found = await this.#findPool(pool, look)
    if (found === undefined) return
    const { device, snapshot } = found
    if (device === undefined) {
      await catalog.bases.spoilPool(pool, 'DM_BASE_RECORD_INTERRUPTED', 'its pool was found not to be active')
      return
    }
    const { metadataPath, metadataDevice } = device
    const place = { metadataPath, metadataDevice, poolIdentity: await poolIdentity(deviceMapper, device) }
    const instance = await deviceInstance(device)
    // A copy of the pool from before is noticed from now on, also where a base comes back with it.
    await clocks.lend(place, async (metadata) => {
      for (const base of bases) {
        if (base.instance !== instance) await catalog.bases.sawGone(base, { instance, uptimeMs })
        else if (base.goneAt === undefined) await this.#lookAtBase(base, instance, uptimeMs, metadata, snapshot)
      }
    })
  }

  async #lookAtBase(
    base: KnownBase,
    instance: string,
    uptimeMs: number,
    metadata: PoolMetadata,
    find: PoolAtLook['snapshot']
  ): Promise<void> {
    const { bases } = this.#options.catalog
    const snapshot = await find(base.identity).catch(async (error: unknown) => {
      if (!(error instanceof DeltamapperError) || error.code !== 'DM_NOT_TRACKED') throw error
      await bases.spoil(base.identity, error.message)
      return undefined
    })
    const device = await deviceOf(metadata, base)
    if (snapshot === undefined) {
      // LVM forgets a volume before the pool does: one that is still there may be written to.
      if (device === undefined) await bases.sawGone(base, { instance, uptimeMs: uptimeNow() })
      return
    }
    // It was removed since LVM was asked. The next look tells.
    if (device === undefined) return
    const seen = {
      snapshot,
      transactionId: device.details.transactionId,
      fingerprint: await metadata.fingerprint(device)
    }
    const look = await this.#options.records.look(seen)
    if (look) await bases.saw(servedTarget(seen), { ...look, uptimeMs })
    else await bases.spoil(base.identity, 'it is no longer a snapshot that a record can stand for')
  }

  /** Undefined if nothing is known of it: its group is not here. */
  async #findPool(
    pool: string,
    { deviceMapper, lvm }: { deviceMapper: DeviceMapperPort; lvm: LvmPort }
  ): Promise<PoolAtLook | undefined> {
    const { catalog } = this.#options
    if (isOwnPoolUuid(pool)) {
      const source = ownedPoolSource(poolNameOf(pool), catalog, deviceMapper)
      return {
        device: await findPoolDevice(deviceMapper, { uuid: pool }),
        snapshot: async (identity) => {
          const thin = await catalog.ownedPools.findThin(identity)
          return thin && source.snapshot(thin.name)
        }
      }
    }
    const volumes = await lvm.allLogicalVolumes()
    const volume = volumes.find(({ uuid, segmentTypes }) => uuid === pool && segmentTypes.includes('thin-pool'))
    if (!volume) return undefined
    return {
      device: await findPoolDevice(deviceMapper, { uuid: thinPoolUuid(volume) }),
      snapshot: async (identity) => {
        const base = volumes.find(({ uuid }) => uuid === identity)
        return base && volumeGroupSource(base.vgName, { lvm, deviceMapper }).snapshot(base.name)
      }
    }
  }

  #sayFailure(pool: string, error: unknown): void {
    const why = error instanceof Error ? error.message : String(error)
    if (this.#failures.get(pool) === why) return
    this.#failures.set(pool, why)
    this.#options.logger.warn(
      { pool, why },
      'snapshots that were served could not be looked at: if they go meanwhile, the next backup is a full one'
    )
  }
}

/** What a look may change: a snapshot that is still there, or a record that its pool's end would end. */
function isDue({ spoilt, goneAt, record }: KnownBase): boolean {
  return spoilt === undefined && (goneAt === undefined || record !== undefined)
}

/** The base's device, if it still is in the pool. */
async function deviceOf(metadata: PoolMetadata, base: KnownBase): Promise<ThinDevice | undefined> {
  const device = await metadata.device(base.thinId).catch((error: unknown) => {
    if (error instanceof DeltamapperError && error.code === 'DM_DEVICE_NOT_FOUND') return undefined
    throw error
  })
  const { creationTime, transactionId } = device?.details ?? {}
  return creationTime === base.creationTime && transactionId === base.transactionId ? device : undefined
}
