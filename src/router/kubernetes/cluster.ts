/**
 * The router's knowledge of its cluster: the driver's objects, which give handles their meaning, and the agents'
 * EndpointSlices.
 *
 * A known snapshot is answered from the cache, whatever its age: a snapshot does not move. A miss may be a snapshot
 * newer than the cache: relist once, then look again. If relisting fails, answer UNAVAILABLE, not NOT_FOUND.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Logger } from 'pino'
import { asDeltamapperError, DeltamapperError } from '../../errors.ts'
import type { KubernetesApi } from '../../kubernetes/api.ts'
import { WatchCache } from '../../kubernetes/watch-cache.ts'
import { byName, type Driver, type Find, type Located } from '../drivers/driver.ts'
import { AgentEndpoints, type EndpointOptions } from './agent-endpoints.ts'

/**
 * What nothing was heard of for so long, in milliseconds, is not kept up to date, though its watch may seem to go on: a
 * server ends each watch after half of that (api.ts), and with that says that it is all.
 */
const SILENT_MS = 60_000

export interface ClusterOptions extends EndpointOptions {
  readonly driver: Driver
  /** The agents' Service. */
  readonly namespace: string
  readonly service: string
  readonly logger: Logger
  /** What nothing was heard of for so long counts as not kept up to date, in milliseconds; a minute unless given. */
  readonly silentMs?: number
}

/** The place, and the age of the knowledge if it is not up to date. */
export interface LocatedInCluster extends Located {
  readonly ageSeconds?: number | undefined
}

export class Cluster {
  readonly agents: AgentEndpoints
  readonly #driver: Driver
  readonly #objects: ReadonlyMap<string, WatchCache>
  readonly #slices: WatchCache
  readonly #waitMs: number
  readonly #silentMs: number
  readonly #startedAt = Date.now()
  readonly #find: Find

  constructor(api: KubernetesApi, options: ClusterOptions) {
    const { driver, namespace, service, logger, silentMs = SILENT_MS, ...endpoints } = options
    this.#silentMs = silentMs
    this.#driver = driver
    this.#waitMs = endpoints.waitMs
    this.#objects = new Map(
      Object.entries(driver.resources).map(([name, resource]) => [name, new WatchCache(api, { ...resource, logger })])
    )
    this.#slices = new WatchCache(api, {
      path: endpointSlicePath(namespace),
      query: { labelSelector: `kubernetes.io/service-name=${service}` },
      ...{ keys: byName, fields: [['ports'], ['endpoints']] },
      logger
    })
    this.agents = new AgentEndpoints(this.#slices, endpoints)
    this.#find = (resource, key) => this.#objects.get(resource)?.find(key) ?? []
  }

  /** Whether everything has been listed once. It stays true when the API server goes away. */
  get isKnown(): boolean {
    return this.#caches.every(({ asOf }) => asOf !== undefined)
  }

  /** @throws DM_CLUSTER_UNREACHABLE, DM_CLUSTER_SETUP; what the driver throws */
  async locate(handle: string, signal: AbortSignal): Promise<LocatedInCluster> {
    await this.#known(signal)
    let located: Located | undefined
    let refusal: DeltamapperError | undefined
    try {
      located = this.#driver.locate(handle, this.#find)
      if (located.node !== undefined) return { ...located, ageSeconds: this.staleSeconds }
    } catch (error) {
      refusal = asDeltamapperError(error)
      if (refusal.code === 'DM_HANDLE_INVALID') throw refusal
    }
    try {
      const sooner = await this.#listedOrFound(handle, signal)
      if (sooner !== undefined) return sooner
    } catch (error) {
      signal.throwIfAborted()
      // The agents can be asked; objects are a short cut, if they say anything.
      if (located !== undefined) return { ...located, ageSeconds: this.staleSeconds }
      throw notUpToDate(refusal, error, this.staleSeconds)
    }
    return this.#driver.locate(handle, this.#find)
  }

  /** The agent's name of a snapshot of which the cluster knows nothing any more (Driver.whenGone). */
  whenGone(handle: string, target: Located): string | undefined {
    return this.#driver.whenGone(handle, target, this.#find)
  }

  /**
   * Lists everything anew. Who asks while a list is under way shares it, if that has what is asked for: that it has not
   * may be because the snapshot is younger.
   */
  async #listedOrFound(handle: string, signal: AbortSignal): Promise<Located | undefined> {
    const found = Promise.withResolvers<Located>()
    const look = () => {
      try {
        const located = this.#driver.locate(handle, this.#find)
        if (located.node !== undefined) found.resolve(located)
      } catch {
        // Not yet, and perhaps never.
      }
    }
    const caches = [...this.#objects.values()]
    const stops = caches.map((cache) => cache.onChange(look))
    const listed = Promise.all(caches.map((cache) => cache.refresh(signal, this.#waitMs)))
    // It goes on for others when this one has been found.
    listed.catch(() => undefined)
    try {
      return await Promise.race([found.promise, listed.then(() => undefined)])
    } finally {
      for (const stop of stops) stop()
    }
  }

  close(): void {
    for (const cache of this.#caches) cache.close()
  }

  get #caches(): WatchCache[] {
    return [...this.#objects.values(), this.#slices]
  }

  /**
   * The age of the oldest part that is not up to date. For a part that was never known: since when it has been
   * requested.
   */
  get staleSeconds(): number | undefined {
    const now = Date.now()
    const ages = this.#caches.flatMap(({ failure, asOf = this.#startedAt }) =>
      failure !== undefined || now - asOf > this.#silentMs ? [now - asOf] : []
    )
    return ages.length === 0 ? undefined : Math.round(Math.max(...ages) / 1000)
  }

  /** A router that has just started waits a moment for the API server's answers. */
  async #known(signal: AbortSignal): Promise<void> {
    const giveUp = Date.now() + this.#waitMs
    while (!this.isKnown) {
      if (Date.now() >= giveUp) {
        const [missing] = this.#caches.filter(({ asOf }) => asOf === undefined)
        throw notKnownYet(missing?.failure)
      }
      await sleep(20, undefined, { signal }).catch(() => undefined)
      signal.throwIfAborted()
    }
  }
}

export function endpointSlicePath(namespace: string): string {
  return `/apis/discovery.k8s.io/v1/namespaces/${namespace}/endpointslices`
}

function notKnownYet(failure: DeltamapperError | undefined): DeltamapperError {
  if (failure === undefined) {
    return new DeltamapperError(
      'DM_CLUSTER_UNREACHABLE',
      'the router has just started and has not heard from the Kubernetes API yet',
      'ask again in a moment'
    )
  }
  if (failure.code !== 'DM_ACCESS_DENIED') return failure
  // The caller would take it for a refusal of its own credentials.
  return new DeltamapperError(
    'DM_CLUSTER_UNREACHABLE',
    `the router may not see what it needs to: ${failure.message}`,
    "give the router's service account a role with that permission (docs/reference.md lists them), and ask again",
    { cause: failure }
  )
}

function notUpToDate(
  refusal: DeltamapperError | undefined,
  error: unknown,
  ageSeconds: number | undefined
): DeltamapperError {
  const why = error instanceof DeltamapperError ? error.message : 'the Kubernetes API does not answer in time'
  const age = ageSeconds === undefined ? '' : `, as known ${ageSeconds} seconds ago`
  return new DeltamapperError(
    'DM_CLUSTER_UNREACHABLE',
    `${refusal?.message ?? 'nothing is known of the snapshot'}${age}, and whether that is still so cannot be seen: ${why}`,
    'ask again when the Kubernetes API answers',
    { cause: error }
  )
}
