/** A client made from the .proto file by grpc-js and proto-loader alone: how the rest of the world sees the server. */
import {
  Client,
  credentials,
  loadPackageDefinition,
  status,
  type ChannelOptions,
  type ClientReadableStream,
  type Metadata,
  type ServiceClientConstructor,
  type ServiceError,
  type StatusObject
} from '@grpc/grpc-js'
import { loadSync } from '@grpc/proto-loader'
import type { ExecutionContext } from 'ava'
import { connect as connectHttp2, type ClientHttp2Session, type IncomingHttpHeaders } from 'node:http2'
import { connect as connectSocket } from 'node:net'
import { protoPath as healthProtoPath } from 'grpc-health-check'
import { framed } from '../support/grpc-frame.ts'

const options = { keepCase: true, longs: String, enums: String, defaults: true, oneofs: true }
const csi = loadPackageDefinition(
  loadSync(`${import.meta.dirname}/../../src/grpc/protos/csi/v1/csi.proto`, options)
) as unknown as { csi: { v1: Record<'Identity' | 'SnapshotMetadata', ServiceClientConstructor> } }
const health = loadPackageDefinition(loadSync(healthProtoPath, options)) as unknown as {
  grpc: { health: { v1: { Health: ServiceClientConstructor } } }
}

const constructors = { ...csi.csi.v1, Health: health.grpc.health.v1.Health }

export interface Response {
  block_metadata_type: string
  volume_capacity_bytes: string
  block_metadata: { byte_offset: string; size_bytes: string }[]
}

export interface Outcome {
  messages: Response[]
  code: number
  details: string
  metadata: Metadata | undefined
}

export class PlainClient {
  readonly #clients: Record<keyof typeof constructors, Client>

  constructor(t: ExecutionContext, path: string, channelOptions: ChannelOptions = {}) {
    const make = (constructor: ServiceClientConstructor) =>
      new constructor(`unix:${path}`, credentials.createInsecure(), channelOptions)
    this.#clients = {
      Identity: make(constructors.Identity),
      SnapshotMetadata: make(constructors.SnapshotMetadata),
      Health: make(constructors.Health)
    }
    t.teardown(() => this.close())
  }

  close(): void {
    for (const client of Object.values(this.#clients)) client.close()
  }

  unary(service: keyof typeof constructors, method: string, request: object = {}): Promise<object> {
    return new Promise((resolve, reject) => {
      const client = this.#clients[service] as unknown as Record<
        string,
        (request: object, done: (error: ServiceError | null, response: object) => void) => void
      >
      client[method](request, (error, response) => (error ? reject(error) : resolve(response)))
    })
  }

  stream<T = Response>(
    service: keyof typeof constructors,
    method: string,
    request: object,
    callOptions: object = {}
  ): ClientReadableStream<T> {
    const client = this.#clients[service] as unknown as Record<
      string,
      (request: object, options: object) => ClientReadableStream<T>
    >
    return client[method](request, callOptions)
  }

  allocated(request: object, callOptions?: object): Promise<Outcome> {
    return outcome(this.stream('SnapshotMetadata', 'GetMetadataAllocated', request, callOptions))
  }

  delta(request: object, callOptions?: object): Promise<Outcome> {
    return outcome(this.stream('SnapshotMetadata', 'GetMetadataDelta', request, callOptions))
  }
}

/** Everything a stream brings, and how it ends. */
export function outcome(stream: ClientReadableStream<Response>): Promise<Outcome> {
  return new Promise((resolve) => {
    const messages: Response[] = []
    stream.on('data', (message: Response) => messages.push(message))
    stream.on('error', () => undefined)
    stream.on('status', ({ code, details, metadata }: StatusObject) => {
      // On success the status comes before the last messages have been handed over.
      if (code !== status.OK || stream.readableEnded) resolve({ messages, code, details, metadata })
      else stream.on('end', () => resolve({ messages, code, details, metadata }))
    })
  })
}

/** A gRPC call by hand over HTTP/2, for what no well-behaved client does. */
export function rawCall(
  t: ExecutionContext,
  path: string,
  { headers = {}, body }: { headers?: Record<string, string>; body?: Buffer } = {}
) {
  const session: ClientHttp2Session = connectHttp2('http://localhost', { createConnection: () => connectSocket(path) })
  session.on('error', () => undefined)
  t.teardown(() => session.destroy())
  const stream = session.request({
    ':method': 'POST',
    ':path': '/csi.v1.SnapshotMetadata/GetMetadataAllocated',
    'content-type': 'application/grpc',
    te: 'trailers',
    ...headers
  })
  const received: IncomingHttpHeaders = {}
  stream.on('response', (more) => void Object.assign(received, more))
  stream.on('trailers', (more) => void Object.assign(received, more))
  stream.on('error', () => undefined)
  const closed = new Promise<void>((resolve) => stream.on('close', resolve))
  if (body === undefined) stream.end()
  else stream.end(body)
  return { session, stream, received, closed }
}

/** An encoded request of GetMetadataAllocated for a snapshot with a short name. */
export function allocatedRequest(snapshotId: string): Buffer {
  return framed(Buffer.concat([Buffer.from([0x0a, Buffer.byteLength(snapshotId)]), Buffer.from(snapshotId)]))
}
