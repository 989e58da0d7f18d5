/** Dispatches the calls of the Admin service to owned pools or tracked volumes. */
import { type AdminBackend, adminMethods, type EraBackend, type PoolBackend } from '../grpc/admin.ts'

/** Tracked volumes, as far as a call does not tell that it is about one. */
export interface TrackedVolumes extends EraBackend {
  has(name: string): Promise<boolean>
  deleteSnapshot(volume: string, name: string): Promise<void>
}

export function administration(pools: PoolBackend, tracked: TrackedVolumes): AdminBackend {
  const calls = adminMethods.map((method) => {
    const answering = method in pools ? pools : tracked
    return [method, (answering as AdminBackend)[method].bind(answering)]
  })
  return {
    ...(Object.fromEntries(calls) as AdminBackend),
    /** The one call that may mean either. */
    async deleteSnapshot(request) {
      if (!(await tracked.has(request.pool))) return pools.deleteSnapshot(request)
      await tracked.deleteSnapshot(request.pool, request.name)
      return {}
    }
  }
}
