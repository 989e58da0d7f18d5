/**
 * The router's half of csi.v1.SnapshotMetadata: a backend (snapshot-metadata.ts) without answers of its own. It finds
 * the agent that has the snapshot and passes that agent's messages on, byte for byte, undecoded, as the service asks
 * for them. So a slow client slows the agent's walk, and a call that ends here ends there.
 *
 * An agent that cannot be reached is tried again for a while, but only until its first message has arrived. A
 * connection that is lost later ends the call with DM_AGENT_UNREACHABLE: the client knows where to resume. OK leaves
 * only if the agent said OK.
 *
 * The agent gets the request without its secrets, which no agent needs.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import {
  type Client,
  connectivityState,
  Metadata,
  type MethodDefinition,
  status as grpcStatus,
  type StatusObject
} from '@grpc/grpc-js'
import { asDeltamapperError, DeltamapperError, type ErrorCode } from '../../errors.ts'
import type { AgentChannels } from './agent-channels.ts'
import { type CallContext, onwardMetadata } from '../../grpc/call-context.ts'
import { MessagesAhead } from './messages-ahead.ts'
import {
  type AllocatedRequest,
  type DeltaRequest,
  getMetadataAllocated,
  getMetadataDelta
} from '../../grpc/snapshot-metadata-methods.ts'
import type { EncodedStream, SnapshotMetadataBackend } from '../../grpc/snapshot-metadata.ts'
import { connectionFailure } from '../../grpc/connection-failure.ts'
import { isServiceError, RelayedStatus, type WireStatus } from '../../grpc/status.ts'

/** The agent to ask, and the handle for it. */
export interface Place {
  readonly node: string
  /** The agent's present address. */
  readonly address: string
  /** The snapshot's name for the node's agent. */
  readonly handle: string
  /** The age of the knowledge that it is there, if that is not up to date. For the log. */
  readonly ageSeconds?: number | undefined
}

/**
 * Finds the nodes of snapshots. Throws a DeltamapperError if that cannot be told for certain. `call` is for asking
 * agents.
 */
export interface SnapshotLocator {
  target(snapshotId: string, signal: AbortSignal, call?: CallContext): Promise<Place>
  /** Base and target on the same node. */
  pair(
    baseSnapshotId: string,
    targetSnapshotId: string,
    signal: AbortSignal,
    call?: CallContext
  ): Promise<{ target: Place; baseHandle: string }>
}

export interface RouterOptions {
  /** How long to try to reach an agent, in milliseconds. */
  readonly connectMs: number
  /** Called for each attempt to have an agent answer a call. */
  readonly onTry?: (node: string) => void
}

/**
 * Messages that are read before the client of a call has taken those before: one on its way out while the next arrives.
 */
const MESSAGES_AHEAD = 2

/** The pause between two tries, in milliseconds: doubled each time, up to the longest. */
const [shortestPauseMs, longestPauseMs] = [50, 1000]

export function routerBackend(
  locator: SnapshotLocator,
  channels: AgentChannels,
  { connectMs, onTry }: RouterOptions
): SnapshotMetadataBackend {
  return {
    async allocated(request, signal, call) {
      const place = await locator.target(request.snapshotId, signal, call)
      return passedOn(getMetadataAllocated, { ...request, snapshotId: place.handle }, place, signal, call)
    },
    async delta(request, signal, call) {
      const { baseSnapshotId, targetSnapshotId } = request
      const { target, baseHandle } = await locator.pair(baseSnapshotId, targetSnapshotId, signal, call)
      const asked = { ...request, baseSnapshotId: baseHandle, targetSnapshotId: target.handle }
      return passedOn(getMetadataDelta, asked, target, signal, call)
    }
  }

  function passedOn<Request extends AllocatedRequest | DeltaRequest>(
    method: MethodDefinition<Request, Uint8Array>,
    request: Request,
    place: Place,
    signal: AbortSignal,
    call?: CallContext
  ): EncodedStream {
    const deadline = call?.deadline ?? Infinity
    let tries = 0
    async function* messages(): AsyncGenerator<Uint8Array, void> {
      const giveUp = Date.now() + connectMs
      for (let pause = shortestPauseMs; ; pause = Math.min(2 * pause, longestPauseMs)) {
        tries++
        onTry?.(place.node)
        let begun = false
        try {
          using taken = channels.take(place.address, call?.party)
          for await (const message of answer(taken.client, method, request, place, {
            signal,
            deadline,
            giveUp,
            call
          })) {
            begun = true
            yield message
          }
          return
        } catch (error) {
          const again = error instanceof DeltamapperError && error.code === 'DM_AGENT_UNREACHABLE' && !begun
          if (!again || Date.now() + pause >= giveUp) throw error
        }
        await pausing(pause, signal)
      }
    }
    return {
      messages: messages(),
      node: place.node,
      statistics: () => ({ tries, ...(place.ageSeconds !== undefined && { placeAgeSeconds: place.ageSeconds }) })
    }
  }
}

/**
 * Whether an agent has a snapshot, without reading any of its metadata: a starting offset that no volume reaches is
 * refused once the snapshot has been found, and not before.
 *
 * @returns true or false, or, if the agent gave no answer, the reason (it names the node)
 */
export async function hasSnapshot(
  client: Client,
  place: Place,
  signal: AbortSignal,
  connectMs: number,
  call?: CallContext
): Promise<boolean | string> {
  const deadline = Date.now() + connectMs
  const request = { snapshotId: place.handle, startingOffset: 2n ** 63n - 1n, maxResults: 0 }
  try {
    const messages = answer(client, getMetadataAllocated, request, place, { signal, deadline, giveUp: deadline, call })
    await messages.next()
    await messages.return()
    return `the agent of node ${place.node} answers what no agent does`
  } catch (error) {
    if (signal.aborted) throw signal.reason
    const said = asDeltamapperError(error)
    if (!(said instanceof RelayedStatus)) return said.message
    if (saysYes.includes(said.code)) return true
    return saysNo.includes(said.code) ? false : `the agent of node ${place.node} says ${said.line}`
  }
}

/** A thick one, one in an inactive pool, or one that is there twice is found as well: that agent answers the error. */
const saysYes: readonly ErrorCode[] = [
  'DM_OFFSET_OUT_OF_RANGE',
  'DM_NOT_TRACKED',
  'DM_POOL_INACTIVE',
  'DM_HANDLE_AMBIGUOUS'
]
const saysNo: readonly ErrorCode[] = ['DM_SNAPSHOT_NOT_FOUND', 'DM_HANDLE_INVALID']

interface TryOptions {
  readonly signal: AbortSignal
  /** Milliseconds since 1970. */
  readonly deadline: number
  /** When to stop waiting for the connection, in milliseconds since 1970. */
  readonly giveUp: number
  readonly call?: CallContext | undefined
}

/** One attempt. Throws RelayedStatus with the agent's status, or DM_AGENT_UNREACHABLE. */
async function* answer<Request>(
  client: Client,
  { path, requestSerialize }: MethodDefinition<Request, Uint8Array>,
  request: Request,
  place: Place,
  { signal, deadline, giveUp, call }: TryOptions
): AsyncGenerator<Uint8Array, void> {
  signal.throwIfAborted()
  const ahead = new MessagesAhead(MESSAGES_AHEAD)
  const stream = client.makeServerStreamRequest(
    path,
    requestSerialize,
    (message: Buffer) => message,
    request,
    call ? onwardMetadata(call) : new Metadata(),
    { ...(deadline === Infinity ? {} : { deadline }), interceptors: [ahead.interceptor] }
  )
  const cancel = () => stream.cancel()
  signal.addEventListener('abort', cancel, { once: true })
  // A connection may neither succeed nor fail: packets to a node that is gone are lost.
  const connecting = setTimeout(
    () => {
      if (client.getChannel().getConnectivityState(false) !== connectivityState.READY) cancel()
    },
    Math.max(0, giveUp - Date.now())
  )
  const ended = new Promise<StatusObject>((resolve) => stream.on('status', resolve))
  // A cancelled stream reports its end as an error, even after the loop below was left.
  stream.on('error', () => undefined)
  let begun = false
  try {
    for await (const message of stream) {
      signal.throwIfAborted()
      begun = true
      clearTimeout(connecting)
      yield message as Buffer
      ahead.taken()
    }
    const status = await ended
    if (status.code !== grpcStatus.OK) throw notOk(status, place, begun)
  } catch (error) {
    if (signal.aborted) throw signal.reason
    throw isServiceError(error) ? notOk(error, place, begun) : error
  } finally {
    clearTimeout(connecting)
    signal.removeEventListener('abort', cancel)
    stream.cancel()
  }
}

/** How grpc-js reports a connection's failures. An agent's own errors begin with their code. */
const ofTheConnection = [grpcStatus.UNAVAILABLE, grpcStatus.CANCELLED, grpcStatus.INTERNAL, grpcStatus.UNKNOWN]

function notOk(status: WireStatus, { node, address }: Place, begun: boolean): DeltamapperError {
  const { code, details, metadata } = status
  if (/^DM_[A-Z_]+: /.test(details) || !ofTheConnection.includes(code)) {
    // HTTP's own headers belong to each connection.
    for (const own of ['content-type', 'date']) metadata?.remove(own)
    return new RelayedStatus({ code, details, ...(metadata && { metadata }) }, address)
  }
  const { why, remedy = 'see whether it runs, and what it logs' } = connectionFailure(details)
  return new DeltamapperError(
    'DM_AGENT_UNREACHABLE',
    `the agent of node ${node} at ${address} ${begun ? 'was lost in the middle of its answer' : 'does not answer'} (${why})`,
    begun ? 'resume from the end of the last extent received' : remedy
  )
}

async function pausing(ms: number, signal: AbortSignal): Promise<void> {
  try {
    await sleep(ms, undefined, { signal })
  } catch {
    throw signal.reason
  }
}
