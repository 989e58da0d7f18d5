/**
 * The connections of a server's clients: which are admitted, and which calls they may start.
 *
 * No client may be a problem for others, and no call for other calls on its connection:
 *
 * - The number of connections is limited, in all and for each client. When it is reached, the connection without a call
 *   for longest gives way to the newest, of the client that has most. (Node's own limit refuses the newest: a client
 *   that opens connections and sends nothing would lock everybody else out.)
 * - A client that has used up its budget of calls (call-budget.ts) is refused the next, and told to make no more on
 *   that connection (GOAWAY). Running calls go on to their end; further ones cost nothing. Its next connection is
 *   served when it may make calls again.
 * - Node itself would close a connection that had more than some hundreds of calls cancelled in a short time, with all
 *   its calls. So its limits are raised to where only an attacker gets.
 */
import type { Socket } from 'node:net'
import {
  experimental,
  type Server,
  ServerCredentials,
  ServerInterceptingCall,
  type ServerInterceptingCallInterface,
  type ServerInterceptor,
  status as grpcStatus
} from '@grpc/grpc-js'
import type { Logger } from 'pino'
import { DeltamapperError } from '../errors.ts'
import { sparingly } from '../sparing-log.ts'
import { type CallAllowance, CallBudget } from './call-budget.ts'
import { toStatus, type WireStatus } from './status.ts'

export interface ConnectionLimits {
  /** Connections at the same time, and those of one client among them. */
  readonly connections: number
  readonly ofClient: number
  readonly calls: CallAllowance
}

/**
 * Node's own limits to a connection (http2.createServer). Normal use of HTTP/2 counts towards them: a cancelled call is
 * still open for a moment here, so the next ones may exceed the allowed number, and are rejected.
 */
const HTTP2_LIMITS = { maxSessionRejectedStreams: 1_000_000, streamResetBurst: 1_000_000, streamResetRate: 10_000 }
/** Calls that a client must be able to make before its next connection is served. */
const WORTH_A_CONNECTION = 32
/** A connection that should be left is closed after this long, even with running calls, in milliseconds: a day. */
const FAREWELL_MS = 86_400_000

interface Connection {
  readonly socket: Socket
  readonly client: Client
  /** Since when it has been without a call, by performance.now(). */
  idleSince: number
  callsUnderWay: number
  /** Ends its use for new calls. Undefined until it is served, and once that has been done. */
  leave: (() => void) | undefined
}

interface Client {
  readonly name: string
  readonly budget: CallBudget
  readonly connections: Set<Connection>
  /** Connections that wait until the client may make calls again, and how each is served. */
  readonly waiting: Map<Connection, () => void>
  timer: NodeJS.Timeout | undefined
}

export class ClientConnections {
  readonly #limits: ConnectionLimits
  readonly #server: Server
  readonly #clients = new Map<string, Client>()
  readonly #refusal: WireStatus
  readonly #log: (fields: object) => void
  #count = 0

  constructor(server: Server, limits: ConnectionLimits, logger: Logger) {
    this.#server = server
    // grpc-js has options for some of the server's settings, and none for these. Without them floods end calls of
    // others, as tests would notice.
    Object.assign((server as unknown as { commonServerOptions: object }).commonServerOptions, HTTP2_LIMITS)
    this.#limits = limits
    this.#log = sparingly((fields) => logger.warn(fields, 'a client was slowed down'))
    const { calls, perSecond } = limits.calls
    this.#refusal = toStatus(
      new DeltamapperError(
        'DM_TOO_MANY_STREAMS',
        `this client has ${calls} calls under way or cancelled, and is allowed ${perSecond} cancelled ones a second`,
        'call again in a few seconds, and wait for answers'
      )
    )
  }

  /** Open connections, waiting ones included. */
  get count(): number {
    return this.#count
  }

  /** Takes a new connection. It is served at once, or when its client may make calls. */
  came(socket: Socket, name: string): void {
    const client = this.#clientOf(name)
    if (!this.#makeRoom(client)) {
      this.#log({ client: name, reason: `${client.connections.size} of ${this.#count} connections are its own` })
      socket.destroy()
      this.#forgetLater(client)
      return
    }
    const idleSince = performance.now()
    const connection: Connection = { socket, client, idleSince, callsUnderWay: 0, leave: undefined }
    client.connections.add(connection)
    this.#count++
    socket.once('close', () => this.#left(connection))
    if (client.waiting.size === 0 && client.budget.left >= WORTH_A_CONNECTION) this.#serve(connection)
    else {
      client.waiting.set(connection, () => this.#serve(connection))
      this.#serveLater(client)
    }
  }

  /** Waiting connections will not be served any more. */
  close(): void {
    for (const { waiting } of this.#clients.values()) for (const { socket } of waiting.keys()) socket.destroy()
  }

  #clientOf(name: string): Client {
    let client = this.#clients.get(name)
    if (client === undefined) {
      const budget = new CallBudget(this.#limits.calls)
      client = { name, budget, connections: new Set(), waiting: new Map(), timer: undefined }
      this.#clients.set(name, client)
    }
    return client
  }

  /**
   * Makes room for one more connection of a client, and closes another one if necessary. @returns whether there is room
   */
  #makeRoom(client: Client): boolean {
    if (client.connections.size >= this.#limits.ofClient) return closeLongestIdle(client)
    if (this.#count < this.#limits.connections) return true
    const byCount = [...this.#clients.values()].sort((one, other) => other.connections.size - one.connections.size)
    return byCount.some((each) => each.connections.size > 0 && closeLongestIdle(each))
  }

  #left(connection: Connection): void {
    const { client } = connection
    client.connections.delete(connection)
    client.waiting.delete(connection)
    this.#count--
    this.#forgetLater(client)
  }

  /** A client without connections is remembered until its budget is whole again. */
  #forgetLater(client: Client): void {
    if (client.connections.size > 0 || client.timer !== undefined) return
    if (client.budget.isWhole) {
      this.#clients.delete(client.name)
      return
    }
    client.timer = setTimeout(
      () => {
        client.timer = undefined
        this.#forgetLater(client)
      },
      client.budget.msUntil(this.#limits.calls.calls) + 1
    ).unref()
  }

  #serveLater(client: Client): void {
    if (client.waiting.size === 0) return
    clearTimeout(client.timer)
    client.timer = setTimeout(
      () => {
        client.timer = undefined
        const [next] = client.waiting
        if (next === undefined) {
          this.#forgetLater(client)
          return
        }
        if (client.budget.left >= WORTH_A_CONNECTION) {
          const [connection, serve] = next
          client.waiting.delete(connection)
          serve()
        }
        this.#serveLater(client)
      },
      client.budget.msUntil(WORTH_A_CONNECTION) + 1
    ).unref()
  }

  /** Hands a connection to grpc-js through a listener of its own, which can be told alone to be left. */
  #serve(connection: Connection): void {
    const { socket } = connection
    if (socket.destroyed) return
    // grpc-js gets decrypted connections: its own TLS neither checks names nor reports who was refused.
    const credentials = experimental.createServerCredentialsWithInterceptors(ServerCredentials.createInsecure(), [
      this.#admit(connection)
    ])
    const injector = this.#server.createConnectionInjector(credentials)
    connection.leave = () => {
      connection.leave = undefined
      injector.drain(FAREWELL_MS)
    }
    socket.once('close', () => injector.destroy())
    injector.injectConnection(socket)
  }

  /** Sees each call before anything else does. */
  #admit(connection: Connection): ServerInterceptor {
    return (_method, call) => {
      const { client } = connection
      if (!client.budget.take()) {
        call.sendStatus({ ...this.#refusal })
        if (connection.leave) {
          this.#log({ client: client.name, reason: 'it cancels calls faster than it is allowed to' })
          connection.leave()
        }
        return new ServerInterceptingCall(call)
      }
      return this.#watch(call, connection)
    }
  }

  #watch(call: ServerInterceptingCallInterface, connection: Connection): ServerInterceptingCall {
    const { client } = connection
    let isAnswered = false
    return new ServerInterceptingCall(call, {
      start: (next) =>
        next({
          onReceiveMetadata: (metadata, pass) => {
            connection.callsUnderWay++
            pass(metadata)
          },
          onCancel: () => {
            if (isAnswered) client.budget.giveBack()
            if (--connection.callsUnderWay === 0) connection.idleSince = performance.now()
          }
        }),
      sendStatus: (status, next) => {
        // A client that sets deadlines also cancels when they have passed. An unread answer counts as answered only
        // when it has left.
        isAnswered = status.code !== grpcStatus.DEADLINE_EXCEEDED
        next(status)
      }
    })
  }
}

/** Closes the connection that has been without a call for longest. False if all have one. */
function closeLongestIdle({ connections }: Client): boolean {
  let longest: Connection | undefined
  for (const connection of connections) {
    if (connection.callsUnderWay > 0 || connection.socket.destroyed) continue
    if (!longest || connection.idleSince < longest.idleSince) longest = connection
  }
  longest?.socket.destroy()
  return longest !== undefined
}
