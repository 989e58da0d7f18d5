/**
 * A client of csi.v1.SnapshotMetadata: deltamapper's own agent, or any other CSI driver's socket.
 *
 * It does not trust the server. Each message is decoded strictly and checked against the rules of the stream
 * (stream-rules.ts) before it is passed on, and a stream that does not end OK throws.
 */
import { isIPv4, isIPv6 } from 'node:net'
import {
  type ChannelCredentials,
  type ChannelOptions,
  Client,
  credentials,
  type ClientReadableStream,
  Metadata,
  type MethodDefinition
} from '@grpc/grpc-js'
import type { ExtentAnswer, ExtentBatch } from '../devicemapper/extents.ts'
import { DeltamapperError, invalid } from '../errors.ts'
import { parseConnectAddress, type Address } from './address.ts'
import { deviceIn, ownHandlesMetadata } from './call-context.ts'
import { BlockMetadataMessage, BlockMetadataType, decodeBlockMetadata } from './block-metadata.ts'
import { getMetadataAllocated, getMetadataDelta } from './snapshot-metadata-methods.ts'
import { fromStatus, isServiceError, remarkKey, type WireStatus } from './status.ts'
import { StreamRules } from './stream-rules.ts'
import { tlsChannel, type TlsMaterial } from './tls.ts'

/** The options of both calls. */
export interface CallOptions {
  /**
   * Bytes; extents that end at or before it are left out. To resume: the end of the last extent received. Default 0.
   */
  readonly startingOffset?: number | bigint
  /** The most extents in a message; 0, the default, leaves it to the server. */
  readonly maxResults?: number
  /**
   * Ends the call. Everything that waits for it throws DM_CANCELLED (or the signal's reason, if that is a
   * DeltamapperError).
   */
  readonly signal?: AbortSignal
  /** Milliseconds until the whole answer must be there; else DM_DEADLINE_EXCEEDED. No limit unless given. */
  readonly deadlineMs?: number
  /**
   * Asked of an agent of ours: what the caller has the data of (devicemapper/device-named.ts). About anything else
   * there is no answer, but DM_NO_SUCH_DEVICE; DM_ANSWER_INVALID from a server that does not know of it.
   */
  readonly device?: string
}

export interface SnapshotMetadataClient {
  /**
   * The allocated extents of a snapshot. Resolves with the first message, or with the end of an answer without one:
   * then nothing was found, and the capacity is undefined. Its `batches` can be iterated once. Leaving the loop early
   * ends the call, and so does the signal or `close`. Extents may touch, as the server cut them.
   *
   * @throws the server's error; DM_UNREACHABLE when nothing answers; DM_ANSWER_INVALID when the answer breaks the rules
   */
  allocated(request: { readonly snapshotId: string } & CallOptions): Promise<ExtentAnswer>
  /**
   * What changed from the base to the target; otherwise as `allocated`.
   *
   * `anyVolume`: asked of an agent of ours by its own handles, two of different volumes are compared as well, where
   * they are of one pool.
   */
  delta(
    request: {
      readonly baseSnapshotId: string
      readonly targetSnapshotId: string
      readonly anyVolume?: boolean
    } & CallOptions
  ): Promise<ExtentAnswer>
  /** Ends every call and closes the connection. */
  close(): void
}

export interface ConnectOptions {
  /** Larger messages are refused. Default 4 MiB, gRPC's own and the CSI sidecar's limit. */
  readonly maximumMessageBytes?: number
  /** Mutual TLS, for `tcp://` addresses: with a server that carries `serverName` in its certificate. */
  readonly tls?: ClientTls | undefined
}

export interface ClientTls {
  readonly material: TlsMaterial
  readonly serverName: string
}

/**
 * A client for the server at `address` (see address.ts). Connects with the first call, and again after a loss.
 *
 * @throws DM_CONFIG_INVALID for a malformed address
 */
export function connect(
  address: string,
  { maximumMessageBytes = 4 * 1024 * 1024, tls }: ConnectOptions = {}
): SnapshotMetadataClient {
  const parsed = parseConnectAddress(address, { tls: tls !== undefined })
  const client = openChannel(parsed, tls, { 'grpc.max_receive_message_length': maximumMessageBytes })
  const closing = new AbortController()
  const failure = (status: WireStatus) => fromStatus(status, parsed.text)
  const withClosing = (signal: AbortSignal | undefined) =>
    signal === undefined ? closing.signal : AbortSignal.any([closing.signal, signal])
  const ask = <Request extends { readonly startingOffset: bigint; readonly maxResults: number }>(
    method: MethodDefinition<Request, Uint8Array>,
    request: Request,
    signal: AbortSignal | undefined,
    { deadlineMs }: CallOptions,
    metadata: Metadata
  ) => askForExtents(client, method, request, failure, withClosing(signal), deadlineMs, metadata)
  return {
    async allocated({ snapshotId, signal, device, ...options }) {
      const request = { snapshotId, ...requestNumbers(options) }
      const metadata = ownHandlesMetadata({ device })
      return ask(getMetadataAllocated, request, signal, options, metadata)
    },
    async delta({ baseSnapshotId, targetSnapshotId, anyVolume, signal, device, ...options }) {
      const request = { baseSnapshotId, targetSnapshotId, ...requestNumbers(options) }
      const metadata = ownHandlesMetadata({ anyVolume, device })
      return ask(getMetadataDelta, request, signal, options, metadata)
    },
    close() {
      // grpc-js lets calls go on over a closed client.
      closing.abort(
        new DeltamapperError('DM_CANCELLED', 'the client was closed before the answer was complete', 'call again')
      )
      client.close()
    }
  }
}

const flowControlWindowBytes = 1024 * 1024

/** A channel of its own, never shared. It connects with the first call, and again after a loss. */
export function openChannel(address: Address, tls: ClientTls | undefined, options: ChannelOptions): Client {
  const { credentials: channelCredentials, options: tlsOptions } =
    address.kind === 'tcp' && tls
      ? tlsChannel(tls.material, tls.serverName)
      : { credentials: credentials.createInsecure(), options: {} }
  return openChannelTo(grpcTarget(address), channelCredentials, { ...tlsOptions, ...options })
}

/** @param target as grpc-js names them: SCHEME:ADDRESS */
export function openChannelTo(target: string, channelCredentials: ChannelCredentials, options: ChannelOptions): Client {
  return new Client(target, channelCredentials, {
    // The default window of 64 KiB would make the server wait for us in the middle of each message.
    'grpc-node.flow_control_window': flowControlWindowBytes,
    // A call fails at once: the caller decides whether to call again, and from where.
    'grpc.enable_retries': 0,
    // How long a call may fail because an earlier one did, without trying again.
    'grpc.initial_reconnect_backoff_ms': 100,
    'grpc.max_reconnect_backoff_ms': 1000,
    'grpc.use_local_subchannel_pool': 1,
    'grpc.enable_http_proxy': 0,
    'grpc.enable_channelz': 0,
    ...options
  })
}

function grpcTarget(address: Address): string {
  if (address.kind === 'unix') return `unix:${address.path}`
  const { host, port } = address
  if (isIPv6(host)) return `ipv6:[${host}]:${port}`
  return isIPv4(host) ? `ipv4:${host}:${port}` : `dns:${host}:${port}`
}

/** The numbers as the wire takes them. Numbers that the server would refuse go through: refusing them is its task. */
export function requestNumbers({ startingOffset = 0, maxResults = 0 }: CallOptions) {
  const isInt64 =
    typeof startingOffset === 'number'
      ? Number.isSafeInteger(startingOffset)
      : BigInt.asIntN(64, startingOffset) === startingOffset
  if (!isInt64) throw unsendable('starting offset', startingOffset)
  if ((maxResults | 0) !== maxResults) throw unsendable('number of results', maxResults)
  return { startingOffset: BigInt(startingOffset), maxResults }
}

function unsendable(what: string, value: number | bigint): DeltamapperError {
  return invalid(`${value} cannot be sent as a ${what}`, 'give a smaller integer')
}

/**
 * One call, up to its first message. An answer that ends with OK and without a message found nothing: hostpath and
 * ceph-csi do that. Any other end throws, so that an error never looks like it.
 *
 * @param failure the error for the status that it ended with
 */
export async function askForExtents<Request extends { readonly startingOffset: bigint; readonly maxResults: number }>(
  client: Client,
  method: MethodDefinition<Request, Uint8Array>,
  request: Request,
  failure: (status: WireStatus) => DeltamapperError,
  signal: AbortSignal,
  deadlineMs: number | undefined,
  metadata = new Metadata()
): Promise<ExtentAnswer> {
  if (signal.aborted) throw cancelled(signal)
  const stream = client.makeServerStreamRequest(
    method.path,
    method.requestSerialize,
    method.responseDeserialize,
    request,
    metadata,
    deadlineMs === undefined ? {} : { deadline: Date.now() + deadlineMs }
  )
  let answeredAbout: string | undefined
  stream.once('metadata', (told: Metadata) => (answeredAbout = deviceIn(told)))
  const rules = new StreamRules(Number(request.startingOffset), request.maxResults)
  let remark: string | undefined
  stream.once('metadata', (initial: Metadata) => (remark = initial.get(remarkKey)[0]?.toString()))
  const messages = decoded(stream, rules, failure, signal)
  const first = await messages.next()
  if (answeredAbout !== deviceIn(metadata)) {
    await messages.return()
    throw new DeltamapperError(
      'DM_ANSWER_INVALID',
      'the server does not say whether its answer is about the device that has the data',
      "ask an agent of deltamapper's, of this version or later"
    )
  }
  const message = first.done ? undefined : first.value
  let iterated = false
  return {
    capacityBytes: message?.capacityBytes,
    ...(message?.type === BlockMetadataType.FIXED_LENGTH && { blockMetadataType: 'FIXED_LENGTH' }),
    ...(remark !== undefined && { remark }),
    batches: {
      [Symbol.asyncIterator]() {
        if (iterated) throw new TypeError('an answer can be read once')
        iterated = true
        return batches(message, messages)
      }
    }
  }
}

/** The messages as batches, without empty ones. Ends the call when left early, also before the first was taken. */
function batches(
  first: BlockMetadataMessage | undefined,
  rest: AsyncGenerator<BlockMetadataMessage, void>
): AsyncIterator<ExtentBatch, void> {
  const answer = withoutEmpty(first, rest)
  return {
    next: () => answer.next(),
    async return() {
      // A generator that was never asked for anything runs nothing at its end.
      await rest.return()
      return answer.return()
    }
  }
}

async function* withoutEmpty(
  first: BlockMetadataMessage | undefined,
  rest: AsyncGenerator<BlockMetadataMessage, void>
): AsyncGenerator<ExtentBatch, void> {
  if (first !== undefined && first.count > 0) yield first
  for await (const message of rest) if (message.count > 0) yield message
}

/**
 * Decodes and checks one message after the other into the same memory. grpc-js holds up to 16 messages more, and the
 * server waits once those and the flow control window are full.
 */
async function* decoded(
  stream: ClientReadableStream<Uint8Array>,
  rules: StreamRules,
  failure: (status: WireStatus) => DeltamapperError,
  signal: AbortSignal
): AsyncGenerator<BlockMetadataMessage, void> {
  const message = new BlockMetadataMessage()
  const cancel = () => stream.cancel()
  signal.addEventListener('abort', cancel, { once: true })
  // A cancelled stream reports its end as an error, even after the loop below was left.
  stream.on('error', () => undefined)
  try {
    for await (const bytes of stream) {
      // Messages that were here before the cancellation.
      if (signal.aborted) throw cancelled(signal)
      decodeBlockMetadata(bytes as Uint8Array, message)
      rules.check(message)
      yield message
    }
  } catch (error) {
    if (error instanceof DeltamapperError) throw error
    if (signal.aborted) throw cancelled(signal)
    if (isServiceError(error)) throw failure(error)
    throw error
  } finally {
    signal.removeEventListener('abort', cancel)
    stream.cancel()
  }
}

function cancelled(signal: AbortSignal): DeltamapperError {
  return signal.reason instanceof DeltamapperError
    ? signal.reason
    : new DeltamapperError('DM_CANCELLED', 'the call was cancelled before the answer was complete', 'call again')
}
