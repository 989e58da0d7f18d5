/**
 * The volumes and snapshots in owned pools: create, grow, activate, delete. And where catalog and pool disagree, a
 * person may add them to the catalog or remove them from it.
 *
 * The caller must hold the pool's lock.
 */
import type { DeviceMapper } from '../../../native/device-mapper.ts'
import { MAX_DEVICES } from '../../devicemapper/thin/device-details.ts'
import type { PoolMachine } from '../../devicemapper/thin/pool-machine.ts'
import { DeltamapperError, invalid } from '../../errors.ts'
import type { Catalog } from '../catalog/catalog.ts'
import { deviceNameTaken, thinNameTaken } from '../catalog/name-taken.ts'
import type { OwnedPool, OwnedThin } from '../catalog/owned-pools.ts'
import { ActivePool, refuseInUse } from './active-pool.ts'
import type { PoolIntents } from './pool-intents.ts'
import { checkThinName, thinDeviceName, thinUuid } from '../node/naming.ts'
import { checkSize } from '../node/request-checks.ts'
import { SECTOR_BYTES } from '../../units.ts'

/** A thin and the pool it is in. */
export interface Placed {
  readonly pool: OwnedPool
  readonly thin: OwnedThin
}

export class Thins {
  readonly #intents: PoolIntents
  readonly #catalog: Catalog
  readonly #deviceMapper: DeviceMapper
  readonly #machine: PoolMachine

  constructor(intents: PoolIntents, catalog: Catalog, deviceMapper: DeviceMapper, machine: PoolMachine) {
    this.#intents = intents
    this.#catalog = catalog
    this.#deviceMapper = deviceMapper
    this.#machine = machine
  }

  async createVolume(poolName: string, name: string, sizeBytes: number, inactive: boolean): Promise<Placed> {
    checkSize(sizeBytes)
    const { active, common, thinId, moveOn } = await this.#beforeCreating(poolName, name)
    const intent = { kind: 'create-volume' as const, ...common, sizeBytes }
    await this.#intents.change(poolName, intent, () => active.target.createThin(thinId), moveOn)
    const thin = await this.#intents.thin(poolName, name)
    if (!inactive) await this.activate(active.pool, thin, false)
    return { pool: active.pool, thin }
  }

  async createSnapshot(poolName: string, originName: string, name: string): Promise<Placed> {
    const { active, common, thinId, moveOn } = await this.#beforeCreating(poolName, name)
    const origin = await this.#intents.thin(poolName, originName)
    const remedy = `\`deltamapper pool check ${poolName}\` shows what disagrees`
    await this.#refuseReplaced(active, origin, remedy)
    // An active origin is suspended meanwhile. A device that we do not know of would not be suspended, and could be
    // written to.
    const device = await active.onlyDevice(origin)
    if (device && device.sizeBytes !== origin.sizeBytes) throw sizeDiffers(origin, device.sizeBytes)
    const intent = {
      ...{ kind: 'create-snapshot' as const, ...common, sizeBytes: origin.sizeBytes },
      origin: origin.id,
      suspends: device?.info.name
    }
    const reference = device && { uuid: device.info.uuid }
    const take = () => active.target.createSnapshot(thinId, origin.thinId, reference)
    await this.#intents.change(poolName, intent, take, moveOn)
    // The kernel knows ids only: others may have put another device in the origin's place until it was asked.
    await this.#refuseReplaced(active, origin, remedy).catch(async (error: unknown) => {
      await this.delete(poolName, name, 'snapshot')
      throw error
    })
    return { pool: active.pool, thin: await this.#intents.thin(poolName, name) }
  }

  async grow(poolName: string, name: string, sizeBytes: number): Promise<Placed> {
    checkSize(sizeBytes)
    const { pool } = await this.#intents.recoveredEntry(poolName)
    const thin = await this.#intents.thin(poolName, name, 'volume')
    if (sizeBytes < thin.sizeBytes) {
      throw invalid(
        `${poolName}/${name} has ${thin.sizeBytes} bytes, more than the ${sizeBytes} it is to have`,
        'a volume cannot shrink: make a smaller one, and copy'
      )
    }
    const active = this.#active(pool)
    // What was begun in a pool that is not active would wait, and be done after the call was refused.
    await active.refuseInactive()
    const device = await active.onlyDevice(thin)
    if (device && device.sizeBytes > sizeBytes) {
      throw invalid(
        `the device of ${poolName}/${name} has ${device.sizeBytes} bytes, more than the ${sizeBytes} it is to have`,
        `give ${device.sizeBytes}, or deactivate it first`
      )
    }
    const resize = async () => {
      if (device && device.sizeBytes < sizeBytes) {
        await active.target.resizeThin({ uuid: device.info.uuid }, sizeBytes)
      }
    }
    if (sizeBytes === thin.sizeBytes) await resize()
    else await this.#intents.change(poolName, { kind: 'resize-thin', pool: poolName, thin: thin.id, sizeBytes }, resize)
    return { pool, thin: await this.#intents.thin(poolName, name) }
  }

  async delete(poolName: string, name: string, kind: OwnedThin['kind']): Promise<void> {
    const { pool } = await this.#intents.recoveredEntry(poolName)
    const thin = await this.#intents.thin(poolName, name, kind)
    const active = this.#active(pool)
    await active.refuseInactive()
    await active.target.refuseUnlessChangeable()
    await this.#refuseReplaced(
      active,
      thin,
      `\`deltamapper volume forget ${poolName}/${name}\` strikes it off the catalog`
    )
    await this.deactivate(pool, thin)
    const { transactionId } = await active.numbers()
    await this.#intents.change(
      poolName,
      { kind: 'delete-thin', pool: poolName, thin: thin.id, transactionId },
      () => active.target.deleteThin(thin.thinId),
      () => active.target.setTransactionId(transactionId, transactionId + 1n)
    )
  }

  /** Makes its device. Does nothing if there is a suitable one. @throws DM_DEVICE_BUSY, DM_CATALOG_DISAGREES */
  async activate(pool: OwnedPool, thin: OwnedThin, readOnly: boolean): Promise<void> {
    const active = this.#active(pool)
    const device = await active.deviceOf(thin)
    if (device === undefined) {
      const { dmName: name, thinId, sizeBytes } = thin
      await active.target.activateThin({ name, uuid: thinUuid(thin), thinId, sizeBytes, readOnly })
    } else if (device.sizeBytes !== thin.sizeBytes) throw sizeDiffers(thin, device.sizeBytes)
    else if (device.info.readOnly && !readOnly) {
      throw new DeltamapperError(
        'DM_DEVICE_BUSY',
        `${pool.name}/${thin.name} is active already, read-only`,
        'deactivate it first'
      )
    }
  }

  /** Removes its device. Does nothing if it is not active. @throws DM_DEVICE_BUSY while it is in use */
  async deactivate(pool: OwnedPool, thin: OwnedThin): Promise<void> {
    const info = await this.#deviceMapper.info({ uuid: thinUuid(thin) })
    if (!info) return
    refuseInUse(info, `${pool.name}/${thin.name}`)
    await this.#active(pool).target.deactivateThin({ uuid: info.uuid })
  }

  /**
   * Adds a thin device that only the pool has to the catalog. @param origin the name of its origin; empty for a volume
   */
  async adopt(poolName: string, thinId: number, as: string, sizeBytes: number, origin: string): Promise<Placed> {
    checkThinName(as)
    checkSize(sizeBytes)
    const { pool } = await this.#intents.recoveredEntry(poolName)
    const active = this.#active(pool)
    await active.refuseInactive()
    const { details, mappedEnd } = await active.look(thinId)
    const device = (await active.devices()).find((each) => each.thinId === thinId)
    if (sizeBytes <= mappedEnd - pool.dataBlockSectors * SECTOR_BYTES || (device && device.sizeBytes !== sizeBytes)) {
      throw invalid(
        `${sizeBytes} bytes cannot be the size of thin device ${thinId}: it ${
          device ? `is active as ${device.dmName} with ${device.sizeBytes}` : `maps blocks up to byte ${mappedEnd}`
        }`,
        'give the size that it was used with: what lies beyond would be missing from backups'
      )
    }
    const thin = await this.#catalog.ownedPools.adoptThin({
      ...{ pool: poolName, name: as, thinId, sizeBytes, dmName: thinDeviceName(poolName, as) },
      creationTime: details.creationTime,
      transactionId: details.transactionId,
      origin: origin === '' ? undefined : (await this.#intents.thin(poolName, origin)).id
    })
    return { pool, thin }
  }

  /** Removes a thin that the pool has lost from the catalog. @param unseen even if the pool cannot be read */
  async forget(poolName: string, name: string, unseen: boolean): Promise<void> {
    const { pool, view } = unseen
      ? await this.#intents.triedEntry(poolName)
      : await this.#intents.recoveredEntry(poolName)
    const thin = await this.#intents.thin(poolName, name)
    const kernelThins = await this.#active(pool)
      .thins()
      .catch((error: unknown) => {
        if (unseen && error instanceof DeltamapperError) return undefined
        throw error
      })
    const there = kernelThins?.get(thin.thinId)
    if (there?.creationTime === thin.creationTime && there.transactionId === thin.transactionId) {
      throw new DeltamapperError(
        'DM_DEVICE_BUSY',
        `${poolName}/${name} is in the pool, as thin device ${thin.thinId}`,
        'delete it if it is not needed: forgetting is for what the pool has lost'
      )
    }
    if (view.intents.length > 0) await this.#catalog.ownedPools.acceptTransactionId(poolName, pool.transactionId)
    await this.#catalog.ownedPools.forgetThin(thin.id)
  }

  #active(pool: OwnedPool): ActivePool {
    return new ActivePool(this.#deviceMapper, pool, this.#machine)
  }

  /** The common part of creating a volume and a snapshot. */
  async #beforeCreating(poolName: string, name: string) {
    checkThinName(name)
    const dmName = thinDeviceName(poolName, name)
    const { pool, view } = await this.#intents.recoveredEntry(poolName)
    const active = this.#active(pool)
    await active.refuseInactive()
    await active.target.refuseUnlessChangeable()
    const known = await this.#catalog.ownedPools.findThinByName(poolName, name)
    if (known !== undefined) throw thinNameTaken(known)
    if (await this.#deviceMapper.info(dmName)) throw deviceNameTaken(dmName)
    const thinId = freeId(new Set([...view.thins.map((thin) => thin.thinId), ...(await active.thins()).keys()]))
    const { transactionId } = await active.numbers()
    return {
      ...{ active, thinId, common: { pool: poolName, name, thinId, dmName, transactionId } },
      moveOn: () => active.target.setTransactionId(transactionId, transactionId + 1n)
    }
  }

  /** @throws DM_CATALOG_DISAGREES when the pool has lost it, or has another device of its id */
  async #refuseReplaced(active: ActivePool, thin: OwnedThin, remedy: string): Promise<void> {
    const there = (await active.thins()).get(thin.thinId)
    if (there?.creationTime === thin.creationTime && there.transactionId === thin.transactionId) return
    const what = there
      ? `thin device ${thin.thinId} of pool ${thin.pool} is not the ${thin.kind} ${thin.name} that it was`
      : `the pool has lost ${thin.pool}/${thin.name}`
    throw new DeltamapperError('DM_CATALOG_DISAGREES', what, remedy)
  }
}

/** The id after the highest, so that ids are reused as late as possible; a free lower one if there is none. */
function freeId(taken: ReadonlySet<number>): number {
  let id = 0
  for (const each of taken) id = Math.max(id, each + 1)
  if (id >= MAX_DEVICES) for (id = 0; taken.has(id);) id++
  if (id < MAX_DEVICES) return id
  throw new DeltamapperError('DM_DEVICE_BUSY', 'the pool has no free thin device id', 'delete what is not needed')
}

function sizeDiffers(thin: OwnedThin, deviceBytes: number): DeltamapperError {
  return new DeltamapperError(
    'DM_CATALOG_DISAGREES',
    `${thin.pool}/${thin.name} has ${thin.sizeBytes} bytes in the catalog, and its device ${thin.dmName} has ${deviceBytes}`,
    'deactivate it and activate it again, which gives it the size in the catalog; or grow it to the larger one'
  )
}
