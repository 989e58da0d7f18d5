/**
 * A Kubernetes API server as far as deltamapper needs one, over real HTTP: objects with resource versions, lists in pages, watches with
 * bookmarks and 410 Gone, RBAC in the small, and tokens. It has the manners of the real one: an event's resource version grows, a deleted object comes
 * with the version of its deletion, and a watch from a version that was compacted is told so, as a status or as an event.
 */
import { once } from 'node:events'
import { createServer, type IncomingMessage, type RequestListener, type Server, type ServerResponse } from 'node:http'
import { createServer as createTlsServer } from 'node:https'
import type { AddressInfo, Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { readFile, writeFile } from 'node:fs/promises'
import type { ExecutionContext } from 'ava'
import type { KubernetesObject } from '../../src/kubernetes/object.ts'
import type { TlsFiles } from '../../src/grpc/tls.ts'
import { listPathOf } from './cluster-objects.ts'
import { oncePortIsFree } from './same-port.ts'

interface StoredEvent {
  readonly version: number
  readonly type: 'ADDED' | 'MODIFIED' | 'DELETED'
  readonly path: string
  readonly object: KubernetesObject
}

interface Watcher {
  readonly path: string
  readonly url: URL
  readonly response: ServerResponse
}

export interface IssuedToken {
  readonly audience: string
  readonly serviceAccount: string
  /** Milliseconds since 1970. */
  readonly expires: number
}

export class FakeApiServer {
  /** The only one that is let in. */
  readonly token = 'a-token-of-the-cluster'
  /** Method and path of each request, in order. */
  readonly requests: string[] = []
  readonly tokens = new Map<string, IssuedToken>()
  /** How long a token is good for, in seconds, whatever was asked for. */
  tokenSeconds = 600
  /** Paths (with method) that the role does not grant. */
  readonly forbidden = new Set<string>()
  /** While true, watchers are not told of anything, as if it were still on its way. */
  quiet = false
  /** What becomes of watches that are asked for: ended at once, never answered, or begun and then forgotten. */
  watchesAre: 'answered' | 'ended' | 'unanswered' | 'forgotten' = 'answered'
  /** Objects in a page, at most. */
  pageSize = 2
  /** How long each page of a list takes, in milliseconds; Infinity for a server that has nothing to say. */
  pageMs = 0
  readonly #objects = new Map<string, KubernetesObject>()
  readonly #events: StoredEvent[] = []
  readonly #watchers = new Set<Watcher>()
  readonly #sockets = new Set<Socket>()
  #version = 100
  #compacted = 0
  #server: Server | undefined
  #port = 0
  readonly #tls: TlsFiles | undefined

  private constructor(tls: TlsFiles | undefined) {
    this.#tls = tls
  }

  /** @param tls a certificate for `localhost`: it then speaks HTTPS */
  static async start(
    t: ExecutionContext,
    objects: readonly KubernetesObject[] = [],
    tls?: TlsFiles
  ): Promise<FakeApiServer> {
    const server = new FakeApiServer(tls)
    for (const object of objects) server.put(object)
    await server.listen()
    t.teardown(() => server.stop())
    return server
  }

  get address(): string {
    return this.#tls ? `https://localhost:${this.#port}` : `http://127.0.0.1:${this.#port}`
  }

  get watchers(): number {
    return this.#watchers.size
  }

  /** A kubeconfig for it, written to a file. */
  async kubeconfig(path: string): Promise<string> {
    // The library sends no token in the clear unless it is told not to care.
    const trust = this.#tls ? { 'certificate-authority': this.#tls.ca } : { 'insecure-skip-tls-verify': true }
    const config = {
      apiVersion: 'v1',
      kind: 'Config',
      clusters: [{ name: 'fake', cluster: { server: this.address, ...trust } }],
      users: [{ name: 'somebody', user: { token: this.token } }],
      contexts: [{ name: 'fake', context: { cluster: 'fake', user: 'somebody' } }],
      'current-context': 'fake'
    }
    await writeFile(path, JSON.stringify(config))
    return path
  }

  /** Begins to listen, on the port that it had before. */
  async listen(): Promise<void> {
    const serve: RequestListener = (request, response) => void this.#serve(request, response)
    const server = this.#tls
      ? createTlsServer({ cert: await readFile(this.#tls.certificate), key: await readFile(this.#tls.key) }, serve)
      : createServer(serve)
    server.on('connection', (socket: Socket) => {
      this.#sockets.add(socket)
      socket.once('close', () => this.#sockets.delete(socket))
    })
    await oncePortIsFree(async () => {
      server.listen(this.#port, this.#tls ? 'localhost' : '127.0.0.1')
      await once(server, 'listening')
    })
    this.#port = (server.address() as AddressInfo).port
    this.#server = server
  }

  /** Goes away as a server that is killed does. Its objects stay. */
  async stop(): Promise<void> {
    const server = this.#server
    if (server === undefined) return
    this.#server = undefined
    this.#watchers.clear()
    const closed = once(server, 'close')
    server.close()
    for (const socket of this.#sockets) socket.destroy()
    await closed
  }

  put(object: KubernetesObject): KubernetesObject {
    const path = listPathOf(object)
    const known = this.#objects.get(keyOf(path, object))
    const version = ++this.#version
    const stored = {
      ...object,
      metadata: {
        uid: known?.metadata.uid ?? `uid-${version}`,
        creationTimestamp: new Date().toISOString().replace(/\.\d+/, ''),
        ...object.metadata,
        managedFields: [{ manager: 'test', fieldsV1: {} }],
        resourceVersion: String(version)
      }
    }
    this.#objects.set(keyOf(path, object), stored)
    this.#tell({ version, type: known === undefined ? 'ADDED' : 'MODIFIED', path, object: stored })
    return stored
  }

  delete(object: KubernetesObject): void {
    const path = listPathOf(object)
    const known = this.#objects.get(keyOf(path, object))
    if (known === undefined) throw new Error(`there is no ${keyOf(path, object)}`)
    this.#objects.delete(keyOf(path, object))
    const version = ++this.#version
    const gone = { ...known, metadata: { ...known.metadata, resourceVersion: String(version) } }
    this.#tell({ version, type: 'DELETED', path, object: gone })
  }

  /** An object as it is now. @param list the path of the list that it is in, without a namespace */
  object(list: string, name: string, namespace = ''): KubernetesObject | undefined {
    return this.#objects.get(`${list} ${namespace}/${name}`)
  }

  /** Forgets how the present state came about: whoever goes on from before it has to list again. */
  compact(): void {
    this.#compacted = this.#version
    this.#events.length = 0
  }

  /** Tells all watchers the present version. */
  bookmark(): void {
    this.#version++
    for (const watcher of this.#watchers) {
      if (watcher.url.searchParams.get('allowWatchBookmarks') !== 'true') continue
      send(watcher, 'BOOKMARK', { metadata: { resourceVersion: String(this.#version) } })
    }
  }

  /** Ends all watches as a server does that is shut down in order. With `error`, the last thing they hear is that. */
  endWatches(error?: object): void {
    for (const watcher of this.#watchers) {
      if (error !== undefined) send(watcher, 'ERROR', error)
      watcher.response.end()
    }
    this.#watchers.clear()
  }

  #tell(event: StoredEvent): void {
    this.#events.push(event)
    if (this.quiet) return
    for (const watcher of this.#watchers) {
      if (concerns(watcher.path, watcher.url, event)) send(watcher, event.type, event.object)
    }
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const url = new URL(request.url ?? '/', this.address)
    const asked = `${request.method} ${url.pathname}`
    this.requests.push(url.searchParams.get('watch') === 'true' ? `WATCH ${url.pathname}` : asked)
    let body = ''
    for await (const chunk of request.setEncoding('utf8')) body += chunk
    if (request.headers.authorization !== `Bearer ${this.token}`) return fail(response, 401, 'Unauthorized')
    if (this.forbidden.has(asked)) return fail(response, 403, `somebody cannot ${asked}`)
    if (request.method === 'POST') return this.#create(url.pathname, body, response)
    if (url.searchParams.get('watch') === 'true') return this.#watch(url, response)
    const found = this.#named(url.pathname)
    if (found !== undefined) return answer(response, 200, found)
    if (!known(url.pathname)) return fail(response, 404, 'the server could not find the requested resource')
    if (this.pageMs === Infinity) return
    if (this.pageMs > 0) await sleep(this.pageMs)
    return this.#list(url, response)
  }

  #list(url: URL, response: ServerResponse): void {
    // A continued list is of the moment at which it began; of a moment that is compacted, there is none.
    const [from = 0, version = this.#version] = (url.searchParams.get('continue') ?? '')
      .split('@')
      .filter(Boolean)
      .map(Number)
    if (version < this.#compacted) return fail(response, 410, 'The provided continue parameter is too old')
    const all = [...this.#objects].filter(([, object]) =>
      concerns(url.pathname, url, { path: listPathOf(object), object })
    )
    const limit = Math.min(Number(url.searchParams.get('limit') ?? Infinity), this.pageSize)
    const items = all.slice(from, from + limit).map(([, object]) => object)
    const more = from + limit < all.length ? { continue: `${from + limit}@${version}` } : {}
    answer(response, 200, { kind: 'List', metadata: { resourceVersion: String(version), ...more }, items })
  }

  #watch(url: URL, response: ServerResponse): void {
    const from = Number(url.searchParams.get('resourceVersion'))
    if (from < this.#compacted) return fail(response, 410, `too old resource version: ${from} (${this.#compacted})`)
    if (this.watchesAre === 'unanswered') return
    response.writeHead(200, { 'content-type': 'application/json' })
    response.flushHeaders()
    if (this.watchesAre === 'ended') response.end()
    if (this.watchesAre !== 'answered') return
    const over = setTimeout(() => response.end(), Number(url.searchParams.get('timeoutSeconds')) * 1000)
    const watcher = { path: url.pathname, url, response }
    this.#watchers.add(watcher)
    response.once('close', () => {
      clearTimeout(over)
      this.#watchers.delete(watcher)
    })
    for (const event of this.#events) {
      if (event.version > from && concerns(url.pathname, url, event)) send(watcher, event.type, event.object)
    }
  }

  #create(path: string, body: string, response: ServerResponse): void {
    const [, namespace, name] = /^\/api\/v1\/namespaces\/([^/]+)\/serviceaccounts\/([^/]+)\/token$/.exec(path) ?? []
    if (namespace !== undefined) {
      const { spec } = JSON.parse(body) as { spec: { audiences: string[]; expirationSeconds: number } }
      const token = `token-${this.tokens.size + 1}-${Math.random().toString(36).slice(2)}`
      const expires = Date.now() + this.tokenSeconds * 1000
      this.tokens.set(token, { audience: spec.audiences[0], serviceAccount: `${namespace}/${name}`, expires })
      const status = { token, expirationTimestamp: new Date(expires).toISOString() }
      return answer(response, 201, { apiVersion: 'authentication.k8s.io/v1', kind: 'TokenRequest', spec, status })
    }
    if (path === '/apis/authentication.k8s.io/v1/selfsubjectreviews') {
      const userInfo = { username: 'system:serviceaccount:backup:velero' }
      return answer(response, 201, { kind: 'SelfSubjectReview', status: { userInfo } })
    }
    fail(response, 404, 'the server could not find the requested resource')
  }

  #named(path: string): KubernetesObject | undefined {
    const [, list, name] = /^(.*)\/([^/]+)$/.exec(path) ?? []
    const namespace = /\/namespaces\/([^/]+)\//.exec(path)?.[1] ?? ''
    return this.#objects.get(`${list?.replace(/\/namespaces\/[^/]+/, '')} ${namespace}/${name}`)
  }
}

function keyOf(path: string, { metadata: { namespace = '', name } }: KubernetesObject): string {
  return `${path} ${namespace}/${name}`
}

/** The resources that are installed. */
function known(path: string): boolean {
  return /\/(logicalvolumes|lvmsnapshots|lvmlogicalvolumesnapshots|volumesnapshotcontents|persistentvolumes|endpointslices)$/.test(
    path
  )
}

function concerns(path: string, url: URL, event: { path: string; object: KubernetesObject }): boolean {
  const namespace = /\/namespaces\/([^/]+)/.exec(path)?.[1]
  if (path.replace(/\/namespaces\/[^/]+/, '') !== event.path) return false
  if (namespace !== undefined && namespace !== event.object.metadata.namespace) return false
  const selector = url.searchParams.get('labelSelector')
  if (selector === null) return true
  const [label, value] = selector.split('=')
  return event.object.metadata.labels?.[label] === value
}

function send({ response }: Watcher, type: string, object: object): void {
  response.write(`${JSON.stringify({ type, object })}\n`)
}

function answer(response: ServerResponse, status: number, body: object): void {
  response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body))
}

function fail(response: ServerResponse, code: number, message: string): void {
  answer(response, code, { kind: 'Status', apiVersion: 'v1', status: 'Failure', code, message })
}
