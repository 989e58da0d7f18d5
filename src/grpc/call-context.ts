/**
 * The context of a call beside its request: the caller, the deadline, and the id under which every log on its way has
 * it.
 *
 * The id is made where a call enters, at the router, and travels to the agent in the metadata `x-request-id`. A caller
 * may bring its own. It ends up in log lines and nowhere else, so it must be short and plain.
 */
import { randomUUID } from 'node:crypto'
import { isIP } from 'node:net'
import { Metadata } from '@grpc/grpc-js'

export interface CallContext {
  /** Milliseconds since 1970; Infinity for none. */
  readonly deadline: number
  /** 1 to 64 characters of A-Z a-z 0-9 . _ : - */
  readonly requestId: string
  /** The caller, as far as connections tell: the IP address, or the process at the other end of a unix socket. */
  readonly client: string
  /**
   * Whose turn it is when many want to go on: the caller, or the one that a router calls for. Limits count by `client`.
   */
  readonly party: string
  /**
   * The caller means the handles as they are: it knows that they may be of two volumes, of which an answer is exact all
   * the same.
   */
  readonly anyVolume: boolean
  /**
   * What the caller has the data of (devicemapper/device-named.ts): an answer is to be about nothing else. Undefined
   * where it did not say.
   */
  readonly device?: string | undefined
}

/** What a client says beside a question, of itself; see CallContext. */
export interface OwnQuestion {
  readonly anyVolume?: boolean | undefined
  readonly device?: string | undefined
}

/** The part of grpc-js's calls that we use. */
interface IncomingCall {
  readonly metadata: Metadata
  getPeer(): string
  getDeadline(): Date | number
}

const requestIdKey = 'x-request-id'
/**
 * For whom a router calls, in the router's words. Only routers come over TCP, with their certificates; a process of
 * this machine could take more turns with it than it has a share of, so that it is not believed.
 */
const onBehalfOfKey = 'deltamapper-on-behalf-of'
/**
 * Set by our own client, whose handles are ours. A CSI driver's base and target are to be of one volume, as the
 * specification wants, so that nothing passes this on, and sidecars do not know it.
 */
const anyVolumeKey = 'deltamapper-any-volume'
/** Set by our own client that reads from a device. */
const deviceKey = 'deltamapper-device'
const plainForm = /^[A-Za-z0-9._:-]{1,64}$/

export function callContext(call: IncomingCall): CallContext {
  const [brought] = call.metadata.get(requestIdKey)
  const requestId = typeof brought === 'string' && plainForm.test(brought) ? brought : randomUUID()
  const anyVolume = call.metadata.get(anyVolumeKey)[0] === 'yes'
  const client = withoutPort(call.getPeer())
  const [behind] = call.metadata.get(onBehalfOfKey)
  const isTold = isIP(client) !== 0 && typeof behind === 'string' && plainForm.test(behind)
  const party = isTold ? `${client} for ${behind}` : client
  // Whatever it is, it has to be said again by whoever answers: a form that is wrong fits nothing.
  const device = deviceIn(call.metadata)
  const deadline = Number(call.getDeadline())
  return { deadline, requestId, client, party, anyVolume, ...(device !== undefined && { device }) }
}

/** The device that a caller has named, or a server has answered about; undefined for none. */
export function deviceIn(metadata: Metadata): string | undefined {
  return metadata.get(deviceKey)[0]?.toString()
}

/** The metadata of a client whose handles are ours. @param device what it has the data of */
export function ownHandlesMetadata({ anyVolume = false, device }: OwnQuestion): Metadata {
  const metadata = new Metadata()
  if (anyVolume) metadata.set(anyVolumeKey, 'yes')
  if (device !== undefined) metadata.set(deviceKey, device)
  return metadata
}

/**
 * The metadata that carries the id on, and who calls. Nothing else of the call goes along: tokens and the like are not
 * for the next server.
 */
export function onwardMetadata({ requestId, client }: Pick<CallContext, 'requestId' | 'client'>): Metadata {
  const metadata = new Metadata()
  metadata.set(requestIdKey, requestId)
  metadata.set(onBehalfOfKey, client)
  return metadata
}

/** One client may have any number of connections from any number of ports. */
function withoutPort(peer: string): string {
  return peer.replace(/:\d+$/, '')
}
