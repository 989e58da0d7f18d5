/**
 * What Kubernetes' external-snapshot-metadata sidecar does, on a socket of ours: the same calls in the same order to the driver's socket, a TLS
 * server for Kubernetes' SnapshotMetadata service, tokens checked against the API server, names looked up there, messages passed on as they are.
 * And it can be told to fail in the middle, as real ones do.
 */
import { readFile } from 'node:fs/promises'
import {
  Client,
  credentials,
  Server,
  ServerCredentials,
  type ServerWritableStream,
  type ServiceError,
  status
} from '@grpc/grpc-js'
import type { ExecutionContext } from 'ava'
import { identityMethods, metadataMethods, sidecarMethods } from '../../src/grpc/loaded-protos.ts'
import type { TlsFiles } from '../../src/grpc/tls.ts'
import { type KubernetesObject, textOf } from '../../src/kubernetes/object.ts'
import type { FakeApiServer } from './fake-api-server.ts'
import { oncePortIsFree } from './same-port.ts'

type Fields = Record<string, string>
const csi = { ...identityMethods, ...metadataMethods }

export interface Refusal {
  readonly code: number
  readonly details: string
}

export class Sidecar {
  /** The driver's name, as it said itself. */
  driverName = ''
  /** What it was asked for, without tokens, in order. */
  readonly requests: Fields[] = []
  /** Ends each call after so many messages, once for each element: by a status, by cutting the connection, or not at all. */
  readonly breakdowns: { readonly after: number; readonly how: Refusal | 'cut' | 'hang' }[] = []
  /** Calls that have not ended. */
  readonly running = new Set<object>()
  readonly #driver: Client
  readonly #api: FakeApiServer
  readonly #audience: string
  #server: Server | undefined
  #port = 0
  readonly #tls: TlsFiles

  private constructor(driverAddress: string, api: FakeApiServer, audience: string, tls: TlsFiles) {
    // As grpc-go dials a socket: the authority is "localhost".
    this.#driver = new Client(driverAddress.replace('unix://', 'unix:'), credentials.createInsecure(), {
      'grpc.default_authority': 'localhost'
    })
    this.#api = api
    this.#audience = audience
    this.#tls = tls
  }

  /** Starts as the real one does, and only serves once the driver has said that it is ready. */
  static async start(
    t: ExecutionContext,
    { driver, api, audience, tls }: { driver: string; api: FakeApiServer; audience: string; tls: TlsFiles }
  ): Promise<Sidecar> {
    const sidecar = new Sidecar(driver, api, audience, tls)
    t.teardown(() => {
      sidecar.stop()
      sidecar.#driver.close()
    })
    sidecar.driverName = ((await sidecar.#unary('GetPluginInfo')) as { name: string }).name
    while (!((await sidecar.#unary('Probe')) as { ready: { value: boolean } }).ready.value) {
      await new Promise((resolve) => setTimeout(resolve, 50))
    }
    const { capabilities } = (await sidecar.#unary('GetPluginCapabilities')) as {
      capabilities: { service?: { type: string } }[]
    }
    if (!capabilities.some(({ service }) => service?.type === 'SNAPSHOT_METADATA_SERVICE')) {
      throw new Error('the driver offers no snapshot metadata')
    }
    await sidecar.listen()
    return sidecar
  }

  get address(): string {
    return `localhost:${this.#port}`
  }

  /** The object that tells the cluster of it. */
  async serviceObject(): Promise<KubernetesObject> {
    const caCert = (await readFile(this.#tls.ca)).toString('base64')
    return {
      apiVersion: 'cbt.storage.k8s.io/v1beta1',
      kind: 'SnapshotMetadataService',
      metadata: { name: this.driverName },
      spec: { address: this.address, audience: this.#audience, caCert }
    } as KubernetesObject
  }

  async listen(): Promise<void> {
    const pair = { cert_chain: await readFile(this.#tls.certificate), private_key: await readFile(this.#tls.key) }
    const serverCredentials = ServerCredentials.createSsl(null, [pair])
    // Each time a new one: a server of grpc-js tries an address only once.
    await oncePortIsFree(() => this.#listenOnce(serverCredentials))
  }

  async #listenOnce(serverCredentials: ServerCredentials): Promise<void> {
    const server = new Server()
    server.addService(sidecarMethods, {
      GetMetadataAllocated: (call: ServerWritableStream<Fields, object>) =>
        this.#serve(call, 'GetMetadataAllocated', 'snapshot_name', (snapshot_id) => ({ snapshot_id })),
      GetMetadataDelta: (call: ServerWritableStream<Fields, object>) =>
        this.#serve(call, 'GetMetadataDelta', 'target_snapshot_name', (target_snapshot_id) => ({
          target_snapshot_id,
          base_snapshot_id: call.request['base_snapshot_id']
        }))
    })
    this.#port = await new Promise<number>((resolve, reject) =>
      server.bindAsync(`localhost:${this.#port}`, serverCredentials, (error, port) =>
        error ? reject(error) : resolve(port)
      )
    )
    this.#server = server
  }

  /** As if it were killed: connections are cut. */
  stop(): void {
    this.#server?.forceShutdown()
    this.#server = undefined
  }

  #unary(method: string): Promise<object> {
    const { path, requestSerialize, responseDeserialize } = csi[method]
    return new Promise((resolve, reject) =>
      this.#driver.makeUnaryRequest(path, requestSerialize, responseDeserialize, {}, (error, response) =>
        error ? reject(error) : resolve(response!)
      )
    )
  }

  #serve(
    call: ServerWritableStream<Fields, object>,
    method: string,
    nameField: string,
    ids: (handle: string) => object
  ): void {
    const { security_token, ...request } = call.request
    this.requests.push(request)
    this.running.add(call)
    const over = () => this.running.delete(call)
    call.once('cancelled', over)
    call.once('finish', over)
    const refuse = (refusal: Refusal) => {
      over()
      call.emit('error', refusal)
    }
    const token = this.#api.tokens.get(security_token ?? '')
    if (token === undefined || token.audience !== this.#audience || token.expires < Date.now()) {
      refuse({ code: status.UNAUTHENTICATED, details: 'unable to authenticate: token is not valid' })
      return
    }
    const content = this.#contentOf(request['namespace'], request[nameField])
    const handle = textOf(content, 'status', 'snapshotHandle')
    if (handle === undefined) {
      refuse({ code: status.UNAVAILABLE, details: 'failed to get VolumeSnapshot' })
      return
    }
    if (textOf(content, 'spec', 'driver') !== this.driverName) {
      refuse({ code: status.INVALID_ARGUMENT, details: "the snapshot's driver is another" })
      return
    }
    const { path, requestSerialize, responseDeserialize } = csi[method]
    const { starting_offset, max_results } = request
    const breakdown = this.breakdowns.shift()
    let passed = 0
    const stream = this.#driver.makeServerStreamRequest(path, requestSerialize, responseDeserialize, {
      ...ids(handle),
      starting_offset,
      max_results
    })
    call.on('cancelled', () => stream.cancel())
    stream.on('data', (message: object) => {
      if (breakdown !== undefined && passed++ >= breakdown.after) {
        stream.cancel()
        if (breakdown.how === 'hang') return
        if (breakdown.how !== 'cut') return void refuse(breakdown.how)
        this.stop()
        void this.listen()
        return
      }
      call.write(message)
    })
    const unbroken = () => breakdown === undefined || passed <= breakdown.after
    stream.on('end', () => {
      if (unbroken()) call.end()
    })
    stream.on('error', ({ code, details }: ServiceError) => {
      if (unbroken()) refuse({ code, details })
    })
  }

  #contentOf(namespace: string, name: string): KubernetesObject | undefined {
    const snapshot = this.#api.object('/apis/snapshot.storage.k8s.io/v1/volumesnapshots', name, namespace)
    const content = textOf(snapshot, 'status', 'boundVolumeSnapshotContentName')
    return content === undefined
      ? undefined
      : this.#api.object('/apis/snapshot.storage.k8s.io/v1/volumesnapshotcontents', content)
  }
}

/** A VolumeSnapshot and its content. */
export function boundSnapshot(
  driver: string,
  name: string,
  snapshotHandle: string,
  namespace = 'shop'
): [KubernetesObject, KubernetesObject] {
  const snapshot = {
    apiVersion: 'snapshot.storage.k8s.io/v1',
    kind: 'VolumeSnapshot',
    metadata: { name, namespace },
    spec: { source: { persistentVolumeClaimName: 'data' }, volumeSnapshotClassName: 'thin' },
    status: { boundVolumeSnapshotContentName: `snapcontent-${name}`, readyToUse: true }
  }
  const content = {
    apiVersion: 'snapshot.storage.k8s.io/v1',
    kind: 'VolumeSnapshotContent',
    metadata: { name: `snapcontent-${name}` },
    spec: { driver, source: { volumeHandle: 'data' }, volumeSnapshotRef: { name, namespace } },
    status: { snapshotHandle, readyToUse: true }
  }
  return [snapshot, content]
}
