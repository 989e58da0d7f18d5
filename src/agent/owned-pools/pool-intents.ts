/**
 * How a change of an owned pool is made. The intent goes to disk, then the kernel is told, then `recoverPool` looks at
 * the kernel and completes or rolls back the intent. So no code runs only after a crash.
 *
 * The caller must hold the pool's lock.
 */
import type { Logger } from 'pino'
import { DeviceMapperError, type DeviceMapper } from '../../../native/device-mapper.ts'
import type { PoolMachine } from '../../devicemapper/thin/pool-machine.ts'
import { asDeltamapperError, DeltamapperError, invalid } from '../../errors.ts'
import type { Catalog } from '../catalog/catalog.ts'
import type { CatalogView, NewIntent, OwnedPool, OwnedThin } from '../catalog/owned-pools.ts'
import type { Finding } from '../catalog/reconcile.ts'
import { recoverPool, type Recovery, unrecovered } from './recover.ts'

/** An owned pool, with what the catalog has of it. */
export interface Entry {
  readonly pool: OwnedPool
  /** Of this pool only. */
  readonly view: CatalogView
}

export class PoolIntents {
  readonly #catalog: Catalog
  readonly #deviceMapper: DeviceMapper
  readonly #logger: Logger
  readonly #machine: PoolMachine

  constructor(catalog: Catalog, deviceMapper: DeviceMapper, logger: Logger, machine: PoolMachine) {
    this.#catalog = catalog
    this.#deviceMapper = deviceMapper
    this.#logger = logger
    this.#machine = machine
  }

  /** @throws DM_NO_SUCH_DEVICE */
  async entry(name: string): Promise<Entry> {
    const { pools, thins, intents } = await this.#catalog.ownedPools.view()
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

  /** The same, after trying to recover interrupted changes. */
  async triedEntry(name: string): Promise<Entry & { findings: readonly Finding[] }> {
    const entry = await this.entry(name)
    if (entry.view.intents.length === 0) return { ...entry, findings: [] }
    const recovery = await this.recover(name)
    this.report(recovery)
    return { ...(await this.entry(name)), findings: recovery.findings }
  }

  /** The same, for a change that must not follow an unfinished one. @throws DM_CATALOG_DISAGREES */
  async recoveredEntry(name: string): Promise<Entry> {
    const { pool, view, findings } = await this.triedEntry(name)
    if (view.intents.length > 0) throw unfinished(name, findings)
    return { pool, view }
  }

  /** @throws DM_NO_SUCH_DEVICE; DM_ARGUMENT_INVALID when it is of another kind */
  async thin(pool: string, name: string, kind?: OwnedThin['kind']): Promise<OwnedThin> {
    const thin = await this.#catalog.ownedPools.findThinByName(pool, name)
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

  /**
   * Makes one change: records the intent, makes the change, and checks that it was made.
   *
   * @param decide the step that the kernel either takes or refuses; after a refusal nothing has happened
   * @param rest the other steps, which a refusal of `decide` skips
   * @throws DM_CATALOG_DISAGREES when the change cannot be seen in the kernel
   */
  async change(
    pool: string,
    intent: NewIntent,
    decide: () => Promise<void>,
    rest: () => Promise<void> = () => Promise.resolve()
  ): Promise<void> {
    await this.#catalog.ownedPools.begin(intent)
    let failure: unknown
    try {
      await decide()
    } catch (error) {
      if (isRefusal(error)) {
        await this.#catalog.ownedPools.rollBack(pool)
        throw error
      }
      failure = error
    }
    if (failure === undefined) await rest().catch((error: unknown) => (failure = error))
    const recovery = await this.recover(pool)
    if (failure !== undefined) {
      // Recovered or not, the caller must know that the call failed.
      this.report(recovery)
      throw failure as Error
    }
    const [undone] = recovery.undone
    if (undone !== undefined) {
      throw new DeltamapperError(
        'DM_CATALOG_DISAGREES',
        `the kernel accepted the change, but it is not made: ${undone}`,
        `look into the kernel log, and at \`deltamapper pool check ${pool}\``
      )
    }
    const { intents } = await this.#catalog.ownedPools.view()
    if (!intents.some((each) => each.pool === pool)) return
    throw unfinished(pool, recovery.findings)
  }

  /** Recovers a pool. What prevents it becomes a finding. */
  async recover(name: string): Promise<Recovery> {
    try {
      return await recoverPool(this.#catalog, this.#deviceMapper, name, this.#machine)
    } catch (error) {
      const known = asDeltamapperError(error)
      if (known.code === 'DM_INTERNAL') this.#logger.error({ err: known.cause ?? known, pool: name }, 'not recovered')
      return { settled: [], undone: [], findings: [unrecovered(name, known)] }
    }
  }

  /** Logs what was recovered, and what could not be. */
  report({ settled, findings }: Recovery): void {
    for (const because of settled) this.#logger.warn({ because }, 'recovered what was interrupted')
    for (const { kind, pool, thinId, what, remedy } of findings) {
      this.#logger.warn({ kind, pool, thinId, remedy }, what)
    }
  }
}

function unfinished(pool: string, findings: readonly Finding[]): DeltamapperError {
  const [first] = findings
  return new DeltamapperError(
    'DM_CATALOG_DISAGREES',
    first?.what ?? `a change of pool ${pool} is not finished`,
    first?.remedy ?? `\`deltamapper pool check ${pool}\` shows what disagrees`
  )
}

/** Whether the kernel refused the step that makes the change: then it is not made, and will not be. */
function isRefusal(error: unknown): boolean {
  if (!(error instanceof DeviceMapperError)) return false
  return error.errno !== undefined && (error.call === 'message' || error.call === 'suspend')
}
