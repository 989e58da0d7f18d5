/**
 * The objects of one resource, kept up to date by list and watch, and indexed.
 *
 * - The server may forget the way from an old state to the present one (410 Gone): then everything is listed again, and
 *   replaces the old objects at once. Bookmarks keep that rare for resources that hardly change.
 * - While the server does not answer, the known objects stay, and get older; `asOf` says how old. Before reporting that
 *   an object does not exist, ask for a `refresh`.
 * - Only the fields that are asked for are kept of an object, and nothing of objects without a key: they are a router's
 *   memory.
 * - It tries again for ever, at growing and partly random intervals, so that many routers do not come back at the same
 *   moment.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Logger } from 'pino'
import { asDeltamapperError, DeltamapperError } from '../errors.ts'
import { type KubernetesApi, TooOld } from './api.ts'
import { type KubernetesObject, withOnly } from './object.ts'

/** The pause between two tries, in milliseconds: doubled each time, up to the longest. */
const [SHORTEST_PAUSE_MS, LONGEST_PAUSE_MS] = [200, 10_000]

/**
 * The least time between two lists on request, in milliseconds: one list answers any number of callers that ask for
 * missing objects.
 */
const REFRESH_EVERY_MS = 1000

/** A list begins so many milliseconds after the first request for it: requests that come together share it. */
const GATHER_MS = 20

/** A watch that ends sooner without an event, in milliseconds, has failed: asking again at once would never end. */
const SHORTEST_WATCH_MS = 1000

export interface CacheOptions {
  /** Path of the list. */
  readonly path: string
  readonly query?: Record<string, string>
  /** The keys of an object; none if nobody can ask for it. Sees the kept fields only. */
  readonly keys: (object: KubernetesObject) => readonly string[]
  /** What is kept of an object beside its name. */
  readonly fields: readonly (readonly string[])[]
  readonly logger: Logger
}

/** Waits for a list that begins later. */
interface Waiting extends PromiseWithResolvers<void> {
  /** Runs out when the server has not been heard of for as long as whoever waits has patience. */
  readonly silence: NodeJS.Timeout
}

export class WatchCache {
  readonly #api: KubernetesApi
  readonly #options: CacheOptions
  readonly #closing = new AbortController()
  readonly #listeners = new Set<() => void>()
  #objects: Objects
  #resourceVersion: string | undefined
  #asOf: number | undefined
  #failure: DeltamapperError | undefined
  #listedAt = -Infinity
  /** Ends the running watch or pause, so that a list begins. */
  #wake = new AbortController()
  /** Waiting for the next list to begin and end. */
  #waiting: Waiting[] = []
  /** Waiting for any list. */
  readonly #patient = new Set<Waiting>()

  constructor(api: KubernetesApi, options: CacheOptions) {
    this.#api = api
    this.#options = options
    this.#objects = new Objects(options)
    void this.#run()
  }

  close(): void {
    this.#closing.abort()
    this.#wake.abort()
    this.#listeners.clear()
  }

  /**
   * When the objects here were certainly complete and current, in milliseconds since 1970; undefined before the first
   * list.
   */
  get asOf(): number | undefined {
    return this.#asOf
  }

  /** Why it is not up to date, if it is not. */
  get failure(): DeltamapperError | undefined {
    return this.#failure
  }

  find(key: string): readonly KubernetesObject[] {
    return this.#objects.find(key)
  }

  all(): Iterable<KubernetesObject> {
    return this.#objects.all()
  }

  /** Calls `listener` after each change. Returns a function that ends that. */
  onChange(listener: () => void): () => void {
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }

  /**
   * Resolves once everything has been listed anew since now.
   *
   * @param silenceMs how long the server may say nothing, in milliseconds; a list may take as long as it takes
   * @throws the reason why it could not be listed, DM_CLUSTER_UNREACHABLE for silence, or the signal's reason
   */
  async refresh(signal: AbortSignal, silenceMs: number): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    const silence = setTimeout(() => reject(this.#silent(silenceMs)), silenceMs)
    const waiting: Waiting = { promise, resolve, reject, silence }
    this.#waiting.push(waiting)
    this.#patient.add(waiting)
    this.#wake.abort()
    const onAbort = () => reject(signal.reason as Error)
    signal.addEventListener('abort', onAbort, { once: true })
    if (signal.aborted) onAbort()
    try {
      await promise
    } finally {
      clearTimeout(silence)
      this.#patient.delete(waiting)
      signal.removeEventListener('abort', onAbort)
    }
  }

  async #run(): Promise<void> {
    let pause = SHORTEST_PAUSE_MS
    while (!this.#closing.signal.aborted) {
      const listing = this.#resourceVersion === undefined || this.#waiting.length > 0
      try {
        await (listing ? this.#list() : this.#watch(this.#wakeable()))
        pause = SHORTEST_PAUSE_MS
        this.#recovered()
      } catch (error) {
        if (this.#closing.signal.aborted) break
        if (!listing && this.#waiting.length > 0) continue
        if (error instanceof TooOld) {
          this.#resourceVersion = undefined
          // A server that answers this right after a list would be asked without end.
          if (Date.now() - this.#listedAt > pause) continue
        } else this.#failed(asDeltamapperError(error))
        await sleep(pause * (0.5 + Math.random()), undefined, { signal: this.#wakeable() }).catch(() => undefined)
        pause = Math.min(2 * pause, LONGEST_PAUSE_MS)
      }
    }
    for (const waiting of this.#waiting) waiting.reject(new Error('the cache was closed'))
  }

  /** Aborted when a caller asks for a list, or the cache is closed. */
  #wakeable(): AbortSignal {
    this.#wake = new AbortController()
    if (this.#waiting.length > 0) this.#wake.abort()
    return AbortSignal.any([this.#wake.signal, this.#closing.signal])
  }

  /** Replaces everything. Later requests are not answered by this list. */
  async #list(): Promise<void> {
    const early = Math.max(this.#listedAt + REFRESH_EVERY_MS - Date.now(), this.#waiting.length > 0 ? GATHER_MS : 0)
    if (early > 0) await sleep(early, undefined, { signal: this.#closing.signal })
    const waiting = this.#waiting
    this.#waiting = []
    this.#listedAt = Date.now()
    const begun = this.#listedAt
    const { path, query = {} } = this.#options
    try {
      const listed = new Objects(this.#options)
      const onPage = (items: readonly KubernetesObject[]) => {
        for (const object of items) listed.put(object)
        for (const { silence } of this.#patient) silence.refresh()
      }
      this.#resourceVersion = await this.#api.list(path, query, onPage, this.#closing.signal)
      this.#objects = listed
      this.#asOf = begun
      for (const { resolve } of waiting) resolve()
      this.#changed()
    } catch (error) {
      for (const { reject } of waiting) reject(error)
      throw error
    }
  }

  async #watch(signal: AbortSignal): Promise<void> {
    const { path, query = {} } = this.#options
    const begun = Date.now()
    let heard: number | undefined
    let lasting: NodeJS.Timeout | undefined
    try {
      await this.#api.watch(
        path,
        query,
        this.#resourceVersion!,
        ({ type, object }) => {
          this.#asOf = heard = Date.now()
          this.#resourceVersion = object.metadata.resourceVersion!
          this.#recovered()
          if (type === 'BOOKMARK') return
          if (type === 'DELETED') this.#objects.remove(object)
          else this.#objects.put(object)
          this.#changed()
        },
        signal,
        () => (lasting = setTimeout(() => this.#recovered(), SHORTEST_WATCH_MS))
      )
    } finally {
      clearTimeout(lasting)
    }
    if (heard === undefined && Date.now() - begun < SHORTEST_WATCH_MS) throw this.#endedAtOnce()
    // The server has ended it without an event.
    this.#asOf = heard ?? begun
  }

  #endedAtOnce(): DeltamapperError {
    return new DeltamapperError(
      'DM_CLUSTER_UNREACHABLE',
      `the Kubernetes API at ${this.#api.server} ends every watch of ${this.#options.path} at once`,
      'check the network between here and the API server; if it stays, see its log'
    )
  }

  #silent(silenceMs: number): DeltamapperError {
    return new DeltamapperError(
      'DM_CLUSTER_UNREACHABLE',
      `nothing came of a list of ${this.#options.path} from the Kubernetes API at ${this.#api.server} for ${silenceMs / 1000} seconds`,
      'see whether it runs, and can be reached from here'
    )
  }

  #changed(): void {
    for (const listener of this.#listeners) listener()
  }

  #failed(failure: DeltamapperError): void {
    if (this.#failure?.message !== failure.message) {
      const { path, logger } = this.#options
      const ageSeconds = this.#asOf === undefined ? undefined : Math.round((Date.now() - this.#asOf) / 1000)
      logger.warn(
        { path, code: failure.code, reason: failure.message, objects: this.#objects.count, ageSeconds },
        this.#asOf === undefined ? 'cannot be listed yet' : 'is no longer kept up to date; what is known stays in use'
      )
    }
    this.#failure = failure
  }

  #recovered(): void {
    if (this.#failure === undefined) return
    this.#failure = undefined
    const { path, logger } = this.#options
    logger.info({ path, objects: this.#objects.count }, 'is kept up to date again')
  }
}

/** What is kept of the objects of one resource, by name and by keys. */
class Objects {
  readonly #options: Pick<CacheOptions, 'keys' | 'fields'>
  readonly #byId = new Map<string, KubernetesObject>()
  readonly #byKey = new Map<string, Set<KubernetesObject>>()

  constructor(options: Pick<CacheOptions, 'keys' | 'fields'>) {
    this.#options = options
  }

  get count(): number {
    return this.#byId.size
  }

  all(): Iterable<KubernetesObject> {
    return this.#byId.values()
  }

  find(key: string): readonly KubernetesObject[] {
    return [...(this.#byKey.get(key) ?? [])]
  }

  put(object: KubernetesObject): void {
    this.remove(object)
    const { keys, fields } = this.#options
    const kept = withOnly(object, fields)
    const keysOfIt = keys(kept)
    if (keysOfIt.length === 0) return
    this.#byId.set(idOf(kept), kept)
    for (const key of keysOfIt) {
      const objects = this.#byKey.get(key)
      if (objects) objects.add(kept)
      else this.#byKey.set(key, new Set([kept]))
    }
  }

  remove(object: KubernetesObject): void {
    const known = this.#byId.get(idOf(object))
    if (known === undefined) return
    this.#byId.delete(idOf(object))
    for (const key of this.#options.keys(known)) {
      const objects = this.#byKey.get(key)
      objects?.delete(known)
      if (objects?.size === 0) this.#byKey.delete(key)
    }
  }
}

function idOf({ metadata: { namespace = '', name } }: KubernetesObject): string {
  return `${namespace}/${name}`
}
