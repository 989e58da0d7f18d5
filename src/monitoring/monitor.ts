/**
 * The monitoring endpoints of agent and router, over plain HTTP on a port of its own: `/metrics` (Prometheus),
 * `/healthz` (the process answers) and `/readyz` (it can do its work, and if not, why).
 *
 * Anyone who can connect can read it: numbers, pool and node names; never a handle. It changes nothing. So it is off by
 * default, and needs a firewall or network policy when it listens on more than loopback.
 */
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { Socket } from 'node:net'
import type { Logger } from 'pino'
import { collectDefaultMetrics, type Registry } from 'prom-client'
import { type Address, parseAddress } from '../grpc/address.ts'
import { HandshakeLimit } from '../grpc/handshake-limit.ts'
import { listenOnTcp } from '../grpc/tcp-socket.ts'
import { DeltamapperError } from '../errors.ts'
import type { Readiness } from './readiness.ts'

export interface Monitor {
  /** Its address, `tcp://HOST:PORT`, with the real port where 0 was given. */
  readonly address: string
  close(): void
}

/** Its parts. */
export interface Monitored {
  readonly metrics: Registry
  readonly readiness: Readiness
}

/**
 * A few scrapers and probes. Beyond that, the oldest connection gives way, so the kubelet's probe always finds room.
 */
const MAXIMUM_CONNECTIONS = 128
/** How long a request may take to arrive as a whole, in milliseconds; and how often Node looks for slower ones. */
const [REQUEST_MS, LOOK_EVERY_MS] = [5000, 1000]

/**
 * Listens at `tcp://HOST:PORT`.
 *
 * @throws DM_CONFIG_INVALID, DM_SOCKET_IN_USE
 */
export async function startMonitor(text: string, monitored: Monitored, logger: Logger): Promise<Monitor> {
  const address = checkMonitorAddress(text)
  const limits = {
    requestTimeout: REQUEST_MS,
    headersTimeout: REQUEST_MS,
    connectionsCheckingInterval: LOOK_EVERY_MS
  }
  const server = createServer(limits, (request, response) => {
    answer(request, response, monitored).catch((error: unknown) => {
      logger.error({ err: error }, 'a request of monitoring could not be answered')
      if (!response.headersSent) response.writeHead(500)
      response.end()
    })
  })
  const door = new HandshakeLimit(MAXIMUM_CONNECTIONS)
  server.prependListener('connection', (socket: Socket) => door.came(socket))
  const listening = await listenOnTcp(server, address)
  // Node's own: memory, event loop, file descriptors.
  collectDefaultMetrics({ register: monitored.metrics })
  server.on('error', (error) => logger.error({ err: error }, 'a connection of monitoring was not accepted'))
  return {
    address: listening,
    close() {
      server.close()
      server.closeAllConnections()
    }
  }
}

/** @throws DM_CONFIG_INVALID */
export function checkMonitorAddress(text: string): Extract<Address, { kind: 'tcp' }> {
  const address = parseAddress(text)
  if (address.kind === 'tcp') return address
  throw new DeltamapperError(
    'DM_CONFIG_INVALID',
    `monitoring cannot listen on ${address.text}`,
    'give a TCP address, as in tcp://127.0.0.1:8081'
  )
}

async function answer(
  { method, url = '' }: IncomingMessage,
  response: ServerResponse,
  { metrics, readiness }: Monitored
): Promise<void> {
  const say = (status: number, text: string, type = 'text/plain; charset=utf-8') => {
    response.writeHead(status, { 'content-type': type, 'cache-control': 'no-store' })
    response.end(method === 'HEAD' ? undefined : text)
  }
  if (method !== 'GET' && method !== 'HEAD') {
    response.setHeader('allow', 'GET, HEAD')
    return say(405, 'only GET and HEAD\n')
  }
  const [path] = url.split('?')
  if (path === '/healthz') return say(200, 'ok\n')
  if (path === '/readyz') {
    const problems = await readiness.problems()
    return problems.length === 0 ? say(200, 'ready\n') : say(503, `${problems.join('\n')}\n`)
  }
  if (path === '/metrics') return say(200, await metrics.metrics(), metrics.contentType)
  say(404, '/metrics, /healthz and /readyz are here\n')
}
