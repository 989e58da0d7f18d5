/**
 * The csi.v1.SnapshotMetadata service: checks a request, asks the backend, and passes its messages on at the client's
 * pace.
 *
 * A stream ends OK only when the backend's messages have ended normally and every one has been written. Everything else
 * ends with the status of a DeltamapperError: a bad request, an error of the backend, the caller gone, its deadline
 * passed, the agent stopping. A message is requested only once the connection has taken the one before. So the slowest
 * client costs the memory of one message here, and of those that its backend makes ahead.
 *
 * (CSI spec, "SnapshotMetadata Service RPC": the rules of the fields, and the error table.)
 */
import { isIP } from 'node:net'
import type { Metadata, ServerWritableStream } from '@grpc/grpc-js'
import type { Logger } from 'pino'
import { asDeltamapperError, defect, DeltamapperError, type ErrorCode, invalid } from '../errors.ts'
import { Bursts } from '../memory-after-bursts.ts'
import { sparinglyByClient } from '../sparing-log.ts'
import { BlockMetadataEncoder, maximumMessageBytes } from './block-metadata.ts'
import { type CallContext, callContext, ownHandlesMetadata } from './call-context.ts'
import { CallTurns } from './call-turns.ts'
import { snapshotMetadataService, type AllocatedRequest, type DeltaRequest } from './snapshot-metadata-methods.ts'
import { settledWithin } from './settled.ts'
import { nameOfStatus, remarkMetadata, toStatus } from './status.ts'

/** An answer on its way: encoded response messages, each complete in itself (see BlockMetadataEncoder). */
export interface EncodedStream {
  /**
   * Size of the (target) snapshot in bytes, the same as in the messages. Left out by a backend that only passes
   * messages on: without a message, there is no answer then.
   */
  readonly capacityBytes?: number
  /**
   * At least one message. It ends when the answer is complete, and throws a DeltamapperError when it cannot be
   * completed. It is closed early (`return()`) when the call ends otherwise. A message belongs to the receiver: if it
   * is the whole of its ArrayBuffer, it is detached once it has been sent, so that its memory does not wait for the
   * garbage collector.
   */
  readonly messages: AsyncIterable<Uint8Array>
  /** The device that the caller named, where the answer is about it (CallContext). */
  readonly device?: string
  /** For a person, though there is an answer; sent as initial metadata, under `remarkKey`. */
  readonly remark?: string
  /** The node of the answer, if it is not our own; for the log line. */
  readonly node?: string
  /** The cost of the answer so far (nodes read and the like), for the log line at the end of the call. */
  readonly statistics?: () => Record<string, number>
}

/**
 * Where the answers come from. The service has checked every field that can be checked without knowing the snapshots:
 * ids have 1 to 128 bytes, `startingOffset` and `maxResults` are 0 or more. The backend refuses an offset beyond the
 * capacity (DM_OFFSET_OUT_OF_RANGE); one equal to it gets a complete, empty answer. When `signal` aborts, its reason is
 * a DeltamapperError, and the backend stops at once. That includes the call's deadline, which a backend passes on with
 * `call`.
 */
export interface SnapshotMetadataBackend {
  allocated(request: AllocatedRequest, signal: AbortSignal, call?: CallContext): Promise<EncodedStream>
  delta(request: DeltaRequest, signal: AbortSignal, call?: CallContext): Promise<EncodedStream>
}

export type MethodName = keyof typeof snapshotMetadataService

/** Gets the events of calls, for metrics. */
export interface CallObserver {
  begun(): void
  /** A message has been written. */
  sent(method: MethodName, bytes: number): void
  ended(call: EndedCall): void
}

export interface EndedCall {
  readonly method: MethodName
  /** gRPC's name of the status that the caller gets. */
  readonly status: string
  /** Undefined without an error. */
  readonly error: ErrorCode | undefined
  readonly durationMs: number
  /** Undefined where there was none. */
  readonly firstMessageMs: number | undefined
  /** The node that answered or should have, if that is known and not our own. */
  readonly node: string | undefined
}

/** The limits of a service. */
export interface StreamLimits {
  /** Calls that may run at the same time. */
  readonly maxStreams?: number | undefined
  /** The same for one client: no client can take them all. */
  readonly maxStreamsPerClient?: number | undefined
  /** How long a client may leave a message unread, in milliseconds. For ever, unless given. */
  readonly idleMs?: number | undefined
}

export interface SnapshotMetadataOptions extends StreamLimits {
  /** Called when many calls have ended within a short time, and hardly any is left. */
  readonly onBurstOver?: (() => void) | undefined
  readonly observer?: CallObserver | undefined
}

const nobody: CallObserver = { begun: () => undefined, sent: () => undefined, ended: () => undefined }

/** CSI's limit for any string field. */
const maximumIdBytes = 128

/** The longest delay that setTimeout takes, in milliseconds: about 25 days. A longer wait has no timer. */
const longestTimer = 2 ** 31 - 1

type Call<Request> = ServerWritableStream<Request, Uint8Array>

export class SnapshotMetadataService {
  static readonly definition = snapshotMetadataService

  readonly implementation = {
    GetMetadataAllocated: (call: Call<AllocatedRequest>) => {
      this.#begin(call, 'GetMetadataAllocated', checkAllocated, (signal, context) =>
        this.#backend.allocated(call.request, signal, context)
      )
    },
    GetMetadataDelta: (call: Call<DeltaRequest>) => {
      this.#begin(call, 'GetMetadataDelta', checkDelta, (signal, context) =>
        this.#backend.delta(call.request, signal, context)
      )
    }
  }

  readonly #backend: SnapshotMetadataBackend
  readonly #logger: Logger
  readonly #observer: CallObserver
  readonly #limits: { readonly all: number; readonly perClient: number; readonly idleMs: number }
  readonly #running = new Map<Promise<void>, AbortController>()
  /**
   * Calls whose end HTTP/2 has not seen, by client. An unread call stays, with its last message, after we are done with
   * it.
   */
  readonly #clients = new Map<string, number>()
  #open = 0
  readonly #turns = new CallTurns()
  readonly #bursts: Bursts
  readonly #logOfMany: (client: string, fields: object) => void
  #stopping = false

  constructor(
    backend: SnapshotMetadataBackend,
    logger: Logger,
    {
      observer = nobody,
      maxStreams = Infinity,
      maxStreamsPerClient = Infinity,
      idleMs = Infinity,
      onBurstOver = () => undefined
    }: SnapshotMetadataOptions = {}
  ) {
    this.#backend = backend
    this.#logger = logger
    this.#observer = observer
    this.#limits = { all: maxStreams, perClient: maxStreamsPerClient, idleMs }
    this.#bursts = new Bursts(onBurstOver)
    this.#logOfMany = sparinglyByClient((fields) => logger.info(fields, 'call'))
  }

  /** Calls that have begun and not yet ended. */
  get running(): number {
    return this.#running.size
  }

  /**
   * Refuses new calls from now on, lets running ones finish for `graceMs`, then ends the rest with DM_SHUTTING_DOWN.
   * Resolves when the last one has ended, or a second later if its backend does not react.
   */
  async drain(graceMs: number): Promise<void> {
    this.#stopping = true
    await settledWithin(this.#running.keys(), graceMs)
    for (const controller of this.#running.values()) controller.abort(shuttingDown())
    await settledWithin(this.#running.keys(), 1000)
  }

  #begin<Request extends AllocatedRequest | DeltaRequest>(
    call: Call<Request>,
    method: MethodName,
    check: (request: Request) => void,
    ask: (signal: AbortSignal, context: CallContext) => Promise<EncodedStream>
  ): void {
    const controller = new AbortController()
    const context = callContext(call)
    const { client } = context
    const [all, ofClient] = [this.#open, this.#clients.get(client) ?? 0]
    this.#open++
    this.#bursts.begun()
    this.#clients.set(client, ofClient + 1)
    // grpc-js's event for the end of a call, for any reason.
    call.on('cancelled', () => {
      this.#open--
      this.#bursts.ended()
      const left = (this.#clients.get(client) ?? 1) - 1
      if (left > 0) this.#clients.set(client, left)
      else this.#clients.delete(client)
    })
    const run = this.#run(call, context, method, controller, async (signal) => {
      if (this.#stopping) throw shuttingDown()
      if (all >= this.#limits.all) throw tooMany('maxStreams', `${all} answers are under way`)
      if (ofClient >= this.#limits.perClient) {
        throw tooMany('maxStreamsPerClient', `this client has ${ofClient} answers under way`)
      }
      check(call.request)
      await this.#turns.take(context.party, signal)
      return ask(signal, context)
    }).finally(() => this.#running.delete(run))
    this.#running.set(run, controller)
  }

  /** Runs one call from its request to its status and its log line. Never rejects. */
  async #run<Request extends AllocatedRequest | DeltaRequest>(
    call: Call<Request>,
    context: CallContext,
    method: MethodName,
    controller: AbortController,
    answer: (signal: AbortSignal) => Promise<EncodedStream>
  ): Promise<void> {
    const { signal } = controller
    const begin = performance.now()
    const elapsed = () => Math.round((performance.now() - begin) * 100) / 100
    const count = (bytes: number) => this.#observer.sent(method, bytes)
    const sent: Sent = { messages: 0, bytes: 0, firstMessageMs: undefined, elapsed, count }
    this.#observer.begun()
    const stopWatching = watch(call, controller)
    let stream: EncodedStream | undefined
    let failure: DeltamapperError | undefined
    let released: Promise<unknown> | undefined
    try {
      const answering = answer(signal)
      try {
        stream = await unlessAborted(answering, signal)
      } catch (error) {
        // A backend that answers after the end of the call must still be told to stop.
        released = answering.then(
          ({ messages }) => messages[Symbol.asyncIterator]().return?.(),
          () => undefined
        )
        throw error
      }
      const iterator = stream.messages[Symbol.asyncIterator]()
      const initial = initialMetadata(stream)
      if (initial) call.sendMetadata(initial)
      try {
        await passOn(call, iterator, stream.capacityBytes, sent, signal, this.#limits.idleMs)
      } catch (error) {
        released = iterator.return?.()
        throw error
      }
      call.end()
    } catch (error) {
      failure = asDeltamapperError(error)
      // A cancelled call cannot be sent anything any more.
      if (!call.cancelled) call.emit('error', toStatus(failure, isIP(context.client) === 0 ? 'ours' : 'others'))
    } finally {
      stopWatching()
    }
    try {
      this.#tell(call.request, context, method, sent, failure, stream)
      await released
    } catch (error) {
      // The call has ended already: this error comes from the backend's cleanup.
      const { requestId } = context
      this.#logger.error({ err: error, requestId, method }, 'an answer could not be closed')
    }
  }

  /** Reports the end of a call to log and observer. */
  #tell(
    request: AllocatedRequest | DeltaRequest,
    { requestId, client }: CallContext,
    method: MethodName,
    sent: Sent,
    failure: DeltamapperError | undefined,
    stream: EncodedStream | undefined
  ): void {
    const durationMs = sent.elapsed()
    const node = stream?.node ?? failure?.node
    this.#observer.ended({
      ...{ method, durationMs, firstMessageMs: sent.firstMessageMs, error: failure?.code, node },
      status: failure === undefined ? 'OK' : nameOfStatus(toStatus(failure).code)
    })
    const fields = {
      requestId,
      client,
      method,
      ...('snapshotId' in request
        ? { snapshotId: shorten(request.snapshotId) }
        : {
            baseSnapshotId: shorten(request.baseSnapshotId),
            targetSnapshotId: shorten(request.targetSnapshotId)
          }),
      startingOffset: String(request.startingOffset),
      maxResults: request.maxResults,
      status: failure?.status ?? 'OK',
      ...(failure && { code: failure.code, reason: failure.line }),
      messages: sent.messages,
      bytes: sent.bytes,
      durationMs,
      ...(sent.firstMessageMs !== undefined && { firstMessageMs: sent.firstMessageMs }),
      ...(node !== undefined && { node }),
      ...(stream?.statistics && { statistics: stream.statistics() })
    }
    if (failure === undefined) this.#logger.info(fields, 'call')
    else if (failure.status === 'INTERNAL' || failure.status === 'DATA_LOSS') {
      this.#logger.error({ ...fields, err: failure.cause ?? failure }, 'call')
    } else if (cheapToCause.includes(failure.code)) this.#logOfMany(client, fields)
    else this.#logger.info(fields, 'call')
  }
}

/** A caller can cause any number of these; a few a minute are logged of each client. */
const cheapToCause: readonly ErrorCode[] = ['DM_CANCELLED', 'DM_TOO_MANY_STREAMS']

/** What has been sent of an answer, for the log. */
interface Sent {
  messages: number
  bytes: number
  firstMessageMs: number | undefined
  elapsed(): number
  /** Reports a message to the observer. */
  count(bytes: number): void
}

/**
 * Passes the messages on one by one, and sends an empty one if there was none: a client learns the capacity from
 * messages only. None is requested before the connection has taken the one before. Making messages ahead is the
 * backend's task, which bounds them.
 */
async function passOn(
  call: Call<unknown>,
  iterator: AsyncIterator<Uint8Array>,
  capacityBytes: number | undefined,
  sent: Sent,
  signal: AbortSignal,
  idleMs: number
): Promise<void> {
  for (;;) {
    const next = await unlessAborted(iterator.next(), signal)
    if (next.done && sent.messages > 0) return
    const message = next.done ? emptyMessage(capacityBytes) : next.value
    if (message.length > maximumMessageBytes) {
      throw defect(`a message of ${message.length} bytes was made, and ${maximumMessageBytes} are allowed`)
    }
    sent.messages++
    sent.bytes += message.length
    sent.count(message.length)
    sent.firstMessageMs ??= sent.elapsed()
    // The timer is the outer one: a write whose call has ended may never be answered.
    await unlessIdle(unlessAborted(write(call, message), signal), idleMs)
  }
}

function emptyMessage(capacityBytes: number | undefined): Uint8Array {
  if (capacityBytes !== undefined) return new BlockMetadataEncoder(capacityBytes, 1).finish()
  throw new DeltamapperError(
    'DM_ANSWER_INVALID',
    'the agent ended its answer without a message, so the capacity is not known',
    'ask again from the beginning; if it stays, see what the log of that agent says of the call'
  )
}

/**
 * Resolves when the connection has taken the message: HTTP/2 flow control lets it go no faster than the client reads.
 */
function write(call: Call<unknown>, message: Uint8Array): Promise<void> {
  return new Promise((resolve, reject) => {
    // A write can only fail because the stream is gone.
    call.write(message, (error: Error | null | undefined) => {
      release(message)
      if (error) reject(cancelled())
      else resolve()
    })
  })
}

/** Settles as `writing` does, or rejects with DM_CLIENT_IDLE when it takes too long. */
async function unlessIdle(writing: Promise<void>, idleMs: number): Promise<void> {
  if (idleMs > longestTimer) return writing
  let timer: NodeJS.Timeout | undefined
  const idle = new Promise<never>((_, reject) => (timer = setTimeout(() => reject(clientIdle(idleMs)), idleMs)))
  try {
    await Promise.race([writing, idle])
  } finally {
    clearTimeout(timer)
  }
}

/** Frees a message's memory: grpc-js has copied it. Small ones may be in memory that others share. */
function release({ buffer, byteLength }: Uint8Array): void {
  if (buffer instanceof ArrayBuffer && byteLength === buffer.byteLength && byteLength > Buffer.poolSize)
    buffer.transfer(0)
}

/** Aborts `controller` when the caller goes away or its deadline passes. Returns a function that ends the watch. */
function watch(call: Call<unknown>, controller: AbortController): () => void {
  const deadline = Number(call.getDeadline())
  const delay = Math.max(deadline - Date.now(), 0)
  // grpc-js has a timer of its own, but a client that does not read keeps it from ending the call.
  const timer = delay <= longestTimer ? setTimeout(() => controller.abort(deadlineExceeded()), delay) : undefined
  call.on('cancelled', () => controller.abort(Date.now() >= deadline ? deadlineExceeded() : cancelled()))
  return () => clearTimeout(timer)
}

/** Settles as `promise` does, or rejects with the signal's reason as soon as it aborts. */
function unlessAborted<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const onAbort = () => reject(signal.reason as DeltamapperError)
    if (signal.aborted) onAbort()
    else signal.addEventListener('abort', onAbort, { once: true })
    promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', onAbort))
  })
}

function checkAllocated(request: AllocatedRequest): void {
  checkId('snapshot_id', request.snapshotId)
  checkNumbers(request)
}

function checkDelta(request: DeltaRequest): void {
  checkId('base_snapshot_id', request.baseSnapshotId)
  checkId('target_snapshot_id', request.targetSnapshotId)
  checkNumbers(request)
}

function checkId(field: string, id: string): void {
  if (id === '') {
    throw new DeltamapperError('DM_ARGUMENT_MISSING', `${field} is empty`, 'name a snapshot')
  }
  const length = Buffer.byteLength(id)
  if (length > maximumIdBytes) {
    throw new DeltamapperError(
      'DM_HANDLE_INVALID',
      `${field} is ${length} bytes long, and CSI allows ${maximumIdBytes}`,
      'give the snapshot handle as the CSI driver made it'
    )
  }
}

function checkNumbers({ startingOffset, maxResults }: AllocatedRequest | DeltaRequest): void {
  if (maxResults < 0) {
    throw invalid(
      `max_results is ${maxResults}`,
      'give the most extents a message may hold, or 0 to leave it to the server'
    )
  }
  if (startingOffset < 0n) {
    throw new DeltamapperError(
      'DM_OFFSET_OUT_OF_RANGE',
      `starting_offset is ${startingOffset}`,
      'give 0, or the end of the last extent received'
    )
  }
}

function shorten(id: string): string {
  return id.length <= maximumIdBytes ? id : `${id.slice(0, maximumIdBytes)}…`
}

function cancelled(): DeltamapperError {
  return new DeltamapperError('DM_CANCELLED', 'the caller ended the call', 'call again')
}

function clientIdle(idleMs: number): DeltamapperError {
  return new DeltamapperError(
    'DM_CLIENT_IDLE',
    `the client has read nothing of its answer for ${idleMs / 1000} seconds`,
    'resume from the end of the last extent received, or allow more time (idleSeconds)'
  )
}

function deadlineExceeded(): DeltamapperError {
  return new DeltamapperError(
    'DM_DEADLINE_EXCEEDED',
    "the call's deadline passed before the answer was complete",
    'allow more time, or resume from the end of the last extent received'
  )
}

function tooMany(limit: string, what: string): DeltamapperError {
  return new DeltamapperError(
    'DM_TOO_MANY_STREAMS',
    `${what}, and no more are allowed`,
    `call again when one has ended, or allow more (${limit})`
  )
}

function shuttingDown(): DeltamapperError {
  return new DeltamapperError(
    'DM_SHUTTING_DOWN',
    'the server is stopping',
    'call again once it is back, from the end of the last extent received'
  )
}

/** What goes before the first message; it can be sent once only. */
function initialMetadata({ device, remark }: EncodedStream): Metadata | undefined {
  if (device === undefined && remark === undefined) return undefined
  const metadata = ownHandlesMetadata({ device })
  if (remark !== undefined) metadata.merge(remarkMetadata(remark))
  return metadata
}
