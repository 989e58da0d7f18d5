/**
 * Dispatches the calls of the Admin service to owned pools, tracked volumes or records of bases. Here the agent's types
 * meet those of admin.proto, and the compiler checks one against the other.
 */
import type { AdminBackend, AdminMethod } from '../grpc/admin.ts'

const POOL_CALLS = [
  ...(['createPool', 'activatePool', 'deactivatePool', 'growPool', 'removePool', 'getPool', 'listPools'] as const),
  ...(['createVolume', 'growVolume', 'activateVolume', 'deactivateVolume', 'deleteVolume', 'listVolumes'] as const),
  ...(['createSnapshot', 'listSnapshots', 'reconcile', 'acceptKernel', 'adoptThin', 'forgetThin'] as const)
]
const ERA_CALLS = [
  ...(['attachEra', 'detachEra', 'activateEra', 'deactivateEra', 'growEra', 'listEra'] as const),
  ...(['createEraSnapshot', 'beginSnapshot', 'endSnapshot', 'listEraSnapshots'] as const)
]
const BASE_CALLS = ['listBases', 'getBase', 'dropBase', 'readBase', 'lendBase'] as const

/** Pools of our own. */
export type PoolBackend = Pick<AdminBackend, (typeof POOL_CALLS)[number] | 'deleteSnapshot'>

/** Tracked volumes, as far as a call does not tell that it is about one. */
export interface EraBackend extends Pick<AdminBackend, (typeof ERA_CALLS)[number]> {
  has(name: string): Promise<boolean>
  deleteSnapshot(volume: string, name: string): Promise<void>
}

/** Records of bases. */
export type BaseBackend = Pick<AdminBackend, (typeof BASE_CALLS)[number]>

export function administration(pools: PoolBackend, tracked: EraBackend, bases: BaseBackend): AdminBackend {
  return {
    ...calls(pools, POOL_CALLS),
    ...calls(tracked, ERA_CALLS),
    ...calls(bases, BASE_CALLS),
    /** The one call that may mean either. */
    async deleteSnapshot(request) {
      if (!(await tracked.has(request.pool))) return pools.deleteSnapshot(request)
      await tracked.deleteSnapshot(request.pool, request.name)
      return {}
    }
  }
}

function calls<Call extends AdminMethod>(
  backend: Pick<AdminBackend, Call>,
  names: readonly Call[]
): Pick<AdminBackend, Call> {
  const bound = names.map((name) => [name, (backend[name] as () => unknown).bind(backend)])
  return Object.fromEntries(bound) as Pick<AdminBackend, Call>
}
