/**
 * What the sidecar (external-snapshot-metadata) does, for the mock: Kubernetes' SnapshotMetadata service over TLS, a
 * token in each request, names looked up in the cluster, and the driver's messages and statuses passed on as they
 * are, but UNKNOWN, of which it makes INTERNAL.
 */
import { once } from 'node:events'
import type { AddressInfo } from 'node:net'
import { createServer, type Server as TlsServer, type TLSSocket } from 'node:tls'
import {
  Client,
  credentials,
  Server,
  ServerCredentials,
  type ServerWritableStream,
  type ServiceError,
  status as grpcStatus
} from '@grpc/grpc-js'
import { metadataMethods, sidecarMethods } from '../../grpc/loaded-protos.ts'
import { type Refusal, refusal } from '../driver/question.ts'
import type { Certified } from './certificate.ts'
import type { Cluster } from './cluster.ts'

type Fields = Readonly<Record<string, string>>
type Call = ServerWritableStream<Fields, Buffer>

const asTheyAre = (bytes: object) => bytes as Buffer

export class Sidecar {
  readonly #cluster: Cluster
  readonly #driver: Client
  readonly #server = new Server({ 'grpc.max_send_message_length': -1, 'grpc.enable_channelz': 0 })
  readonly #tls: TlsServer
  readonly #sockets = new Set<TLSSocket>()

  private constructor(cluster: Cluster, endpoint: string, { certificate, key }: Certified) {
    this.#cluster = cluster
    this.#driver = new Client(endpoint.replace('unix://', 'unix:'), credentials.createInsecure(), {
      'grpc.default_authority': 'localhost',
      'grpc.max_receive_message_length': -1,
      'grpc.enable_retries': 0,
      'grpc.initial_reconnect_backoff_ms': 50,
      'grpc.max_reconnect_backoff_ms': 200
    })
    const definition = Object.fromEntries(
      Object.entries(sidecarMethods).map(([name, method]) => [name, { ...method, responseSerialize: asTheyAre }])
    )
    this.#server.addService(definition, {
      GetMetadataAllocated: (call: Call) => this.#serve(call, 'GetMetadataAllocated'),
      GetMetadataDelta: (call: Call) => this.#serve(call, 'GetMetadataDelta')
    })
    const injector = this.#server.createConnectionInjector(ServerCredentials.createInsecure())
    this.#tls = createServer({ cert: certificate, key, ALPNProtocols: ['h2'] }, (socket) => {
      this.#sockets.add(socket)
      socket.on('error', () => undefined)
      socket.once('close', () => this.#sockets.delete(socket))
      injector.injectConnection(socket)
    })
    this.#tls.on('tlsClientError', () => undefined)
  }

  /** @param endpoint the mock driver's */
  static async start(cluster: Cluster, endpoint: string, certified: Certified): Promise<Sidecar> {
    const sidecar = new Sidecar(cluster, endpoint, certified)
    sidecar.#tls.listen(0, '127.0.0.1')
    await once(sidecar.#tls, 'listening')
    return sidecar
  }

  get address(): string {
    return `localhost:${(this.#tls.address() as AddressInfo).port}`
  }

  /** Counts from the next connection on. */
  certify({ certificate, key }: Certified): void {
    this.#tls.setSecureContext({ cert: certificate, key })
  }

  cut(): void {
    for (const socket of this.#sockets) socket.destroy()
  }

  close(): void {
    this.#tls.close()
    this.cut()
    this.#server.forceShutdown()
    this.#driver.close()
  }

  #serve(call: Call, method: 'GetMetadataAllocated' | 'GetMetadataDelta'): void {
    const asked = this.#resolved(call.request, method)
    if ('details' in asked) return void call.emit('error', asked)
    const { path, requestSerialize } = metadataMethods[method]
    const stream = this.#driver.makeServerStreamRequest(path, requestSerialize, asTheyAre, asked)
    call.on('cancelled', () => stream.cancel())
    stream.on('data', (message: Buffer) => {
      if (call.write(message)) return
      stream.pause()
      call.once('drain', () => stream.resume())
    })
    stream.on('end', () => call.end())
    stream.on('error', ({ code, details }: ServiceError) =>
      call.emit('error', { code: code === grpcStatus.UNKNOWN ? grpcStatus.INTERNAL : code, details } satisfies Refusal)
    )
  }

  /** The request to the driver, or why there is none. */
  #resolved(request: Fields, method: string): Refusal | object {
    const { security_token, namespace, base_snapshot_id, starting_offset, max_results } = request
    const name = request[method === 'GetMetadataDelta' ? 'target_snapshot_name' : 'snapshot_name']
    if (!security_token || !namespace || !name)
      return refusal('INVALID_ARGUMENT', 'token, namespace and name are needed')
    if (method === 'GetMetadataDelta' && !base_snapshot_id)
      return refusal('INVALID_ARGUMENT', 'the base snapshot id is missing')
    if (!this.#cluster.isGood(security_token)) {
      return refusal('UNAUTHENTICATED', 'unable to authenticate: the token is not valid for this audience')
    }
    const snapshot = this.#cluster.snapshotNamed(namespace, name)
    if (snapshot === undefined) return refusal('UNAVAILABLE', `there is no VolumeSnapshot ${namespace}/${name}`)
    if (!snapshot.ready) return refusal('UNAVAILABLE', `the VolumeSnapshot ${namespace}/${name} is not ready`)
    const numbers = { starting_offset, max_results }
    if (method === 'GetMetadataAllocated') return { snapshot_id: snapshot.id, ...numbers }
    return { base_snapshot_id, target_snapshot_id: snapshot.id, ...numbers }
  }
}
