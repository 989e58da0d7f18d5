/**
 * The Kubernetes API over its own client library: our identity and the server's address (kubeconfig, or a pod's service
 * account), requests for plain JSON, and watches. Errors have our codes.
 *
 * Requests are by path, not by the library's typed methods: those turn objects into classes of their own in lists, and
 * leave them as they are in watches.
 */
import { type Cluster, HttpMethod, IsomorphicFetchHttpLibrary, RequestContext, Watch } from '@kubernetes/client-node'
import { connectionFailure } from '../grpc/connection-failure.ts'
import { systemRemedy } from '../system-errors.ts'
import { DeltamapperError } from '../errors.ts'
import { loadKubeConfig, type NamedConfig } from './kubeconfig.ts'
import { fieldOf, type KubernetesObject, textOf } from './object.ts'

/** How long a request may take, in milliseconds. A watch runs for as long as something arrives. */
const REQUEST_MS = 10_000

/** Objects in a page of a list; what the library's own informers and kubectl ask for. */
const PAGE = 500

/**
 * The server ends a watch after so many seconds, with a bookmark shortly before. The library gives up a watch that is
 * silent for 30 seconds: that connection is dead, because the server's own end did not come.
 */
const WATCH_SECONDS = 25

export interface ApiOptions {
  /**
   * A kubeconfig file. By default the environment variable KUBECONFIG, ~/.kube/config, or the service account of the
   * pod, whichever exists.
   */
  readonly kubeconfig?: string | undefined
  /** A context of it other than the current one. */
  readonly context?: string | undefined
}

export type WatchEvent =
  | { readonly type: 'ADDED' | 'MODIFIED' | 'DELETED'; readonly object: KubernetesObject }
  | { readonly type: 'BOOKMARK'; readonly object: { readonly metadata: { readonly resourceVersion: string } } }

/** The resource version is too old for the server: list again. */
export class TooOld extends Error {}

export class KubernetesApi {
  readonly #config: NamedConfig
  readonly #server: string

  /**
   * Connects to nothing yet. @throws DM_CONFIG_INVALID when there is no cluster to be found, or the file is malformed,
   * or means plain HTTP
   */
  constructor({ kubeconfig, context }: ApiOptions = {}) {
    try {
      const config = loadKubeConfig(kubeconfig, context)
      if (config === undefined) throw noCluster()
      this.#config = config
      const cluster = config.getCurrentCluster()
      if (cluster === null) throw new Error('it names no cluster as the current one')
      this.#server = usable(cluster)
    } catch (cause) {
      if (cause instanceof DeltamapperError) throw cause
      // The first line says what is wrong, and where. The rest quotes the file, which may hold a token.
      const [what] = (cause as Error).message.split('\n', 1)
      throw new DeltamapperError(
        'DM_CONFIG_INVALID',
        `${kubeconfig ?? 'the kubeconfig in use'} cannot be used: ${what}`,
        systemRemedy(cause) ?? 'name a kubeconfig file and, if need be, one of its contexts'
      )
    }
  }

  /** The API server's address, for messages. */
  get server(): string {
    return this.#server
  }

  /** One object; undefined when there is none. @throws DM_CLUSTER_UNREACHABLE, DM_ACCESS_DENIED, DM_CLUSTER_SETUP */
  async get(path: string, signal?: AbortSignal): Promise<KubernetesObject | undefined> {
    const { status, body } = await this.#request(HttpMethod.GET, path, { signal })
    if (status === 404) return undefined
    return answered(status, body, 'read', path) as KubernetesObject
  }

  /** Posts an object, and returns the result. @throws DM_CLUSTER_UNREACHABLE, DM_ACCESS_DENIED, DM_CLUSTER_SETUP */
  async create(path: string, object: object, signal?: AbortSignal): Promise<unknown> {
    const { status, body } = await this.#request(HttpMethod.POST, path, { signal, object })
    return answered(status, body, 'create', path)
  }

  /**
   * Hands on all objects, of one moment, a page at a time.
   *
   * @returns the resource version of that moment
   * @throws TooOld, DM_CLUSTER_UNREACHABLE, DM_ACCESS_DENIED, DM_CLUSTER_SETUP
   */
  async list(
    path: string,
    query: Record<string, string>,
    onPage: (items: readonly KubernetesObject[]) => void,
    signal?: AbortSignal
  ): Promise<string> {
    let next: string | undefined
    for (;;) {
      const page = { ...query, limit: String(PAGE), ...(next !== undefined && { continue: next }) }
      const { status, body } = await this.#request(HttpMethod.GET, path, { signal, query: page })
      const list = answered(status, body, 'list', path)
      const resourceVersion = textOf(list, 'metadata', 'resourceVersion')
      const more = fieldOf(list, 'items') ?? []
      if (!Array.isArray(more) || resourceVersion === undefined) throw strange(path)
      onPage(more as KubernetesObject[])
      next = textOf(list, 'metadata', 'continue')
      if (next === undefined) return resourceVersion
    }
  }

  /**
   * Passes on the events after a resource version, until the server ends the watch, which it does about every half
   * minute. Calls `onOpen` once the server has accepted it.
   *
   * @throws TooOld; DM_CLUSTER_UNREACHABLE (also if nothing arrives, not even the end), DM_ACCESS_DENIED,
   *   DM_CLUSTER_SETUP; what `onEvent` throws
   */
  async watch(
    path: string,
    query: Record<string, string>,
    resourceVersion: string,
    onEvent: (event: WatchEvent) => void,
    signal: AbortSignal,
    onOpen: () => void = () => undefined
  ): Promise<void> {
    signal.throwIfAborted()
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    const controller = new AbortController()
    const onAbort = () => controller.abort()
    signal.addEventListener('abort', onAbort, { once: true })
    const parameters = { ...query, resourceVersion, allowWatchBookmarks: 'true', timeoutSeconds: String(WATCH_SECONDS) }
    // The library swallows what its callback throws.
    const take = (type: string, object: unknown) => {
      if (controller.signal.aborted) return
      try {
        if (type === 'ERROR') throw refusal(Number(fieldOf(object, 'code')), object, 'watch', path)
        if (textOf(object, 'metadata', 'resourceVersion') === undefined) throw strange(path)
        onEvent({ type, object } as WatchEvent)
      } catch (error) {
        reject(error)
        controller.abort()
      }
    }
    let open = true
    const ended = (error: unknown) => {
      open = false
      if (!error) return resolve()
      if ((error as Error).name === 'TimeoutError') {
        return reject(this.#unreachable(new Error('nothing came of a watch, not even its end')))
      }
      const status = (error as { statusCode?: number }).statusCode
      reject(
        status === undefined
          ? this.#unreachable(error)
          : refusal(status, { message: (error as Error).message }, 'watch', path)
      )
      if (status === 401) this.#config.forgetCredentials()
    }
    try {
      const left = aborted(controller.signal)
      const opening = new Watch(this.#config).watch(path, parameters, take, ended)
      // Connecting may take long, and leaving does not wait for it.
      void Promise.all([opening, left]).then(
        ([request]) => request.abort(),
        () => undefined
      )
      await Promise.race([opening, left])
      if (open && !controller.signal.aborted) onOpen()
      await Promise.race([promise, left])
      // If an error of our own aborted it, report that.
      if (controller.signal.aborted && !signal.aborted) await promise
    } catch (error) {
      signal.throwIfAborted()
      if (error instanceof TooOld || error instanceof DeltamapperError) throw error
      throw this.#unreachable(error)
    } finally {
      promise.catch(() => undefined)
      signal.removeEventListener('abort', onAbort)
      controller.abort()
    }
    signal.throwIfAborted()
  }

  async #request(
    method: HttpMethod,
    path: string,
    options: { signal?: AbortSignal | undefined; query?: Record<string, string>; object?: object }
  ): Promise<{ status: number; body: unknown }> {
    const { signal, query = {}, object } = options
    const url = new URL(this.#server + path)
    for (const [name, value] of Object.entries(query)) url.searchParams.set(name, value)
    const request = new RequestContext(url.toString(), method)
    request.setHeaderParam('Accept', 'application/json')
    if (object !== undefined) {
      request.setHeaderParam('Content-Type', 'application/json')
      request.setBody(JSON.stringify(object))
    }
    await this.#authenticated(request, signal)
    // A program that makes credentials has a time of its own.
    const timeout = AbortSignal.timeout(REQUEST_MS)
    request.setSignal(signal === undefined ? timeout : AbortSignal.any([signal, timeout]))
    try {
      const response = await new IsomorphicFetchHttpLibrary().send(request).toPromise()
      const status = response.httpStatusCode
      if (status === 401) this.#config.forgetCredentials()
      return { status, body: parsed(await response.body.text()) }
    } catch (error) {
      signal?.throwIfAborted()
      throw this.#unreachable(timeout.aborted ? new Error(`no answer within ${REQUEST_MS / 1000} seconds`) : error)
    }
  }

  /** @throws DM_ACCESS_DENIED when there are no credentials; the signal's reason */
  async #authenticated(request: RequestContext, signal: AbortSignal | undefined): Promise<void> {
    signal?.throwIfAborted()
    const done = this.#config.applySecurityAuthentication(request)
    try {
      await (signal === undefined ? done : Promise.race([done, aborted(signal)]))
    } catch (error) {
      throw this.#noCredentials(error)
    }
    signal?.throwIfAborted()
  }

  /** Reading them failed: a file that is gone, mostly. */
  #noCredentials(error: unknown): DeltamapperError {
    if (error instanceof DeltamapperError) return error
    return new DeltamapperError(
      'DM_ACCESS_DENIED',
      `the credentials for the Kubernetes API at ${this.#server} cannot be had: ${(error as Error).message}`,
      systemRemedy(error) ?? 'put back the file that is named, or correct the kubeconfig',
      { cause: error }
    )
  }

  #unreachable(error: unknown): DeltamapperError {
    const { message, cause } = error as Error
    const said = cause instanceof Error ? cause.message || (cause as NodeJS.ErrnoException).code : message
    const { why, remedy = 'see whether it runs, and can be reached from here' } = connectionFailure(said ?? '')
    return new DeltamapperError(
      'DM_CLUSTER_UNREACHABLE',
      `the Kubernetes API at ${this.#server} does not answer (${why})`,
      remedy,
      { cause: error }
    )
  }
}

/** Nothing is guessed: nobody means the library's guess. */
function noCluster(): DeltamapperError {
  return new DeltamapperError(
    'DM_CONFIG_INVALID',
    'no cluster is configured: neither KUBECONFIG nor ~/.kube/config says which, and this is no pod with a service account',
    'name a kubeconfig file'
  )
}

/**
 * The address of the API server. The library would refuse plain HTTP with each request. @throws when it is malformed
 */
function usable({ server, skipTLSVerify }: Cluster): string {
  const protocol = URL.canParse(server) ? new URL(server).protocol : undefined
  if (protocol === 'http:' && !skipTLSVerify) {
    throw new DeltamapperError(
      'DM_CONFIG_INVALID',
      `the Kubernetes API at ${server} would be asked over plain HTTP, where tokens can be read by others`,
      'name the https:// address of the API server'
    )
  }
  if (protocol !== 'https:' && protocol !== 'http:') throw new Error('the server of its cluster is no https:// address')
  return server.replace(/\/+$/, '')
}

/** The body of an answer that is one. */
function answered(status: number, body: unknown, verb: string, path: string): unknown {
  if (status < 200 || status > 299) throw refusal(status, body, verb, path)
  if (typeof body !== 'object' || body === null) throw strange(path)
  return body
}

/** The meaning of a status other than success (Kubernetes API conventions, "HTTP Status codes"). */
function refusal(status: number, body: unknown, verb: string, path: string): Error {
  const said = textOf(body, 'message') ?? `HTTP status ${status}`
  if (status === 410) return new TooOld(said)
  if (status === 401 || status === 403) {
    return new DeltamapperError(
      'DM_ACCESS_DENIED',
      `the Kubernetes API does not let us ${verb} ${path}: ${said}`,
      'give the service account or user a role with that permission'
    )
  }
  if (status === 404) {
    return new DeltamapperError(
      'DM_CLUSTER_SETUP',
      `the Kubernetes API has no ${path}`,
      'install what it belongs to (the CSI driver, the snapshot CRDs), or correct the name'
    )
  }
  if (status >= 400 && status < 500 && status !== 408 && status !== 429) {
    return new DeltamapperError(
      'DM_CLUSTER_SETUP',
      `the Kubernetes API refused to ${verb} ${path}: ${said}`,
      'correct what it reports'
    )
  }
  return new DeltamapperError(
    'DM_CLUSTER_UNREACHABLE',
    `the Kubernetes API could not ${verb} ${path}: ${said}`,
    'ask again; if it stays, see the log of the API server'
  )
}

function strange(path: string): DeltamapperError {
  return new DeltamapperError(
    'DM_CLUSTER_UNREACHABLE',
    `what answers for the Kubernetes API at ${path} does not speak it`,
    'check the network between here and the API server'
  )
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    // For example a proxy's page. The status tells.
    return undefined
  }
}

function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve()
    else signal.addEventListener('abort', () => resolve(), { once: true })
  })
}
