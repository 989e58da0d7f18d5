/**
 * Just enough of a Kubernetes API server for a client of the real flow: objects by path, TokenRequest, and who one
 * is. Over TLS, for one token.
 */
import { once } from 'node:events'
import type { IncomingMessage, ServerResponse } from 'node:http'
import { createServer, type Server } from 'node:https'
import type { AddressInfo } from 'node:net'
import type { Certified } from './certificate.ts'
import type { Cluster } from './cluster.ts'

/** Bytes of a request, at most. */
const LONGEST_REQUEST = 64 * 1024

export class ApiServer {
  readonly #server: Server
  readonly #cluster: Cluster
  readonly #userToken: string

  private constructor(cluster: Cluster, { certificate, key }: Certified, userToken: string) {
    this.#cluster = cluster
    this.#userToken = userToken
    this.#server = createServer({ cert: certificate, key }, (request, response) => void this.#serve(request, response))
  }

  static async start(cluster: Cluster, certified: Certified, userToken: string): Promise<ApiServer> {
    const server = new ApiServer(cluster, certified, userToken)
    server.#server.listen(0, '127.0.0.1')
    await once(server.#server, 'listening')
    return server
  }

  get address(): string {
    return `https://127.0.0.1:${(this.#server.address() as AddressInfo).port}`
  }

  close(): void {
    this.#server.close()
    this.#server.closeAllConnections()
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    try {
      let body = ''
      for await (const chunk of request.setEncoding('utf8')) {
        body += chunk as string
        if (body.length > LONGEST_REQUEST) return answer(response, ...failure(413, 'the request is too long'))
      }
      answer(response, ...this.#answer(request, body))
    } catch (error) {
      answer(response, ...failure(400, (error as Error).message))
    }
  }

  #answer({ method, url = '/', headers }: IncomingMessage, body: string): [number, object] {
    const { pathname } = new URL(url, this.address)
    if (headers.authorization !== `Bearer ${this.#userToken}`) return failure(401, 'Unauthorized')
    if (method === 'POST') return this.#create(pathname, body)
    if (method !== 'GET') return failure(405, `${method} is not served by the mock`)
    const found = this.#cluster.at(pathname)
    return found === undefined ? failure(404, `the mock has no ${pathname}`) : [200, found]
  }

  #create(path: string, body: string): [number, object] {
    if (/^\/api\/v1\/namespaces\/[^/]+\/serviceaccounts\/[^/]+\/token$/.test(path)) {
      const { spec } = JSON.parse(body) as { spec: { audiences?: string[] } }
      const status = this.#cluster.token(spec.audiences)
      return [201, { apiVersion: 'authentication.k8s.io/v1', kind: 'TokenRequest', metadata: {}, spec, status }]
    }
    if (path === '/apis/authentication.k8s.io/v1/selfsubjectreviews') {
      const userInfo = { username: 'system:serviceaccount:default:backup' }
      return [
        201,
        { apiVersion: 'authentication.k8s.io/v1', kind: 'SelfSubjectReview', metadata: {}, status: { userInfo } }
      ]
    }
    return failure(404, `the mock makes no ${path}`)
  }
}

function answer(response: ServerResponse, status: number, body: object): void {
  response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body))
}

function failure(code: number, message: string): [number, object] {
  const reason = { 401: 'Unauthorized', 404: 'NotFound' }[code] ?? 'BadRequest'
  return [code, { apiVersion: 'v1', kind: 'Status', metadata: {}, status: 'Failure', reason, message, code }]
}
