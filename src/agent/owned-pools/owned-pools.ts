/**
 * Pools of our own: thin pools on plain device-mapper that the agent makes and drives, with the catalog as their book.
 *
 * Every change goes the same way: the intent onto disk, then the kernel, then `settlePool`, which looks at what the kernel has and
 * makes the intent a fact or forgets it. So there is nothing that only a crash would run. One change at a time in each pool; they wait
 * for their turn in the order in which they came.
 *
 * Nothing is activated at start: that is a person's word, or a unit's that runs `deltamapper pool activate`.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Logger } from 'pino'
import { DeviceMapperError, type DeviceInfo, type DeviceMapper } from '../../../native/device-mapper.ts'
import { nodeName } from '../../../native/device.ts'
import { MAX_DEVICES } from '../../devicemapper/thin/device-details.ts'
import {
  activatePool,
  checkNewPool,
  createPool,
  type PoolPlan,
  ThinPool,
  wipePool
} from '../../devicemapper/thin/pool.ts'
import { openPoolMetadata } from '../../devicemapper/thin/pool-metadata.ts'
import type { PoolNumbers, PoolStatus } from '../../devicemapper/thin/status.ts'
import { asDeltamapperError, DeltamapperError } from '../../errors.ts'
import type { AdminBackend, AdminCalls, Pool, ReconcileFinding, Volume } from '../../grpc/admin.ts'
import type { Catalog } from '../catalog/catalog.ts'
import type { CatalogView, NewIntent, OwnedPool, OwnedThin } from '../catalog/owned-pools.ts'
import { type Finding, type KernelThin, reconcile } from '../catalog/reconcile.ts'
import { findPoolDevice } from '../pool-device.ts'
import type { SnapshotSource } from '../snapshot-source.ts'
import { FullnessLog } from './fullness.ts'
import { isLvm, otherPools, surveyDevices, type ThinDevice, thinDevices } from './kernel-view.ts'
import { checkPoolName, checkThinName, poolUuid, thinDeviceName, thinUuid } from './naming.ts'
import { settlePool, type Settlement, unsettled } from './settle.ts'
import { ownedPoolSource } from './source.ts'

const SECTOR_BYTES = 512
/** Low-water mark unless one is asked for: this part of the pool. */
const LOW_WATER_PART = 20
/** How often the pools' fullness is looked at, in milliseconds. */
const WATCH_INTERVAL_MS = 10_000

export interface OwnedPoolsOptions {
  readonly catalog: Catalog
  readonly deviceMapper: DeviceMapper
  readonly logger: Logger
  /** What else answers to a name before the slash of a handle, in words; undefined when nothing does. */
  readonly takenBy?: (name: string) => Promise<string | undefined>
  /** Milliseconds; 10,000 by default. */
  readonly watchIntervalMs?: number
}

type Request<M extends keyof AdminCalls> = AdminCalls[M][0]

export class OwnedPools implements AdminBackend {
  readonly #catalog: Catalog
  readonly #deviceMapper: DeviceMapper
  readonly #logger: Logger
  readonly #takenBy: NonNullable<OwnedPoolsOptions['takenBy']>
  readonly #watchIntervalMs: number
  readonly #fullness: FullnessLog
  readonly #stopping = new AbortController()
  /** The names in the catalog, which nobody else writes to. */
  #names = new Set<string>()
  /** What each pool's turn waits for. */
  readonly #turns = new Map<string, Promise<unknown>>()
  #watching: Promise<void> | undefined

  constructor({ catalog, deviceMapper, logger, takenBy, watchIntervalMs = WATCH_INTERVAL_MS }: OwnedPoolsOptions) {
    this.#catalog = catalog
    this.#deviceMapper = deviceMapper
    this.#logger = logger
    this.#takenBy = takenBy ?? (() => Promise.resolve(undefined))
    this.#watchIntervalMs = watchIntervalMs
    this.#fullness = new FullnessLog(logger)
  }

  /**
   * Settles what the last agent left unfinished, says what disagrees in the log, and begins to watch. A pool that cannot be settled is no
   * reason not to start: it is said, and tried again with the next change.
   *
   * @throws what the catalog throws
   */
  async start(): Promise<void> {
    this.#names = new Set((await this.#catalog.view()).pools.map(({ name }) => name))
    for (const name of [...this.#names]) await this.#inTurn(name, async () => this.#report(await this.#settle(name)))
    this.#names = new Set((await this.#catalog.view()).pools.map(({ name }) => name))
    this.#watching = this.#watch()
  }

  /** Stops watching, and waits for what is under way. */
  async close(): Promise<void> {
    this.#stopping.abort()
    await this.#watching
    await Promise.all(this.#turns.values())
  }

  /** Answers for the volumes and snapshots of a pool of ours; undefined when there is no pool of this name. */
  source(name: string): SnapshotSource | undefined {
    return this.#names.has(name) ? ownedPoolSource(name, this.#catalog, this.#deviceMapper) : undefined
  }

  // Pools

  async createPool(request: Request<'createPool'>): Promise<Pool> {
    const { name, metadataDevice, dataDevice, blockBytes, whenFull } = request
    checkPoolName(name)
    checkCount('block_bytes', blockBytes, SECTOR_BYTES)
    if (request.lowWaterBytes !== undefined && request.lowWaterBytes !== 0) {
      checkCount('low_water_bytes', request.lowWaterBytes)
    }
    const plan: PoolPlan = {
      name,
      uuid: poolUuid({ name }),
      metadataDevice,
      dataDevice,
      blockSectors: blockBytes / SECTOR_BYTES,
      lowWaterBlocks: Math.ceil((request.lowWaterBytes ?? 0) / blockBytes),
      features: { ...noFeatures, errorIfNoSpace: whenFull !== 'queue' }
    }
    // One after the other, whatever their names: two may be given the same devices.
    await this.#inTurn('', () =>
      this.#inTurn(name, async () => {
        const takenBy = this.#names.has(name) ? 'a pool of this agent' : await this.#takenBy(name)
        if (takenBy !== undefined) {
          throw new DeltamapperError(
            'DM_DEVICE_BUSY',
            `the name ${name} is taken: ${takenBy} answers to it`,
            'choose another name'
          )
        }
        const { dataBytes } = await checkNewPool(this.#deviceMapper, plan)
        const lowWaterBlocks =
          request.lowWaterBytes === undefined ? Math.ceil(dataBytes / blockBytes / LOW_WATER_PART) : plan.lowWaterBlocks
        const pool = {
          ...{ name, dmName: name, dataDevice, metadataDevice, lowWaterBlocks, transactionId: 0n },
          dataBlockSectors: plan.blockSectors,
          features: whenFull === 'queue' ? '' : 'error_if_no_space'
        }
        await this.#change(name, { kind: 'create-pool', pool }, async () => {
          await createPool(this.#deviceMapper, { ...plan, lowWaterBlocks })
        })
        this.#names.add(name)
      })
    )
    return this.getPool({ pool: name })
  }

  async activatePool({ pool: name, withVolumes }: Request<'activatePool'>): Promise<Pool> {
    await this.#inTurn(name, async () => {
      const { pool, view } = await this.#owned(name)
      if (!(await this.#pool(pool).info())) {
        const [intent] = view.intents
        const unfinished = intent !== undefined && 'transactionId' in intent ? [pool.transactionId + 1n] : []
        await activatePool(this.#deviceMapper, planOf(pool), [pool.transactionId, ...unfinished])
      }
      this.#report(await this.#settle(name))
      if (!withVolumes) return
      for (const thin of (await this.#owned(name)).view.thins) {
        if (thin.kind === 'volume') await this.#activateThin(pool, thin, false)
      }
    })
    return this.getPool({ pool: name })
  }

  async deactivatePool({ pool: name, withVolumes }: Request<'deactivatePool'>): Promise<Pool> {
    await this.#inTurn(name, async () => {
      const { pool, view } = await this.#tried(name)
      await this.#deactivatePool(pool, view.thins, withVolumes)
    })
    return this.getPool({ pool: name })
  }

  async growPool({ pool: name }: Request<'growPool'>): Promise<Pool> {
    await this.#inTurn(name, async () => {
      const { pool } = await this.#tried(name)
      await this.#refuseInactive(pool)
      await this.#pool(pool).grow()
      // What waited for metadata space can be settled now.
      await this.#tried(name)
    })
    return this.getPool({ pool: name })
  }

  async removePool({ pool: name, wipe }: Request<'removePool'>): Promise<object> {
    await this.#inTurn(name, async () => {
      const { pool, view } = await this.#tried(name)
      if (view.thins.length > 0) {
        throw new DeltamapperError(
          'DM_DEVICE_BUSY',
          `pool ${name} still has ${view.thins.length} volumes and snapshots (${view.thins[0].name} …)`,
          'delete them first'
        )
      }
      await this.#deactivatePool(pool, [], false)
      // Before the pool is forgotten: what is cut short here can be asked for again.
      if (wipe) await this.#wipe(pool)
      // Whatever was begun in it and cannot be settled, it was to become something in this pool.
      if (view.intents.length > 0) await this.#catalog.acceptTransactionId(name, pool.transactionId)
      await this.#catalog.begin({ kind: 'delete-pool', pool: name })
      await this.#catalog.complete(name)
      this.#names.delete(name)
      this.#fullness.forget(name)
    })
    return {}
  }

  async getPool({ pool: name }: Request<'getPool'>): Promise<Pool> {
    const { pool, view } = await this.#owned(name)
    return this.#describePool(pool, view)
  }

  async listPools(_request: object = {}): Promise<{ pools: Pool[] }> {
    const view = await this.#catalog.view()
    const pools: Pool[] = []
    for (const pool of view.pools) pools.push(await this.#describePool(pool, view))
    return { pools }
  }

  // Volumes

  async createVolume({ pool: name, name: volume, sizeBytes, inactive }: Request<'createVolume'>): Promise<Volume> {
    checkSize(sizeBytes)
    return this.#inTurn(name, async () => {
      const { pool } = await this.#createThin(name, volume, undefined, sizeBytes)
      const thin = await this.#thin(name, volume)
      if (!inactive) await this.#activateThin(pool, thin, false)
      return this.#describe(pool, thin)
    })
  }

  async growVolume({ pool: name, name: volume, sizeBytes }: Request<'growVolume'>): Promise<Volume> {
    checkSize(sizeBytes)
    return this.#inTurn(name, async () => {
      const { pool } = await this.#settled(name)
      const thin = await this.#thin(name, volume, 'volume')
      if (sizeBytes < thin.sizeBytes) {
        throw invalid(
          `${name}/${volume} has ${thin.sizeBytes} bytes, more than the ${sizeBytes} it is to have`,
          'a volume cannot shrink: make a smaller one, and copy'
        )
      }
      const device = await this.#deviceOf(thin)
      if (device && device.sizeBytes > sizeBytes) {
        throw invalid(
          `the device of ${name}/${volume} has ${device.sizeBytes} bytes, more than the ${sizeBytes} it is to have`,
          `give ${device.sizeBytes}, or deactivate it first`
        )
      }
      const resize = async () => {
        if (device && device.sizeBytes < sizeBytes) {
          await this.#pool(pool).resizeThin({ uuid: device.info.uuid }, sizeBytes)
        }
      }
      if (sizeBytes === thin.sizeBytes) await resize()
      else await this.#change(name, { kind: 'resize-thin', pool: name, thin: thin.id, sizeBytes }, resize)
      return this.#describe(pool, await this.#thin(name, volume))
    })
  }

  async activateVolume({ pool: name, name: volume, writable }: Request<'activateVolume'>): Promise<Volume> {
    return this.#inTurn(name, async () => {
      const { pool } = await this.#tried(name)
      const thin = await this.#thin(name, volume)
      await this.#refuseInactive(pool)
      await this.#activateThin(pool, thin, thin.kind === 'snapshot' && !writable)
      return this.#describe(pool, thin)
    })
  }

  async deactivateVolume({ pool: name, name: volume }: Request<'deactivateVolume'>): Promise<Volume> {
    return this.#inTurn(name, async () => {
      const { pool } = await this.#tried(name)
      const thin = await this.#thin(name, volume)
      await this.#deactivateThin(pool, thin)
      return this.#describe(pool, thin)
    })
  }

  async deleteVolume({ pool, name }: Request<'deleteVolume'>): Promise<object> {
    await this.#inTurn(pool, () => this.#deleteThin(pool, name, 'volume'))
    return {}
  }

  async listVolumes({ pool }: Request<'listVolumes'>): Promise<{ volumes: Volume[] }> {
    return { volumes: await this.#list(pool, 'volume') }
  }

  // Snapshots

  async createSnapshot({ pool: name, origin, name: snapshot }: Request<'createSnapshot'>): Promise<Volume> {
    return this.#inTurn(name, async () => {
      const { pool } = await this.#createThin(name, snapshot, await this.#thin(name, origin), undefined)
      return this.#describe(pool, await this.#thin(name, snapshot))
    })
  }

  async deleteSnapshot({ pool, name }: Request<'deleteSnapshot'>): Promise<object> {
    await this.#inTurn(pool, () => this.#deleteThin(pool, name, 'snapshot'))
    return {}
  }

  async listSnapshots({ pool }: Request<'listSnapshots'>): Promise<{ snapshots: Volume[] }> {
    return { snapshots: await this.#list(pool, 'snapshot') }
  }

  // What disagrees

  async reconcile({ pool: name }: Request<'reconcile'>): Promise<AdminCalls['reconcile'][1]> {
    const { pools } = name === '' ? await this.#catalog.view() : { pools: [(await this.#owned(name)).pool] }
    const settled: string[] = []
    const findings: Finding[] = []
    for (const pool of pools) {
      const settlement = await this.#inTurn(pool.name, () => this.#settle(pool.name))
      settled.push(...settlement.settled)
      findings.push(...settlement.findings)
    }
    if (name === '') {
      const others = otherPools(await surveyDevices(this.#deviceMapper), pools)
      const nothing = { pools: [], thins: [], intents: [] }
      findings.push(...reconcile(nothing, { pools: others, devices: [] }).findings)
    }
    return { settled, findings: findings.map(findingOf) }
  }

  async acceptKernel({ pool: name }: Request<'acceptKernel'>): Promise<Pool> {
    await this.#inTurn(name, async () => {
      const { pool } = await this.#owned(name)
      await this.#refuseInactive(pool)
      const { transactionId } = await this.#numbers(pool)
      await this.#settle(name)
      const after = await this.#owned(name)
      if (after.view.intents.length > 0 || after.pool.transactionId !== transactionId) {
        await this.#catalog.acceptTransactionId(name, (await this.#numbers(pool)).transactionId)
      }
      this.#report(await this.#settle(name))
    })
    return this.getPool({ pool: name })
  }

  async adoptThin({ pool: name, thinId, name: as, sizeBytes, origin }: Request<'adoptThin'>): Promise<Volume> {
    checkThinName(as)
    checkSize(sizeBytes)
    return this.#inTurn(name, async () => {
      const { pool } = await this.#settled(name)
      await this.#refuseInactive(pool)
      const { details, mappedEnd } = await this.#look(pool, thinId)
      const active = (await this.#thinDevices(pool)).find((each) => each.thinId === thinId)
      if (sizeBytes <= mappedEnd - pool.dataBlockSectors * SECTOR_BYTES || (active && active.sizeBytes !== sizeBytes)) {
        throw invalid(
          `${sizeBytes} bytes cannot be the size of thin device ${thinId}: it ${
            active ? `is active as ${active.dmName} with ${active.sizeBytes}` : `maps blocks up to byte ${mappedEnd}`
          }`,
          'give the size that it was used with: what lies beyond would be missing from backups'
        )
      }
      const thin = await this.#catalog.adoptThin({
        ...{ pool: name, name: as, thinId, sizeBytes, dmName: thinDeviceName(name, as) },
        creationTime: details.creationTime,
        transactionId: details.transactionId,
        origin: origin === '' ? undefined : (await this.#thin(name, origin)).id
      })
      return this.#describe(pool, thin)
    })
  }

  async forgetThin({ pool: name, name: thinName, unseen }: Request<'forgetThin'>): Promise<object> {
    await this.#inTurn(name, async () => {
      const { pool, view } = unseen ? await this.#tried(name) : await this.#settled(name)
      const thin = await this.#thin(name, thinName)
      const kernelThins = await this.#kernelThins(pool).catch((error: unknown) => {
        if (unseen && error instanceof DeltamapperError) return undefined
        throw error
      })
      const there = kernelThins?.get(thin.thinId)
      if (there?.creationTime === thin.creationTime && there.transactionId === thin.transactionId) {
        throw new DeltamapperError(
          'DM_DEVICE_BUSY',
          `${name}/${thinName} is in the pool, as thin device ${thin.thinId}`,
          'delete it if it is not needed: forgetting is for what the pool has lost'
        )
      }
      if (view.intents.length > 0) await this.#catalog.acceptTransactionId(name, pool.transactionId)
      await this.#catalog.forgetThin(thin.id)
    })
    return {}
  }

  // How it is done

  /** Runs `work` when everything that was asked of this pool before is done. */
  async #inTurn<T>(pool: string, work: () => Promise<T>): Promise<T> {
    const before = this.#turns.get(pool)
    const run = (async () => {
      await before
      if (this.#stopping.signal.aborted) {
        throw new DeltamapperError('DM_SHUTTING_DOWN', 'the agent is stopping', 'ask again once it is back')
      }
      return work()
    })()
    const turn = run.then(
      () => undefined,
      () => undefined
    )
    this.#turns.set(pool, turn)
    try {
      return await run
    } finally {
      if (this.#turns.get(pool) === turn) this.#turns.delete(pool)
    }
  }

  /**
   * Makes one change: writes down what is about to be done, does it, and looks whether it is.
   *
   * @param decide what the kernel either does or refuses: refused, nothing has happened
   * @param rest what belongs to it all the same
   * @throws DM_CATALOG_DISAGREES when it cannot be seen to be done
   */
  async #change(
    pool: string,
    intent: NewIntent,
    decide: () => Promise<void>,
    rest: () => Promise<void> = () => Promise.resolve()
  ): Promise<void> {
    await this.#catalog.begin(intent)
    let failure: unknown
    try {
      await decide()
    } catch (error) {
      if (isRefusal(error)) {
        await this.#catalog.rollBack(pool)
        throw error
      }
      failure = error
    }
    if (failure === undefined) await rest().catch((error: unknown) => (failure = error))
    const settlement = await this.#settle(pool)
    if (failure !== undefined) {
      // Settled or not, the caller has to know that it did not go as it should.
      this.#report(settlement)
      throw failure as Error
    }
    const { intents } = await this.#catalog.view()
    if (!intents.some((each) => each.pool === pool)) return
    throw this.#unfinished(pool, settlement.findings)
  }

  /** Settles a pool; what keeps it from being settled becomes a finding. */
  async #settle(name: string): Promise<Settlement> {
    try {
      return await settlePool(this.#catalog, this.#deviceMapper, name)
    } catch (error) {
      const known = asDeltamapperError(error)
      if (known.code === 'DM_INTERNAL') this.#logger.error({ err: known.cause ?? known, pool: name }, 'not settled')
      return { settled: [], findings: [unsettled(name, known)] }
    }
  }

  #report({ settled, findings }: Settlement): void {
    for (const because of settled) this.#logger.warn({ because }, 'settled what was left unfinished')
    for (const { kind, pool, thinId, what, remedy } of findings) {
      this.#logger.warn({ kind, pool, thinId, remedy }, what)
    }
  }

  /** A pool of ours, with what the catalog has of it. */
  async #owned(name: string): Promise<{ pool: OwnedPool; view: CatalogView }> {
    const { pools, thins, intents } = await this.#catalog.view()
    const pool = pools.find((each) => each.name === name)
    if (!pool) {
      throw new DeltamapperError(
        'DM_NO_SUCH_DEVICE',
        name === '' ? 'no pool was named' : `${JSON.stringify(name.slice(0, 200))} is no pool that this agent has made`,
        '`deltamapper pool list` lists those that are'
      )
    }
    const ofPool = <T extends { pool: string }>(rows: readonly T[]) => rows.filter((each) => each.pool === name)
    return { pool, view: { pools: [pool], thins: ofPool(thins), intents: ofPool(intents) } }
  }

  /** The same, after what was left unfinished has been settled, if it could be. */
  async #tried(name: string): Promise<{ pool: OwnedPool; view: CatalogView; findings: readonly Finding[] }> {
    const owned = await this.#owned(name)
    if (owned.view.intents.length === 0) return { ...owned, findings: [] }
    const settlement = await this.#settle(name)
    this.#report(settlement)
    return { ...(await this.#owned(name)), findings: settlement.findings }
  }

  /** The same, for what must not come on top of something unfinished. @throws DM_CATALOG_DISAGREES */
  async #settled(name: string): Promise<{ pool: OwnedPool; view: CatalogView }> {
    const { pool, view, findings } = await this.#tried(name)
    if (view.intents.length > 0) throw this.#unfinished(name, findings)
    return { pool, view }
  }

  #unfinished(pool: string, findings: readonly Finding[]): DeltamapperError {
    const [first] = findings
    return new DeltamapperError(
      'DM_CATALOG_DISAGREES',
      first?.what ?? `what was begun in pool ${pool} is not finished`,
      first?.remedy ?? `\`deltamapper pool check ${pool}\` shows what disagrees`
    )
  }

  async #thin(pool: string, name: string, kind?: OwnedThin['kind']): Promise<OwnedThin> {
    const thin = await this.#catalog.findThinByName(pool, name)
    if (!thin) {
      throw new DeltamapperError(
        'DM_NO_SUCH_DEVICE',
        `pool ${pool} has no volume or snapshot ${JSON.stringify(name.slice(0, 200))}`,
        '`deltamapper volume list` and `deltamapper snapshot list` list those there are'
      )
    }
    if (kind === undefined || thin.kind === kind) return thin
    throw invalid(`${pool}/${name} is a ${thin.kind}, no ${kind}`, `see \`deltamapper ${thin.kind} --help\``)
  }

  #pool(pool: OwnedPool): ThinPool {
    return new ThinPool(this.#deviceMapper, poolUuid(pool))
  }

  async #refuseInactive(pool: OwnedPool): Promise<void> {
    if (await this.#pool(pool).info()) return
    throw new DeltamapperError(
      'DM_POOL_INACTIVE',
      `pool ${pool.name} is not active`,
      `activate it: \`deltamapper pool activate ${pool.name}\``
    )
  }

  async #numbers(pool: OwnedPool): Promise<PoolNumbers> {
    const status = await this.#pool(pool).status()
    if (status.state === 'working') return status
    throw new DeltamapperError(
      'DM_POOL_READ_ONLY',
      `pool ${pool.name} has failed`,
      'find out why in the kernel log; `thin_check` and `thin_repair` are for its metadata'
    )
  }

  /** A new volume, or a snapshot of `origin`. */
  async #createThin(
    poolName: string,
    name: string,
    origin: OwnedThin | undefined,
    sizeBytes: number | undefined
  ): Promise<{ pool: OwnedPool }> {
    checkThinName(name)
    const dmName = thinDeviceName(poolName, name)
    const { pool, view } = await this.#settled(poolName)
    await this.#refuseInactive(pool)
    const thinPool = this.#pool(pool)
    await thinPool.refuseUnlessChangeable()
    if (await this.#deviceMapper.info(dmName)) {
      throw new DeltamapperError(
        'DM_DEVICE_BUSY',
        `there already is a device-mapper device ${dmName}`,
        'choose another name, or remove that device if it is yours'
      )
    }
    const kernelThins = await this.#kernelThins(pool)
    const thinId = freeId(new Set([...view.thins.map((thin) => thin.thinId), ...kernelThins.keys()]))
    const { transactionId } = await this.#numbers(pool)
    const common = { pool: poolName, name, thinId, dmName, transactionId }
    const moveOn = () => thinPool.setTransactionId(transactionId, transactionId + 1n)
    if (origin === undefined) {
      const intent = { kind: 'create-volume' as const, ...common, sizeBytes: sizeBytes! }
      await this.#change(poolName, intent, () => thinPool.createThin(thinId), moveOn)
      return { pool }
    }
    const there = kernelThins.get(origin.thinId)
    if (there?.creationTime !== origin.creationTime || there.transactionId !== origin.transactionId) {
      throw new DeltamapperError(
        'DM_CATALOG_DISAGREES',
        `${poolName}/${origin.name} is not in the pool as it was made`,
        `\`deltamapper pool check ${poolName}\` shows what disagrees`
      )
    }
    const device = await this.#onlyDevice(pool, origin)
    const intent = {
      ...{ kind: 'create-snapshot' as const, ...common, sizeBytes: origin.sizeBytes },
      origin: origin.id,
      suspends: device?.name
    }
    const reference = device && { uuid: device.uuid }
    await this.#change(poolName, intent, () => thinPool.createSnapshot(thinId, origin.thinId, reference), moveOn)
    return { pool }
  }

  /**
   * The device of an origin that is active, to be suspended. One that does not have the size of the catalog, or another device of the same
   * thin, would make for a snapshot that is not what it is said to be.
   */
  async #onlyDevice(pool: OwnedPool, thin: OwnedThin): Promise<DeviceInfo | undefined> {
    const devices = (await this.#thinDevices(pool)).filter((each) => each.thinId === thin.thinId)
    const foreign = devices.find(({ info }) => info.uuid !== thinUuid(thin))
    if (foreign) {
      throw new DeltamapperError(
        'DM_DEVICE_BUSY',
        `${pool.name}/${thin.name} is active as ${foreign.dmName}, which this agent has not made and does not suspend`,
        `\`dmsetup remove ${foreign.dmName}\``
      )
    }
    const [device] = devices
    if (device && device.sizeBytes !== thin.sizeBytes) throw sizeDiffers(thin, device.sizeBytes)
    return device?.info
  }

  async #deleteThin(poolName: string, name: string, kind: OwnedThin['kind']): Promise<void> {
    const { pool } = await this.#settled(poolName)
    const thin = await this.#thin(poolName, name, kind)
    await this.#refuseInactive(pool)
    const thinPool = this.#pool(pool)
    await thinPool.refuseUnlessChangeable()
    const there = (await this.#kernelThins(pool)).get(thin.thinId)
    if (there?.creationTime !== thin.creationTime || there.transactionId !== thin.transactionId) {
      throw new DeltamapperError(
        'DM_CATALOG_DISAGREES',
        there
          ? `thin device ${thin.thinId} of pool ${poolName} is not the ${kind} ${name} that it was`
          : `the pool has lost ${poolName}/${name}`,
        `\`deltamapper volume forget ${poolName}/${name}\` strikes it off the catalog`
      )
    }
    await this.#deactivateThin(pool, thin)
    const { transactionId } = await this.#numbers(pool)
    await this.#change(
      poolName,
      { kind: 'delete-thin', pool: poolName, thin: thin.id, transactionId },
      () => thinPool.deleteThin(thin.thinId),
      () => thinPool.setTransactionId(transactionId, transactionId + 1n)
    )
  }

  async #activateThin(pool: OwnedPool, thin: OwnedThin, readOnly: boolean): Promise<void> {
    const device = await this.#deviceOf(thin)
    if (device === undefined) {
      const { dmName: name, thinId, sizeBytes } = thin
      await this.#pool(pool).activateThin({ name, uuid: thinUuid(thin), thinId, sizeBytes, readOnly })
    } else if (device.sizeBytes !== thin.sizeBytes) throw sizeDiffers(thin, device.sizeBytes)
    else if (device.info.readOnly && !readOnly) {
      throw new DeltamapperError(
        'DM_DEVICE_BUSY',
        `${pool.name}/${thin.name} is active already, read-only`,
        'deactivate it first'
      )
    }
  }

  /** Nothing where it is not active. @throws DM_DEVICE_BUSY while somebody uses it */
  async #deactivateThin(pool: OwnedPool, thin: OwnedThin): Promise<void> {
    const info = await this.#deviceMapper.info({ uuid: thinUuid(thin) })
    if (!info) return
    refuseInUse(info, `${pool.name}/${thin.name}`)
    await this.#pool(pool).deactivateThin({ uuid: info.uuid })
  }

  async #deactivatePool(pool: OwnedPool, thins: readonly OwnedThin[], withVolumes: boolean): Promise<void> {
    const thinPool = this.#pool(pool)
    if (!(await thinPool.info())) return
    const devices = await this.#thinDevices(pool)
    const [first] = devices
    if (first && !withVolumes) {
      throw new DeltamapperError(
        'DM_DEVICE_BUSY',
        `pool ${pool.name} has ${devices.length} active volumes and snapshots (${first.dmName} …)`,
        'deactivate them first, or all together (`--with-volumes`)'
      )
    }
    const ours = new Set(thins.map(thinUuid))
    // All of them are looked at before the first goes.
    for (const { info } of devices) {
      refuseInUse(info, info.name)
      if (ours.has(info.uuid)) continue
      throw new DeltamapperError(
        'DM_DEVICE_BUSY',
        `${info.name} is in pool ${pool.name}, and was not made by this agent`,
        `\`dmsetup remove ${info.name}\``
      )
    }
    for (const { info } of devices) await thinPool.deactivateThin({ uuid: info.uuid })
    await thinPool.deactivate()
  }

  /** @throws DM_DEVICE_NOT_BLANK when there is something in the pool that the catalog does not know of */
  async #wipe(pool: OwnedPool): Promise<void> {
    const plan = planOf(pool)
    const inside = await thinsOn(plan.metadataDevice).catch((error: unknown) => {
      if (error instanceof DeltamapperError && error.code === 'DM_METADATA_FOREIGN') return undefined
      throw error
    })
    if (inside !== undefined && inside.size > 0) {
      throw new DeltamapperError(
        'DM_DEVICE_NOT_BLANK',
        `${plan.metadataDevice} still has ${inside.size} thin devices that the catalog does not know of (${[...inside.keys()][0]} …)`,
        'activate the pool, adopt and delete them, or remove it without --wipe'
      )
    }
    await wipePool(this.#deviceMapper, plan)
  }

  async #kernelThins(pool: OwnedPool): Promise<ReadonlyMap<number, KernelThin & { mappedBlocks: number }>> {
    const device = await findPoolDevice(this.#deviceMapper, { uuid: poolUuid(pool) })
    if (device) return thinsOn(device.metadataPath)
    await this.#refuseInactive(pool)
    throw defect(`the device of pool ${pool.name} has gone away`)
  }

  async #look(pool: OwnedPool, thinId: number) {
    const device = await findPoolDevice(this.#deviceMapper, { uuid: poolUuid(pool) })
    const metadata = await openPoolMetadata(device?.metadataPath ?? planOf(pool).metadataDevice, { liveRoot: true })
    try {
      const found = await metadata.device(thinId)
      return { details: found.details, mappedEnd: await metadata.mappedEnd(found) }
    } finally {
      await metadata.close()
    }
  }

  /** The active devices of a pool's thins, whoever made them. */
  async #thinDevices(pool: OwnedPool): Promise<ThinDevice[]> {
    const devices = thinDevices(await surveyDevices(this.#deviceMapper))
    return devices.filter((each) => each.poolUuid === poolUuid(pool) && !isLvm(each.info))
  }

  /** The device that we made of a thin, if it is active. */
  async #deviceOf(thin: OwnedThin): Promise<{ info: DeviceInfo; sizeBytes: number } | undefined> {
    const info = await this.#deviceMapper.info({ uuid: thinUuid(thin) })
    if (!info?.hasLiveTable) return undefined
    const [row] = await this.#deviceMapper.table({ uuid: info.uuid })
    return row && { info, sizeBytes: row.lengthSectors * SECTOR_BYTES }
  }

  // What is answered

  async #describePool(pool: OwnedPool, { thins, intents }: CatalogView): Promise<Pool> {
    const { name, dataBlockSectors, lowWaterBlocks, transactionId } = pool
    const blockBytes = dataBlockSectors * SECTOR_BYTES
    const count = (kind: OwnedThin['kind']) => thins.filter((each) => each.pool === name && each.kind === kind).length
    const described: Pool = {
      ...{ name, deviceName: pool.dmName, metadataDevice: pool.metadataDevice, dataDevice: pool.dataDevice },
      ...{ blockBytes, lowWaterBytes: lowWaterBlocks * blockBytes, transactionId },
      whenFull: pool.features.split(' ').includes('error_if_no_space') ? 'error' : 'queue',
      state: 'unknown',
      problem: '',
      volumes: count('volume'),
      snapshots: count('snapshot'),
      underWay: intents.find((each) => each.pool === name)?.kind ?? '',
      createdAtMs: pool.createdAt
    }
    try {
      const thinPool = this.#pool(pool)
      if (!(await thinPool.info())) return { ...described, state: 'inactive' }
      return { ...described, ...stateOf(await thinPool.status(), pool) }
    } catch (error) {
      return { ...described, problem: asDeltamapperError(error).line }
    }
  }

  async #list(pool: string, kind: OwnedThin['kind']): Promise<Volume[]> {
    const view = pool === '' ? await this.#catalog.view() : (await this.#owned(pool)).view
    const listed: Volume[] = []
    for (const each of view.pools) {
      const mapped = await this.#kernelThins(each).catch(() => undefined)
      for (const thin of view.thins) {
        if (thin.pool === each.name && thin.kind === kind) {
          listed.push(await this.#describeThin(each, thin, view.thins, mapped))
        }
      }
    }
    return listed
  }

  async #describe(pool: OwnedPool, thin: OwnedThin): Promise<Volume> {
    const mapped = await this.#kernelThins(pool).catch(() => undefined)
    return this.#describeThin(pool, thin, (await this.#owned(pool.name)).view.thins, mapped)
  }

  async #describeThin(
    pool: OwnedPool,
    thin: OwnedThin,
    all: readonly OwnedThin[],
    mapped: ReadonlyMap<number, { mappedBlocks: number }> | undefined
  ): Promise<Volume> {
    const nameOf = (id: string | undefined) => all.find((each) => each.id === id)?.name ?? ''
    const info = await this.#deviceMapper.info({ uuid: thinUuid(thin) }).catch(() => undefined)
    const mappedBlocks = mapped?.get(thin.thinId)?.mappedBlocks
    const { name, kind, id, thinId, sizeBytes, creationTime, transactionId } = thin
    return {
      ...{ pool: pool.name, name, kind, id, thinId, sizeBytes, creationTime, transactionId },
      volume: nameOf(thin.volume),
      volumeId: thin.volume,
      origin: nameOf(thin.origin),
      createdAtMs: thin.createdAt,
      ...(info?.hasLiveTable && {
        device: {
          path: `/dev/mapper/${nodeName(info.name)}`,
          readOnly: info.readOnly,
          openCount: info.openCount
        }
      }),
      ...(mappedBlocks !== undefined && { mappedBytes: mappedBlocks * pool.dataBlockSectors * SECTOR_BYTES })
    }
  }

  // Watching

  async #watch(): Promise<void> {
    const { signal } = this.#stopping
    while (!signal.aborted) {
      // Should the catalog fail, whoever wants something of it is told.
      const { pools } = await this.listPools().catch(() => ({ pools: [] }))
      if (!signal.aborted) for (const pool of pools) this.#fullness.look(pool)
      await sleep(this.#watchIntervalMs, undefined, { signal, ref: false }).catch(() => undefined)
    }
  }
}

const noFeatures = {
  skipBlockZeroing: false,
  ignoreDiscard: false,
  noDiscardPassdown: false,
  readOnly: false,
  errorIfNoSpace: false
}

function planOf(pool: OwnedPool): PoolPlan {
  return {
    name: pool.dmName,
    uuid: poolUuid(pool),
    metadataDevice: pool.metadataDevice,
    dataDevice: pool.dataDevice,
    blockSectors: pool.dataBlockSectors,
    lowWaterBlocks: pool.lowWaterBlocks,
    features: { ...noFeatures, errorIfNoSpace: pool.features.split(' ').includes('error_if_no_space') }
  }
}

/** Everything that the metadata on a device has, by thin id. */
async function thinsOn(metadataPath: string): Promise<Map<number, KernelThin & { mappedBlocks: number }>> {
  const metadata = await openPoolMetadata(metadataPath, { liveRoot: true })
  try {
    const thins = new Map<number, KernelThin & { mappedBlocks: number }>()
    for await (const { id, details } of metadata.devices()) thins.set(id, details)
    return thins
  } finally {
    await metadata.close()
  }
}

/** The id after the highest, so that ids come back as late as they can; a free one below when there is none. */
function freeId(taken: ReadonlySet<number>): number {
  let id = 0
  for (const each of taken) id = Math.max(id, each + 1)
  if (id >= MAX_DEVICES) for (id = 0; taken.has(id);) id++
  if (id < MAX_DEVICES) return id
  throw new DeltamapperError('DM_DEVICE_BUSY', 'the pool has no free thin device id', 'delete what is not needed')
}

/** Whether the kernel has said no to what would have made the change: then it is not made, and will not be. */
function isRefusal(error: unknown): boolean {
  if (!(error instanceof DeviceMapperError)) return false
  return error.errno !== undefined && (error.call === 'message' || error.call === 'suspend')
}

function stateOf(status: PoolStatus, pool: OwnedPool): Pick<Pool, 'state' | 'problem' | 'usage'> {
  if (status.state === 'unknown') return { state: 'unknown', problem: 'the kernel could not tell its state' }
  if (status.state === 'failed') {
    return { state: 'failed', problem: 'its metadata cannot be used: see the kernel log, thin_check and thin_repair' }
  }
  const { mode, needsCheck = false, heldRoot } = status
  const blockBytes = pool.dataBlockSectors * SECTOR_BYTES
  const problems = {
    'read-write': '',
    'out-of-data-space': 'writes that need a new block fail or wait: enlarge its data device, and grow it',
    'read-only': needsCheck
      ? 'its metadata needs a check: deactivate it, thin_check --clear-needs-check-flag, activate it'
      : 'out of metadata space, or its metadata could not be written: enlarge its metadata device and grow it; see the kernel log'
  }
  return {
    state: mode,
    problem: problems[mode],
    usage: {
      dataUsedBytes: status.usedDataBlocks * blockBytes,
      dataTotalBytes: status.totalDataBlocks * blockBytes,
      metadataUsedBytes: status.usedMetadataBlocks * 4096,
      metadataTotalBytes: status.totalMetadataBlocks * 4096,
      transactionId: status.transactionId,
      needsCheck,
      ...(heldRoot !== undefined && { heldMetadataSnapshot: heldRoot })
    }
  }
}

function findingOf({ kind, pool, thinId, what, remedy }: Finding): ReconcileFinding {
  return { kind, pool, what, remedy, ...(thinId !== undefined && { thinId }) }
}

function refuseInUse(info: DeviceInfo, what: string): void {
  if (info.openCount === 0) return
  throw new DeltamapperError(
    'DM_DEVICE_BUSY',
    `${what} is in use (${info.name} is open ${info.openCount} times)`,
    'unmount it, or find who holds it open (`lsblk`, `lsof`)'
  )
}

function checkSize(bytes: number): void {
  checkCount('size_bytes', bytes, SECTOR_BYTES)
}

/** @throws DM_ARGUMENT_INVALID for what is no whole number of bytes below 2^53, not above 0, or no multiple of `unit` */
function checkCount(field: string, bytes: number, unit = 1): void {
  if (Number.isSafeInteger(bytes) && bytes > 0 && bytes % unit === 0) return
  throw invalid(
    `${field} is ${bytes}`,
    `give a whole number of bytes above 0 and below 2^53${unit > 1 ? `, a multiple of ${unit}` : ''}`
  )
}

function sizeDiffers(thin: OwnedThin, deviceBytes: number): DeltamapperError {
  return new DeltamapperError(
    'DM_CATALOG_DISAGREES',
    `${thin.pool}/${thin.name} has ${thin.sizeBytes} bytes in the catalog, and its device ${thin.dmName} has ${deviceBytes}`,
    'deactivate it and activate it again, which gives it the size in the catalog; or grow it to the larger one'
  )
}

function invalid(what: string, remedy: string): DeltamapperError {
  return new DeltamapperError('DM_ARGUMENT_INVALID', what, remedy)
}

function defect(what: string): DeltamapperError {
  return new DeltamapperError('DM_INTERNAL', what, 'report it with the log lines around it')
}
