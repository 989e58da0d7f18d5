/**
 * Recovers one pool: completes or rolls back what an agent that died left half done, by the rules of `reconcile`. Every
 * other difference is returned, for a person to decide.
 *
 * Every change takes the same path, because seeing a change in the kernel is what completes its intent.
 */
import type { DeviceMapper } from '../../../native/device-mapper.ts'
import { dropInactiveTable } from '../../devicemapper/inactive-table.ts'
import type { PoolMachine } from '../../devicemapper/thin/pool-machine.ts'
import { ThinPool } from '../../devicemapper/thin/pool.ts'
import { DeltamapperError } from '../../errors.ts'
import type { Catalog } from '../catalog/catalog.ts'
import type { CatalogView, OwnedPool } from '../catalog/owned-pools.ts'
import { type Finding, reconcile, type Step } from '../catalog/reconcile.ts'
import { readKernelView } from './kernel-view.ts'
import { type SurveyedDevice, surveyDevices } from '../node/survey.ts'
import { poolUuid, thinUuid } from '../node/naming.ts'

export interface Recovery {
  /** What was done, and why, for the log and for people. */
  readonly settled: readonly string[]
  /** Those of them that were not done, and are rolled back. */
  readonly undone: readonly string[]
  readonly findings: readonly Finding[]
}

/**
 * Recovers one pool. Nothing else may run in it.
 *
 * @throws what the catalog and device-mapper calls throw: then it is not recovered, and can be tried again
 */
export async function recoverPool(
  catalog: Catalog,
  deviceMapper: DeviceMapper,
  name: string,
  machine: PoolMachine
): Promise<Recovery> {
  const view = viewOf(await catalog.ownedPools.view(), name)
  const [pool] = view.pools
  if (pool === undefined) return { settled: [], undone: [], findings: [] }

  const settled = await freeDevices(deviceMapper, view, await surveyDevices(deviceMapper), machine)
  const survey = await surveyDevices(deviceMapper)
  const { steps, findings } = reconcile(view, await readKernelView(deviceMapper, view.pools, survey, machine))
  for (const step of steps) {
    await carryOut(catalog, new ThinPool(deviceMapper, poolUuid(pool), machine), pool, step)
    settled.push(step.because)
  }
  const undone = steps.filter(({ step }) => step === 'roll-back').map(({ because }) => because)
  return { settled, undone, findings: [...findings, ...impostor(pool, survey)] }
}

/** The part about one pool. */
function viewOf({ pools, thins, intents }: CatalogView, name: string): CatalogView {
  return {
    pools: pools.filter((each) => each.name === name),
    thins: thins.filter((each) => each.pool === name),
    intents: intents.filter((each) => each.pool === name)
  }
}

/**
 * Cleans up after an interrupted call: resumes suspended devices, drops tables that were loaded but not activated,
 * removes devices without a table. Suspended devices block everything that uses them; the others are in the way of the
 * next attempt.
 */
async function freeDevices(
  deviceMapper: DeviceMapper,
  { pools, thins, intents }: CatalogView,
  survey: readonly SurveyedDevice[],
  { clock }: PoolMachine
): Promise<string[]> {
  const created = intents.flatMap((intent) => ('thin' in intent ? [{ id: intent.thin }] : []))
  const ours = new Set([...pools.map(poolUuid), ...[...thins, ...created].map(thinUuid)])
  const done: string[] = []
  for (const { info } of survey) {
    if (!ours.has(info.uuid)) continue
    const reference = { uuid: info.uuid }
    if (!info.hasLiveTable) {
      await deviceMapper.remove(reference, { retry: true })
      done.push(`${info.name} was made and got no table: it is removed`)
      continue
    }
    if (info.hasInactiveTable) {
      await deviceMapper.clear(reference)
      done.push(`${info.name} had a table loaded that was never put in place: it is dropped`)
    }
    if (info.suspended) {
      await deviceMapper.resume(reference)
      done.push(`${info.name} was suspended: it is resumed`)
    }
  }
  for (const intent of intents) {
    if (intent.kind !== 'create-snapshot' || intent.suspends === undefined) continue
    // A suspend whose caller has died may still wait for I/O in flight, and does not show yet. Resuming waits for it,
    // and undoes it.
    const device = survey.find(({ info }) => ours.has(info.uuid) && info.name === intent.suspends)
    if (!device || device.info.suspended) continue
    await dropInactiveTable(deviceMapper, { uuid: device.info.uuid }, clock)
    await deviceMapper.resume({ uuid: device.info.uuid })
  }
  return done
}

async function carryOut(catalog: Catalog, target: ThinPool, pool: OwnedPool, step: Step): Promise<void> {
  switch (step.step) {
    case 'resume':
      // freeDevices has done it, whatever the reason of the suspension.
      return
    case 'set-transaction-id':
      return target.setTransactionId(step.from, step.to)
    case 'complete':
      return catalog.ownedPools.complete(pool.name, { creationTime: step.creationTime })
    case 'roll-back':
      return catalog.ownedPools.rollBack(pool.name)
  }
}

/** A foreign device that has the name of our pool. */
function impostor(pool: OwnedPool, survey: readonly SurveyedDevice[]): Finding[] {
  const device = survey.find(({ info }) => info.name === pool.dmName)
  if (!device || device.info.uuid === poolUuid(pool)) return []
  return [
    {
      kind: 'pool-inactive',
      pool: pool.name,
      thinId: undefined,
      what: `there is a device ${pool.dmName}, which is not the pool ${pool.name} of this agent`,
      remedy: `rename or remove it (\`dmsetup rename ${pool.dmName} …\`) before the pool is activated`
    }
  ]
}

/** A pool that cannot be compared at all, as a finding. */
export function unrecovered(pool: string, error: DeltamapperError): Finding {
  return {
    kind: 'pool-unreadable',
    pool,
    thinId: undefined,
    what: `pool ${pool} could not be compared with the kernel: ${error.message}`,
    remedy: error.remedy
  }
}
