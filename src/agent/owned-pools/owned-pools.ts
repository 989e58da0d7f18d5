/**
 * Owned pools: thin pools on plain device-mapper that the agent makes and manages.
 *
 *     a request ─▶ the pool's lock ─▶ checks ─▶ intent on disk ─▶ kernel ─▶ recovered (pool-intents.ts) ─▶ described (description.ts)
 *
 * The agent activates nothing at its start: a person does, or a unit that runs `deltamapper pool activate`.
 */
import type { Logger } from 'pino'
import type { DeviceMapper } from '../../../native/device-mapper.ts'
import { activatePool, checkNewPool, createPool } from '../../devicemapper/thin/pool.ts'
import { type PoolMachine, thisMachine } from '../../devicemapper/thin/pool-machine.ts'
import { asDeltamapperError, DeltamapperError } from '../../errors.ts'
import type { Catalog } from '../catalog/catalog.ts'
import { nameTaken } from '../catalog/name-taken.ts'
import type { OwnedPool, OwnedThin } from '../catalog/owned-pools.ts'
import { type Finding, reconcile } from '../catalog/reconcile.ts'
import type { SnapshotSource } from '../walks/snapshot.ts'
import { ActivePool, planOf } from './active-pool.ts'
import { PoolIntents } from './pool-intents.ts'
import {
  type DescribedFinding,
  type DescribedPool,
  type DescribedThin,
  describeFinding,
  describePool,
  describeThins
} from './description.ts'
import { FullnessLog } from './fullness.ts'
import { otherPools } from './kernel-view.ts'
import { surveyDevices } from '../node/survey.ts'
import { checkPoolName } from '../node/naming.ts'
import { checkCount } from '../node/request-checks.ts'
import { ownedPoolSource } from '../answers/owned-pool.ts'
import { type Placed, Thins } from './thins.ts'
import { KeyedLock } from '../node/keyed-lock.ts'
import { SECTOR_BYTES } from '../../units.ts'

/** The default low-water mark, as a part of the pool. */
const LOW_WATER_PART = 20
/** How often the pools' fullness is checked, in milliseconds. */
const WATCH_INTERVAL_MS = 10_000
/**
 * How long a start waits for the recovery, in milliseconds. A pool that hangs is recovered later; until then its lock
 * is held.
 */
const SETTLE_AT_START_MS = 5000

export interface OwnedPoolsOptions {
  readonly catalog: Catalog
  readonly deviceMapper: DeviceMapper
  readonly logger: Logger
  /** This one where left out. */
  readonly machine?: PoolMachine
  /** What else answers to this source name, in words; undefined if nothing does. */
  readonly takenBy?: (name: string) => Promise<string | undefined>
  /** Milliseconds; 10,000 by default. */
  readonly watchIntervalMs?: number
}

/** What is asked for of a new pool. The devices are absolute paths. */
export interface PoolRequest {
  readonly name: string
  readonly metadataDevice: string
  readonly dataDevice: string
  readonly blockBytes: number
  /** A twentieth of the pool, unless given. */
  readonly lowWaterBytes?: number
  /** `queue`: a write that finds no free block waits. It fails otherwise. */
  readonly whenFull: string
}

/** Requests name a volume or snapshot by its pool and its own name. */
interface ThinName {
  readonly pool: string
  readonly name: string
}

export class OwnedPools {
  readonly #catalog: Catalog
  readonly #deviceMapper: DeviceMapper
  readonly #logger: Logger
  readonly #machine: PoolMachine
  readonly #takenBy: NonNullable<OwnedPoolsOptions['takenBy']>
  readonly #watchIntervalMs: number
  readonly #locks = new KeyedLock()
  readonly #intents: PoolIntents
  readonly #thins: Thins
  readonly #fullness: FullnessLog
  readonly #stopping = new AbortController()
  /** The names in the catalog, which nothing else writes to. */
  #names = new Set<string>()
  #watching: Promise<void> | undefined

  constructor(options: OwnedPoolsOptions) {
    const { catalog, deviceMapper, logger, machine = thisMachine } = options
    const { takenBy, watchIntervalMs = WATCH_INTERVAL_MS } = options
    this.#catalog = catalog
    this.#deviceMapper = deviceMapper
    this.#logger = logger
    this.#machine = machine
    this.#takenBy = takenBy ?? (() => Promise.resolve(undefined))
    this.#watchIntervalMs = watchIntervalMs
    this.#intents = new PoolIntents(catalog, deviceMapper, logger, machine)
    this.#thins = new Thins(this.#intents, catalog, deviceMapper, machine)
    this.#fullness = new FullnessLog(logger)
  }

  /**
   * Recovers what the last agent left, logs differences, and begins to watch. A pool that cannot be recovered, or that
   * hangs, does not keep the agent from starting: the log names it, and the next change tries again.
   *
   * @throws what the catalog throws
   */
  async start(): Promise<void> {
    this.#names = await this.#namesInCatalog()
    const settling = Promise.all([...this.#names].map((name) => this.#settleAtStart(name)))
    await Promise.race([settling, this.#machine.clock.sleep(SETTLE_AT_START_MS, true)])
    this.#watching = this.#watch()
  }

  /** Stops watching, and waits for running changes. */
  async close(): Promise<void> {
    this.#stopping.abort()
    await this.#watching
    await this.#locks.close()
  }

  /** Answers for the volumes and snapshots of an owned pool; undefined when there is no pool of this name. */
  source(name: string): SnapshotSource | undefined {
    return this.#names.has(name) ? ownedPoolSource(name, this.#catalog, this.#deviceMapper) : undefined
  }

  // Pools

  async createPool(request: PoolRequest): Promise<DescribedPool> {
    const { name, metadataDevice, dataDevice, blockBytes, whenFull, lowWaterBytes } = request
    checkPoolName(name)
    checkCount('block_bytes', blockBytes, SECTOR_BYTES)
    if (lowWaterBytes !== undefined && lowWaterBytes !== 0) checkCount('low_water_bytes', lowWaterBytes)
    const asked = {
      ...{ name, dmName: name, dataDevice, metadataDevice, dataBlockSectors: blockBytes / SECTOR_BYTES },
      lowWaterBlocks: Math.ceil((lowWaterBytes ?? 0) / blockBytes),
      features: whenFull === 'queue' ? '' : 'error_if_no_space',
      transactionId: 0n
    }
    // One at a time for all names: two calls may name the same devices.
    await this.#locks.take('', () =>
      this.#locks.take(name, async () => {
        const takenBy = this.#names.has(name) ? 'a pool of this agent' : await this.#takenBy(name)
        if (takenBy !== undefined) {
          throw nameTaken(`the name ${name} is taken: ${takenBy} answers to it`)
        }
        const { dataBytes } = await checkNewPool(this.#deviceMapper, planOf(asked), this.#machine)
        const lowWaterBlocks =
          lowWaterBytes === undefined ? Math.ceil(dataBytes / blockBytes / LOW_WATER_PART) : asked.lowWaterBlocks
        const pool = { ...asked, lowWaterBlocks }
        await this.#intents.change(name, { kind: 'create-pool', pool }, async () => {
          await createPool(this.#deviceMapper, planOf(pool), this.#machine)
        })
        this.#names.add(name)
      })
    )
    return this.getPool({ pool: name })
  }

  async activatePool({ pool: name, withVolumes }: { pool: string; withVolumes: boolean }): Promise<DescribedPool> {
    await this.#locks.take(name, async () => {
      const { pool, view } = await this.#intents.entry(name)
      if (!(await this.#active(pool).isActive())) {
        const [intent] = view.intents
        const unfinished = intent !== undefined && 'transactionId' in intent ? [pool.transactionId + 1n] : []
        const ids = [pool.transactionId, ...unfinished]
        await activatePool(this.#deviceMapper, planOf(pool), ids, this.#machine)
      }
      this.#intents.report(await this.#intents.recover(name))
      if (!withVolumes) return
      for (const thin of (await this.#intents.entry(name)).view.thins) {
        if (thin.kind === 'volume') await this.#thins.activate(pool, thin, false)
      }
    })
    return this.getPool({ pool: name })
  }

  async deactivatePool({ pool: name, withVolumes }: { pool: string; withVolumes: boolean }): Promise<DescribedPool> {
    await this.#locks.take(name, async () => {
      const { pool, view } = await this.#intents.triedEntry(name)
      await this.#active(pool).deactivate(view.thins, withVolumes)
    })
    return this.getPool({ pool: name })
  }

  async growPool({ pool: name }: { pool: string }): Promise<DescribedPool> {
    await this.#locks.take(name, async () => {
      const { pool } = await this.#intents.triedEntry(name)
      const active = this.#active(pool)
      await active.refuseInactive()
      await active.target.grow()
      // Intents that waited for metadata space can be recovered now.
      await this.#intents.triedEntry(name)
    })
    return this.getPool({ pool: name })
  }

  async removePool({ pool: name, wipe }: { pool: string; wipe: boolean }): Promise<object> {
    await this.#locks.take(name, async () => {
      const { pool, view } = await this.#intents.triedEntry(name)
      if (view.thins.length > 0) {
        throw new DeltamapperError(
          'DM_DEVICE_BUSY',
          `pool ${name} still has ${view.thins.length} volumes and snapshots (${view.thins[0].name} …)`,
          'delete them first'
        )
      }
      const active = this.#active(pool)
      await active.deactivate([], false)
      // Before the pool is forgotten: a call that is interrupted here can be repeated.
      if (wipe) await active.wipe()
      // An unfinished intent does not matter any more: it was about something in this pool.
      if (view.intents.length > 0) await this.#catalog.ownedPools.acceptTransactionId(name, pool.transactionId)
      await this.#catalog.ownedPools.begin({ kind: 'delete-pool', pool: name })
      await this.#catalog.ownedPools.complete(name)
      this.#names.delete(name)
      this.#fullness.forget(name)
    })
    return {}
  }

  async getPool({ pool: name }: { pool: string }): Promise<DescribedPool> {
    const { pool, view } = await this.#intents.entry(name)
    return describePool(this.#deviceMapper, pool, view, this.#machine)
  }

  async listPools(_request: object = {}): Promise<{ pools: DescribedPool[] }> {
    const view = await this.#catalog.ownedPools.view()
    const described = view.pools.map((pool) => describePool(this.#deviceMapper, pool, view, this.#machine))
    return { pools: await Promise.all(described) }
  }

  // Volumes and snapshots

  async createVolume({
    pool,
    name,
    sizeBytes,
    inactive
  }: ThinName & { sizeBytes: number; inactive: boolean }): Promise<DescribedThin> {
    return this.#placed(pool, () => this.#thins.createVolume(pool, name, sizeBytes, inactive))
  }

  async createSnapshot({ pool, origin, name }: ThinName & { origin: string }): Promise<DescribedThin> {
    return this.#placed(pool, () => this.#thins.createSnapshot(pool, origin, name))
  }

  async growVolume({ pool, name, sizeBytes }: ThinName & { sizeBytes: number }): Promise<DescribedThin> {
    return this.#placed(pool, () => this.#thins.grow(pool, name, sizeBytes))
  }

  async activateVolume({ pool: poolName, name, writable }: ThinName & { writable: boolean }): Promise<DescribedThin> {
    return this.#placed(poolName, async () => {
      const { pool } = await this.#intents.triedEntry(poolName)
      const thin = await this.#intents.thin(poolName, name)
      await this.#active(pool).refuseInactive()
      if (thin.kind === 'snapshot' && writable) await this.#catalog.bases.spoil(thin.id, 'it was activated writable')
      await this.#thins.activate(pool, thin, thin.kind === 'snapshot' && !writable)
      return { pool, thin }
    })
  }

  async deactivateVolume({ pool: poolName, name }: ThinName): Promise<DescribedThin> {
    return this.#placed(poolName, async () => {
      const { pool } = await this.#intents.triedEntry(poolName)
      const thin = await this.#intents.thin(poolName, name)
      await this.#thins.deactivate(pool, thin)
      return { pool, thin }
    })
  }

  async deleteVolume({ pool, name }: ThinName): Promise<object> {
    await this.#locks.take(pool, () => this.#thins.delete(pool, name, 'volume'))
    return {}
  }

  async deleteSnapshot({ pool, name }: ThinName): Promise<object> {
    await this.#locks.take(pool, () => this.#thins.delete(pool, name, 'snapshot'))
    return {}
  }

  async listVolumes({ pool }: { pool: string }): Promise<{ volumes: DescribedThin[] }> {
    return { volumes: await this.#list(pool, 'volume') }
  }

  async listSnapshots({ pool }: { pool: string }): Promise<{ snapshots: DescribedThin[] }> {
    return { snapshots: await this.#list(pool, 'snapshot') }
  }

  // Differences

  async reconcile({ pool: name }: { pool: string }): Promise<{ settled: string[]; findings: DescribedFinding[] }> {
    const { pools } =
      name === '' ? await this.#catalog.ownedPools.view() : { pools: [(await this.#intents.entry(name)).pool] }
    const settled: string[] = []
    const findings: Finding[] = []
    for (const pool of pools) {
      const recovery = await this.#locks.take(pool.name, () => this.#intents.recover(pool.name))
      settled.push(...recovery.settled)
      findings.push(...recovery.findings)
    }
    if (name === '') {
      const others = otherPools(await surveyDevices(this.#deviceMapper), pools)
      const nothing = { pools: [], thins: [], intents: [] }
      findings.push(...reconcile(nothing, { pools: others, devices: [] }).findings)
    }
    return { settled, findings: findings.map(describeFinding) }
  }

  async acceptKernel({ pool: name }: { pool: string }): Promise<DescribedPool> {
    await this.#locks.take(name, async () => {
      const { pool } = await this.#intents.entry(name)
      const active = this.#active(pool)
      await active.refuseInactive()
      const { transactionId } = await active.numbers()
      await this.#intents.recover(name)
      const after = await this.#intents.entry(name)
      if (after.view.intents.length > 0 || after.pool.transactionId !== transactionId) {
        await this.#catalog.ownedPools.acceptTransactionId(name, (await active.numbers()).transactionId)
      }
      this.#intents.report(await this.#intents.recover(name))
    })
    return this.getPool({ pool: name })
  }

  async adoptThin({
    pool,
    thinId,
    name,
    sizeBytes,
    origin
  }: ThinName & { thinId: number; sizeBytes: number; origin: string }): Promise<DescribedThin> {
    return this.#placed(pool, () => this.#thins.adopt(pool, thinId, name, sizeBytes, origin))
  }

  async forgetThin({ pool, name, unseen }: ThinName & { unseen: boolean }): Promise<object> {
    await this.#locks.take(pool, () => this.#thins.forget(pool, name, unseen))
    return {}
  }

  // Implementation

  #active(pool: OwnedPool): ActivePool {
    return new ActivePool(this.#deviceMapper, pool, this.#machine)
  }

  /** Runs work on one thin under its pool's lock. @returns the thin as it is afterwards */
  async #placed(poolName: string, work: () => Promise<Placed>): Promise<DescribedThin> {
    return this.#locks.take(poolName, async () => {
      const { pool, thin } = await work()
      const { view } = await this.#intents.entry(poolName)
      const isIt = ({ id }: OwnedThin) => id === thin.id
      const [described] = await describeThins(this.#deviceMapper, pool, view, isIt, this.#machine)
      return described
    })
  }

  async #list(pool: string, kind: OwnedThin['kind']): Promise<DescribedThin[]> {
    const view = pool === '' ? await this.#catalog.ownedPools.view() : (await this.#intents.entry(pool)).view
    const ofKind = (thin: OwnedThin) => thin.kind === kind
    const listed = await Promise.all(
      view.pools.map((each) => describeThins(this.#deviceMapper, each, view, ofKind, this.#machine))
    )
    return listed.flat()
  }

  async #namesInCatalog(): Promise<Set<string>> {
    return new Set((await this.#catalog.ownedPools.view()).pools.map(({ name }) => name))
  }

  /** Never rejects: the caller may be gone. */
  async #settleAtStart(name: string): Promise<void> {
    try {
      await this.#locks.take(name, async () => {
        this.#intents.report(await this.#intents.recover(name))
        // A thin whose creation was interrupted does not exist after all.
        if (!(await this.#namesInCatalog()).has(name)) this.#names.delete(name)
      })
    } catch (error) {
      const { code, message } = asDeltamapperError(error)
      if (code !== 'DM_SHUTTING_DOWN') this.#logger.error({ pool: name, code, what: message }, 'not settled')
    }
  }

  async #watch(): Promise<void> {
    const { signal } = this.#stopping
    while (!signal.aborted) {
      // If the catalog fails, the next caller is told.
      const { pools } = await this.listPools().catch(() => ({ pools: [] }))
      if (!signal.aborted) for (const pool of pools) this.#fullness.look(pool)
      await this.#machine.clock.sleep(this.#watchIntervalMs, true, signal)
    }
  }
}
