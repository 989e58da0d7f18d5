/**
 * The gRPC server: SnapshotMetadata and Identity of csi.v1, grpc.health.v1 and server reflection, on unix sockets and
 * over mutual TLS. On unix sockets, deltamapper.v1.Admin and Inventory as well, if requested.
 *
 * Our own listeners accept connections and hand them to grpc-js, which cannot bind a socket that is never more open
 * than configured (unix-socket.ts).
 */
import { createServer, type Server as NetServer, type Socket } from 'node:net'
import { type ChannelOptions, Server } from '@grpc/grpc-js'
import { loadSync } from '@grpc/proto-loader'
import { ReflectionService } from '@grpc/reflection'
import { HealthImplementation, protoPath as healthProtoPath } from 'grpc-health-check'
import type { Logger } from 'pino'
import { DeltamapperError } from '../errors.ts'
import { type AdminBackend, AdminService } from './admin.ts'
import { parseListenAddress, type Address } from './address.ts'
import { ClientConnections, type ConnectionLimits } from './client-connections.ts'
import { Admin, file_deltamapper_v1_admin } from './generated/deltamapper/v1/admin_pb.ts'
import { file_deltamapper_v1_inventory, Inventory } from './generated/deltamapper/v1/inventory_pb.ts'
import { understandTimeouts } from './grpc-timeout.ts'
import { IdentityService, isPortableDriverName, type IdentityOptions } from './identity.ts'
import { type InventoryBackend, InventoryService } from './inventory.ts'
import { file_csi_v1_csi, Identity, SnapshotMetadata } from './generated/csi/v1/csi_pb.ts'
import {
  type CallObserver,
  SnapshotMetadataService,
  type SnapshotMetadataBackend,
  type StreamLimits
} from './snapshot-metadata.ts'
import { listenOnTcp } from './tcp-socket.ts'
import { type Certificates, createTlsServer } from './tls.ts'
import { reflected } from './method-definitions.ts'
import { unixClient } from './unix-client.ts'
import { listenOnUnixSocket } from './unix-socket.ts'

export interface ServerOptions {
  /** Addresses to listen on, see address.ts. At least one. */
  readonly listen: readonly string[]
  readonly backend: SnapshotMetadataBackend
  /**
   * Given: the Admin service too, on unix sockets only. Anyone who can connect to one may then do all that it offers.
   */
  readonly admin?: AdminBackend | undefined
  /** Given: the Inventory service too, on unix sockets only. */
  readonly inventory?: InventoryBackend | undefined
  readonly identity: Omit<IdentityOptions, 'isReady'>
  readonly logger: Logger
  /** Permission bits of the sockets, 0600 unless given. */
  readonly socketMode?: number
  /** Group of the sockets, a number or a name. */
  readonly socketGroup?: number | string
  /** Whether calls can be answered: the answer of Probe and the health service. Always, unless given. */
  readonly isReady?: () => boolean | Promise<boolean>
  /** Makes every `tcp://` address a TLS one, for clients whose certificate carries `clientName` only. */
  readonly tls?: { readonly certificates: Certificates; readonly clientName: string } | undefined
  /**
   * Permits, without TLS, `tcp://127.0.0.1:PORT` and `tcp://[::1]:PORT`, which any user of the machine can connect to.
   */
  readonly allowLoopbackTcp?: boolean
  readonly observer?: ServerObserver | undefined
  /** Of calls to SnapshotMetadata; without limit unless given. */
  readonly limits?: StreamLimits | undefined
  /** Called when many calls to SnapshotMetadata have ended within a short time, and hardly any is left. */
  readonly onBurstOver?: () => void
  /**
   * The identity of a client on a unix socket: its process, unless given. Undefined for a client that cannot be told
   * from others.
   */
  readonly nameUnixClient?: (socket: Socket) => string | undefined
}

/** For metrics. */
export interface ServerObserver {
  /** Gets the calls to SnapshotMetadata. */
  readonly calls: CallObserver
  /** Called when a client was refused for its certificate, or for not showing one in time. */
  readonly clientRefused: () => void
}

export interface RunningServer {
  /** Its addresses, in the order of `listen`, with the real port where 0 was given. */
  readonly addresses: readonly string[]
  /**
   * Stops accepting connections and removes the sockets; answers NOT_SERVING; refuses new streams. Running streams may
   * finish for `graceMs` milliseconds; the rest end with DM_SHUTTING_DOWN. Resolves once everything is closed, at most
   * about two seconds after that.
   */
  drain(graceMs: number): Promise<void>
}

/** A listener of either kind. */
interface Listener {
  readonly address: string
  close(): void
}

/** No request comes near: two ids of 128 bytes and 4 KiB of secrets. */
const maximumRequestBytes = 64 * 1024

/** Per connection. The sidecar sends all its clients' calls over one. */
const maximumConcurrentStreams = 256

/** Sidecar, health probes and a few people: far fewer, and nobody needs to cancel many calls. */
const unixLimits: ConnectionLimits = { connections: 256, ofClient: 64, calls: { calls: 512, perSecond: 100 } }

/**
 * Routers, each for many clients, which it limits itself. Connections without a certificate yet are limited in tls.ts.
 */
const tcpLimits: ConnectionLimits = { connections: 256, ofClient: 64, calls: { calls: 4096, perSecond: 1000 } }

/**
 * A machine that has failed sends nothing: over a network, a client that does not answer a ping in time counts as gone.
 */
const networkKeepalive = { 'grpc.keepalive_time_ms': 30_000, 'grpc.keepalive_timeout_ms': 20_000 }

/** How often the health service asks `isReady`. */
const readinessIntervalMs = 1000

/** How long a drain waits for the last bytes, statuses among them, to reach clients that read them. */
const farewellMs = 3000

/** Starts listening on all addresses, or on none: then it throws DM_CONFIG_INVALID or DM_SOCKET_IN_USE. */
export async function startServer(options: ServerOptions): Promise<RunningServer> {
  const { listen, identity, logger, tls, isReady = () => true } = options
  if (listen.length === 0) {
    throw new DeltamapperError(
      'DM_CONFIG_INVALID',
      'there is no address to listen on',
      'give one, as in unix:///run/deltamapper/csi.sock'
    )
  }
  const addresses = listen.map((text) =>
    parseListenAddress(text, { tls: tls !== undefined, allowLoopbackTcp: options.allowLoopbackTcp ?? false })
  )
  if (!isPortableDriverName(identity.driverName)) {
    logger.warn(
      { driverName: identity.driverName },
      'a driver name should begin and end with a letter: CSI conformance tests insist'
    )
  }
  let draining = false
  const services = makeServices(options, async () => !draining && (await isReady()))
  const { health, names } = services
  const servers = makeServers(
    services,
    addresses.some(({ kind }) => kind === 'tcp')
  )
  const readiness = watchReadiness(isReady, (ready) => announce(health, names, ready), logger)
  await readiness.first

  const { listeners, connections, clients } = await startListeners(addresses, servers, options).catch((error) => {
    readiness.stop()
    for (const server of servers.all) server.forceShutdown()
    throw error
  })

  let drained: Promise<void> | undefined
  const drain = async (graceMs: number) => {
    draining = true
    readiness.stop()
    for (const listener of listeners) listener.close()
    announce(health, names, false)
    await Promise.all([services.snapshotMetadata.drain(graceMs), services.admin?.drain(graceMs)])
    // Tells every client that no further call will be answered here; connections close once their streams have ended.
    for (const server of servers.all) server.tryShutdown(() => undefined)
    for (const each of clients.values()) each.close()
    await connections.closed(farewellMs)
    connections.destroy()
  }
  return {
    addresses: listeners.map(({ address }) => address),
    drain: (graceMs) => (drained ??= drain(graceMs))
  }
}

/** What is served. */
interface Services {
  readonly snapshotMetadata: SnapshotMetadataService
  readonly identity: IdentityService
  readonly health: HealthImplementation
  readonly admin: AdminService | undefined
  readonly inventory: InventoryService | undefined
  /** By which the health service knows them. */
  readonly names: readonly string[]
}

function makeServices(options: ServerOptions, isReady: () => Promise<boolean>): Services {
  const { backend, identity, logger, observer, limits, onBurstOver } = options
  const admin = options.admin && new AdminService(options.admin, logger)
  const inventory = options.inventory && new InventoryService(options.inventory, logger)
  return {
    snapshotMetadata: new SnapshotMetadataService(backend, logger, {
      ...limits,
      observer: observer?.calls,
      onBurstOver
    }),
    identity: new IdentityService({ ...identity, isReady }),
    health: new HealthImplementation(),
    ...{ admin, inventory },
    names: [
      ...['', SnapshotMetadata.typeName, Identity.typeName],
      ...(admin ? [Admin.typeName] : []),
      ...(inventory ? [Inventory.typeName] : [])
    ]
  }
}

interface Servers {
  readonly unix: Server
  readonly tcp: Server | undefined
  readonly all: readonly Server[]
}

/** @param overTcp whether one is to be reached that way */
function makeServers({ snapshotMetadata, identity, health, admin, inventory }: Services, overTcp: boolean): Servers {
  const makeServer = (keepalive: ChannelOptions, local: Pick<Partial<Services>, 'admin' | 'inventory'> = {}) => {
    const server = new Server({
      ...keepalive,
      'grpc.max_receive_message_length': maximumRequestBytes,
      'grpc.max_concurrent_streams': maximumConcurrentStreams,
      'grpc.enable_channelz': 0
    })
    understandTimeouts(server)
    server.addService(SnapshotMetadataService.definition, snapshotMetadata.implementation)
    server.addService(IdentityService.definition, identity.implementation)
    if (local.admin) server.addService(AdminService.definition, local.admin.implementation)
    if (local.inventory) server.addService(InventoryService.definition, local.inventory.implementation)
    health.addToServer(server)
    const own = {
      ...reflected(file_csi_v1_csi),
      ...(local.admin && reflected(file_deltamapper_v1_admin)),
      ...(local.inventory && reflected(file_deltamapper_v1_inventory))
    }
    new ReflectionService({ ...loadSync(healthProtoPath), ...own }).addToServer(server)
    return server
  }
  // No keepalive pings: a connection within one machine cannot be half open, while a client that is stopped for a
  // minute (its output in a pager) is merely slow and must not lose its stream.
  const unix = makeServer({}, { admin, inventory })
  // A service that is not there cannot be called: TCP gets a server of its own.
  const tcp = overTcp ? makeServer(networkKeepalive) : undefined
  return { unix, tcp, all: tcp ? [unix, tcp] : [unix] }
}

interface Listening {
  readonly listeners: readonly Listener[]
  readonly connections: Connections
  readonly clients: ReadonlyMap<Server, ClientConnections>
}

/** Listens on all addresses, or on none. @throws DM_CONFIG_INVALID, DM_SOCKET_IN_USE */
async function startListeners(
  addresses: readonly Address[],
  servers: Servers,
  { logger, socketMode, socketGroup, tls, observer, nameUnixClient = unixClient }: ServerOptions
): Promise<Listening> {
  const connections = new Connections()
  const clients = new Map(
    servers.all.map((server) => [
      server,
      new ClientConnections(server, server === servers.unix ? unixLimits : tcpLimits, logger)
    ])
  )
  let unixConnections = 0
  const listeners: Listener[] = []
  try {
    for (const address of addresses) {
      const server = address.kind === 'tcp' && servers.tcp ? servers.tcp : servers.unix
      const serve = (socket: Socket) => {
        if (address.kind === 'unix') nameConnection(socket, nameUnixClient(socket) ?? `unix-${++unixConnections}`)
        clients.get(server)?.came(socket, socket.remoteAddress ?? 'unknown')
      }
      const netServer =
        address.kind === 'tcp' && tls
          ? createTlsServer(tls.certificates, tls.clientName, serve, logger, () => observer?.clientRefused())
          : createServer({ noDelay: true }, serve)
      netServer.prependListener('connection', (socket: Socket) => connections.add(socket))
      listeners.push(await startListener(netServer, address, { socketMode, socketGroup }))
      // Out of file descriptors, for one: the connection is lost, the listener goes on.
      netServer.on('error', (error) =>
        logger.error({ err: error, address: address.text }, 'a connection was not accepted')
      )
    }
  } catch (error) {
    for (const listener of listeners) listener.close()
    throw error
  }
  return { listeners, connections, clients }
}

async function startListener(
  netServer: NetServer,
  address: Address,
  { socketMode, socketGroup }: { socketMode: number | undefined; socketGroup: number | string | undefined }
): Promise<Listener> {
  if (address.kind === 'unix') {
    const listener = await listenOnUnixSocket(netServer, address.path, {
      ...(socketMode !== undefined && { mode: socketMode }),
      ...(socketGroup !== undefined && { group: socketGroup })
    })
    return { address: address.text, close: () => listener.close() }
  }
  return { address: await listenOnTcp(netServer, address), close: () => netServer.close() }
}

/**
 * A connection to a unix socket has no address. With a name in its place, calls of one client can be told from others
 * (`getPeer`).
 */
function nameConnection(socket: Socket, name: string): void {
  Object.defineProperty(socket, 'remoteAddress', { value: name })
}

/** The open connections: grpc-js can neither tell when they have closed nor close one by force. */
class Connections {
  readonly #sockets = new Set<Socket>()
  #onEmpty: (() => void) | undefined

  add(socket: Socket): void {
    this.#sockets.add(socket)
    socket.once('close', () => {
      this.#sockets.delete(socket)
      if (this.#sockets.size === 0) this.#onEmpty?.()
    })
  }

  /** Resolves when all have closed, or after `withinMs`. */
  async closed(withinMs: number): Promise<void> {
    if (this.#sockets.size === 0) return
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, withinMs)
      this.#onEmpty = () => {
        clearTimeout(timer)
        resolve()
      }
    })
  }

  destroy(): void {
    for (const socket of this.#sockets) socket.destroy()
  }
}

/** The empty name stands for the server as a whole (gRPC health checking protocol). */
function announce(health: HealthImplementation, names: readonly string[], ready: boolean): void {
  for (const service of names) health.setStatus(service, ready ? 'SERVING' : 'NOT_SERVING')
}

/** Calls `onChange` at once and whenever `isReady` changes. A check that throws is not ready. */
function watchReadiness(
  isReady: () => boolean | Promise<boolean>,
  onChange: (ready: boolean) => void,
  logger: Logger
): { first: Promise<void>; stop: () => void } {
  let last: boolean | undefined
  let timer: NodeJS.Timeout | undefined
  let stopped = false
  const look = async () => {
    let ready = false
    try {
      ready = await isReady()
    } catch (error) {
      if (last !== false) logger.error({ err: error }, 'not ready')
    }
    if (stopped) return
    if (ready !== last) onChange(ready)
    last = ready
    timer = setTimeout(() => void look(), readinessIntervalMs).unref()
  }
  return {
    first: look(),
    stop: () => {
      stopped = true
      clearTimeout(timer)
    }
  }
}
