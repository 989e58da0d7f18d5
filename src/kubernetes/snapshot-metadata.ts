/**
 * Changed blocks of a Kubernetes cluster's snapshots, for backup software: `deltamapper kube` as a library (`import {
 * connectToCluster } from 'deltamapper/kubernetes'`). It works with any CSI driver that offers Kubernetes'
 * SnapshotMetadata service (KEP-3314), ours or another.
 *
 * VolumeSnapshot → VolumeSnapshotContent → driver → SnapshotMetadataService (address, audience, certificates) →
 * TokenRequest → gRPC over TLS. Names are looked up for each question; tokens live for minutes and are renewed. A
 * stream that breaks is resumed (resuming.ts), for the same VolumeSnapshot: a new one of the same name is another
 * snapshot.
 */
import type { Client } from '@grpc/grpc-js'
import type { ExtentAnswer } from '../devicemapper/extents.ts'
import { DeltamapperError } from '../errors.ts'
import { askForExtents, type CallOptions, requestNumbers } from '../grpc/client.ts'
import { fromSidecarStatus, openSidecarChannel, type SidecarService } from '../grpc/sidecar-client.ts'
import { getSidecarAllocated, getSidecarDelta } from '../grpc/sidecar-methods.ts'
import type { WireStatus } from '../grpc/status.ts'
import { type ApiOptions, KubernetesApi } from './api.ts'
import { checkAddress, checkHandle, checkNamespace, checkServiceAccount, checkSnapshotName } from './names.ts'
import { fieldOf, textOf } from './object.ts'
import { resuming, type Resumption } from './resuming.ts'

export type { ExtentAnswer, ExtentBatch } from '../devicemapper/extents.ts'
export { DeltamapperError, type ErrorCode } from '../errors.ts'
export type { CallOptions } from '../grpc/client.ts'
export type { Resumption } from './resuming.ts'

export interface ClusterOptions extends ApiOptions {
  /** `NAMESPACE/NAME` of the service account that tokens are made for; by default our own. */
  readonly serviceAccount?: string | undefined
  /**
   * HOST:PORT where the driver's service is reached from here, if not at the address in its SnapshotMetadataService
   * (outside of the cluster, through a forwarded port). Its certificate must still be for that address.
   */
  readonly address?: string | undefined
  /** How long a token is valid, in seconds; at least 600, the default: that is Kubernetes' minimum. */
  readonly tokenSeconds?: number | undefined
  /**
   * How many failures in a row, without an extent in between, are too many; default 5. With 1, a broken stream is an
   * error.
   */
  readonly tries?: number | undefined
  /**
   * The pause before the second try, in milliseconds; doubled with each try without progress, up to 30 seconds. Default
   * 1000.
   */
  readonly pauseMs?: number | undefined
  /** Called each time a stream is resumed. */
  readonly onResume?: ((event: Resumption) => void) | undefined
}

/** A VolumeSnapshot. */
export interface SnapshotName {
  readonly namespace: string
  readonly snapshotName: string
}

/**
 * The base of a comparison: a VolumeSnapshot of the same namespace, or one that may be gone, by the CSI handle it had.
 */
export type BaseSnapshot = { readonly baseSnapshotName: string } | { readonly baseSnapshotHandle: string }

export interface ClusterSnapshotMetadata {
  /**
   * The allocated extents of a snapshot, for a full backup. Resolves with the first message, or with the end of an
   * answer without one. In that case nothing was found, and the capacity is the restoreSize of the
   * VolumeSnapshotContent, or undefined if that has none. Its `batches` can be iterated once, and a batch is valid
   * until the next is requested. Only their normal end means that the answer is complete.
   *
   * @throws DeltamapperError: DM_ARGUMENT_MISSING, DM_ARGUMENT_INVALID for a malformed name; DM_SNAPSHOT_NOT_FOUND,
   *   DM_SNAPSHOT_NOT_READY, DM_CLUSTER_UNREACHABLE, DM_CLUSTER_SETUP, DM_ACCESS_DENIED, DM_UNREACHABLE; the driver's
   *   errors, of which `status` FAILED_PRECONDITION always means: take a full backup
   */
  allocated(request: SnapshotName & CallOptions): Promise<ExtentAnswer>
  /** The changes since a base, for an incremental backup. Otherwise as `allocated`. */
  delta(request: SnapshotName & BaseSnapshot & CallOptions): Promise<ExtentAnswer>
  /** The CSI handle of a snapshot. Keep it with a backup: when the snapshot is a base later, its object may be gone. */
  handle(request: SnapshotName & Pick<CallOptions, 'signal'>): Promise<string>
  /** Ends every call and closes the connections. */
  close(): void
}

/** A VolumeSnapshot at the time of a question. */
interface BoundSnapshot extends SnapshotName {
  readonly uid: string
  readonly driver: string
  readonly handle: string
  /** Bytes: restoreSize of its content, if that has one. */
  readonly restoreBytes: number | undefined
}

/** A question, until its answer has ended. */
interface Question {
  readonly options: CallOptions
  /** Aborted by the caller, the deadline, or because the client is closed. */
  readonly signal: AbortSignal
  /** Call it when the answer has ended. */
  readonly onEnd: () => void
}

/** One call to the sidecar. */
interface Call {
  readonly client: Client
  readonly securityToken: string
  readonly failure: (status: WireStatus) => DeltamapperError
  readonly signal: AbortSignal
}

interface Token {
  readonly text: string
  /** Milliseconds since 1970. */
  readonly expires: number
}

/**
 * How long before its end a token counts as expired, in milliseconds: clocks differ, and the sidecar checks it once a
 * call begins.
 */
const TOKEN_MARGIN_MS = 60_000

/** The longest delay that setTimeout takes: about 25 days. A longer wait has no timer. */
const LONGEST_TIMER_MS = 2 ** 31 - 1

/**
 * @throws DM_CONFIG_INVALID when there is no cluster to be found; DM_ARGUMENT_INVALID for a malformed service account
 *   or address
 */
export function connectToCluster(options: ClusterOptions = {}): ClusterSnapshotMetadata {
  return new ConnectedCluster(options)
}

class ConnectedCluster implements ClusterSnapshotMetadata {
  readonly #options: ClusterOptions
  readonly #api: KubernetesApi
  readonly #closing = new AbortController()
  /** By address and certificates. */
  readonly #channels = new Map<string, Client>()
  /** By audience. */
  readonly #tokens = new Map<string, Token>()
  #serviceAccount: string | undefined

  constructor(options: ClusterOptions) {
    if (options.serviceAccount !== undefined) checkServiceAccount(options.serviceAccount)
    if (options.address !== undefined) checkAddress(options.address)
    this.#options = options
    this.#serviceAccount = options.serviceAccount
    this.#api = new KubernetesApi(options)
  }

  async allocated({ namespace, snapshotName, ...options }: SnapshotName & CallOptions): Promise<ExtentAnswer> {
    return this.#answer(options, async (question) => {
      const target = await this.#snapshot({ namespace, snapshotName }, question.signal)
      return this.#resuming(target, question, (numbers, { client, securityToken, failure, signal }) => {
        const request = { securityToken, namespace, snapshotName, ...numbers }
        return askForExtents(client, getSidecarAllocated, request, failure, signal, undefined)
      })
    })
  }

  async delta({
    namespace,
    snapshotName,
    ...options
  }: SnapshotName & BaseSnapshot & CallOptions): Promise<ExtentAnswer> {
    return this.#answer(options, async (question) => {
      const target = await this.#snapshot({ namespace, snapshotName }, question.signal)
      const baseSnapshotId = await this.#baseHandle(target, options, question.signal)
      return this.#resuming(target, question, (numbers, { client, securityToken, failure, signal }) => {
        const request = { securityToken, namespace, baseSnapshotId, targetSnapshotName: snapshotName, ...numbers }
        return askForExtents(client, getSidecarDelta, request, failure, signal, undefined)
      })
    })
  }

  async handle({ namespace, snapshotName, ...options }: SnapshotName & Pick<CallOptions, 'signal'>): Promise<string> {
    return (await this.#snapshot({ namespace, snapshotName }, this.#signal(options.signal))).handle
  }

  close(): void {
    this.#closing.abort(
      new DeltamapperError('DM_CANCELLED', 'the client was closed before the answer was complete', 'call again')
    )
    for (const channel of this.#channels.values()) channel.close()
    this.#channels.clear()
  }

  /** A question, up to the first message of its answer. */
  async #answer(options: CallOptions, answer: (question: Question) => Promise<ExtentAnswer>): Promise<ExtentAnswer> {
    const { deadlineMs = Infinity } = options
    const deadline = new AbortController()
    const late = () =>
      deadline.abort(
        new DeltamapperError(
          'DM_DEADLINE_EXCEEDED',
          `the answer was not complete after ${deadlineMs / 1000} seconds`,
          'allow more time, or resume from the end of the last extent received'
        )
      )
    const timer = deadlineMs <= LONGEST_TIMER_MS ? setTimeout(late, deadlineMs).unref() : undefined
    const onEnd = () => clearTimeout(timer)
    try {
      return await answer({ options, signal: this.#signal(options.signal, deadline.signal), onEnd })
    } catch (error) {
      onEnd()
      throw error
    }
  }

  /** The signal that ends a question early, or that the client is closed. */
  #signal(...early: (AbortSignal | undefined)[]): AbortSignal {
    return AbortSignal.any([this.#closing.signal, ...early.filter((signal) => signal !== undefined)])
  }

  async #resuming(
    target: BoundSnapshot,
    { options, signal, onEnd }: Question,
    begin: (numbers: ReturnType<typeof requestNumbers>, call: Call) => Promise<ExtentAnswer>
  ): Promise<ExtentAnswer> {
    const { tries = 5, pauseMs = 1000, onResume } = this.#options
    let maybeExpired = false
    const ask = async (startingOffset: number | bigint, resumed: boolean, signal: AbortSignal) => {
      const service = await this.#service(target.driver, signal)
      const client = this.#channel(service)
      const { address } = this.#options
      const at = address === undefined ? service.address : `${address} (in place of ${service.address})`
      const before = this.#tokens.get(service.audience)
      const securityToken = await this.#token(service.audience, signal)
      const used = this.#tokens.get(service.audience) === before
      const failure = (status: WireStatus) => {
        const error = fromSidecarStatus(status, at)
        // A good token may have expired or been revoked since; a new one tells.
        maybeExpired = error.code === 'DM_ACCESS_DENIED' && used
        if (error.code === 'DM_ACCESS_DENIED') this.#tokens.delete(service.audience)
        return error
      }
      const numbers = requestNumbers({ ...options, startingOffset })
      const stream = await begin(numbers, { client, securityToken, failure, signal })
      // The sidecar has looked the name up by now: if it still means the same snapshot, it meant it all the time.
      if (resumed) await this.#stillThere(target, signal)
      return stream
    }
    const { capacityBytes = target.restoreBytes, ...answer } = await resuming(ask, {
      startingOffset: options.startingOffset ?? 0,
      tries,
      pauseMs,
      signal,
      onResume,
      onEnd,
      mayResume: ({ status, code }) =>
        status === 'UNAVAILABLE' || code === 'DM_DEADLINE_EXCEEDED' || (code === 'DM_ACCESS_DENIED' && maybeExpired)
    })
    return { capacityBytes, ...answer }
  }

  /**
   * @throws DM_SNAPSHOT_NOT_FOUND, DM_SNAPSHOT_NOT_READY, DM_CLUSTER_SETUP; DM_ARGUMENT_MISSING and _INVALID for a
   *   malformed name
   */
  async #snapshot({ namespace, snapshotName }: SnapshotName, signal: AbortSignal): Promise<BoundSnapshot> {
    checkNamespace(namespace)
    checkSnapshotName(snapshotName)
    const shown = `VolumeSnapshot ${namespace}/${snapshotName}`
    const snapshot = await this.#api.get(volumeSnapshotPath({ namespace, snapshotName }), signal)
    if (snapshot === undefined) throw noSnapshot(`there is no ${shown}`)
    const contentName = textOf(snapshot, 'status', 'boundVolumeSnapshotContentName')
    if (contentName === undefined || fieldOf(snapshot, 'status', 'readyToUse') === false) {
      const why = textOf(snapshot, 'status', 'error', 'message')
      throw notReady(`${shown} is not ready to use${why === undefined ? '' : ` (${why})`}`)
    }
    const content = await this.#api.get(
      `${snapshotApi}/volumesnapshotcontents/${encodeURIComponent(contentName)}`,
      signal
    )
    if (content === undefined) throw noSnapshot(`the VolumeSnapshotContent ${contentName} of ${shown} is gone`)
    const uid = textOf(snapshot, 'metadata', 'uid')
    const [driver, handle] = [textOf(content, 'spec', 'driver'), textOf(content, 'status', 'snapshotHandle')]
    const reference = fieldOf(content, 'spec', 'volumeSnapshotRef')
    const refersBack =
      textOf(reference, 'name') === snapshotName &&
      textOf(reference, 'namespace') === namespace &&
      (textOf(reference, 'uid') ?? uid) === uid
    if (driver === undefined || uid === undefined || !refersBack) {
      throw new DeltamapperError(
        'DM_CLUSTER_SETUP',
        `${shown} and VolumeSnapshotContent ${contentName} do not belong to each other`,
        'see who changed them; delete the VolumeSnapshot and make it anew'
      )
    }
    if (handle === undefined) throw notReady(`the VolumeSnapshotContent ${contentName} of ${shown} has no handle yet`)
    return { namespace, snapshotName, uid, driver, handle, restoreBytes: restoreBytesOf(content) }
  }

  async #baseHandle(target: BoundSnapshot, base: BaseSnapshot, signal: AbortSignal): Promise<string> {
    if ('baseSnapshotHandle' in base) {
      checkHandle(base.baseSnapshotHandle)
      return base.baseSnapshotHandle
    }
    const { namespace } = target
    const { driver, handle } = await this.#snapshot({ namespace, snapshotName: base.baseSnapshotName }, signal)
    if (driver === target.driver) return handle
    throw new DeltamapperError(
      'DM_VOLUMES_DIFFER',
      `${base.baseSnapshotName} is a snapshot of driver ${driver}, ${target.snapshotName} of ${target.driver}`,
      'compare snapshots of one volume'
    )
  }

  /** @throws DM_SNAPSHOT_CHANGED */
  async #stillThere(target: BoundSnapshot, signal: AbortSignal): Promise<void> {
    const snapshot = await this.#api.get(volumeSnapshotPath(target), signal)
    if (textOf(snapshot, 'metadata', 'uid') === target.uid) return
    throw new DeltamapperError(
      'DM_SNAPSHOT_CHANGED',
      `the VolumeSnapshot ${target.namespace}/${target.snapshotName} was deleted or replaced while it was asked about`,
      'do not use what was received; ask again from the beginning'
    )
  }

  /** @throws DM_CLUSTER_SETUP */
  async #service(driver: string, signal: AbortSignal): Promise<SidecarService & { readonly audience: string }> {
    const object = await this.#api.get(
      `/apis/cbt.storage.k8s.io/v1beta1/snapshotmetadataservices/${encodeURIComponent(driver)}`,
      signal
    )
    if (object === undefined) {
      throw new DeltamapperError(
        'DM_CLUSTER_SETUP',
        `the CSI driver ${driver} offers no snapshot metadata here: there is no SnapshotMetadataService of that name`,
        'make it for this driver (deltamapper: deploy/certificates/snapshot-metadata-service.sh), or take full backups'
      )
    }
    const [address, audience] = [textOf(object, 'spec', 'address'), textOf(object, 'spec', 'audience')]
    const caCert = textOf(object, 'spec', 'caCert')
    if (address !== undefined && audience !== undefined && caCert !== undefined) {
      return { address, audience, caCert: Buffer.from(caCert, 'base64') }
    }
    throw new DeltamapperError(
      'DM_CLUSTER_SETUP',
      `the SnapshotMetadataService ${driver} lacks address, audience or caCert`,
      `make it anew (deltamapper: deploy/certificates/snapshot-metadata-service.sh), or kubectl edit snapshotmetadataservice ${driver}`
    )
  }

  #channel({ address, caCert }: SidecarService): Client {
    const key = `${address} ${caCert.toString('base64')}`
    const known = this.#channels.get(key)
    if (known !== undefined) return known
    const channel = openSidecarChannel({ address, caCert }, this.#options.address)
    this.#channels.set(key, channel)
    return channel
  }

  /** @throws DM_ACCESS_DENIED, DM_CLUSTER_SETUP, DM_ARGUMENT_MISSING */
  async #token(audience: string, signal: AbortSignal): Promise<string> {
    const known = this.#tokens.get(audience)
    if (known !== undefined && known.expires - TOKEN_MARGIN_MS > Date.now()) return known.text
    this.#serviceAccount ??= await this.#ownServiceAccount(signal)
    const [namespace, name] = this.#serviceAccount.split('/').map(encodeURIComponent)
    const answer = await this.#api.create(
      `/api/v1/namespaces/${namespace}/serviceaccounts/${name}/token`,
      {
        apiVersion: 'authentication.k8s.io/v1',
        kind: 'TokenRequest',
        spec: { audiences: [audience], expirationSeconds: this.#options.tokenSeconds ?? 600 }
      },
      signal
    )
    const text = textOf(answer, 'status', 'token')
    const expires = Date.parse(textOf(answer, 'status', 'expirationTimestamp') ?? '')
    if (text === undefined) {
      throw new DeltamapperError(
        'DM_CLUSTER_SETUP',
        `the Kubernetes API made no token for ${this.#serviceAccount}`,
        'see the log of the API server'
      )
    }
    this.#tokens.set(audience, { text, expires: Number.isNaN(expires) ? 0 : expires })
    return text
  }

  /** Our own service account, if we have one. */
  async #ownServiceAccount(signal: AbortSignal): Promise<string> {
    const review = await this.#api.create(
      '/apis/authentication.k8s.io/v1/selfsubjectreviews',
      { apiVersion: 'authentication.k8s.io/v1', kind: 'SelfSubjectReview' },
      signal
    )
    const user = textOf(review, 'status', 'userInfo', 'username') ?? ''
    const [, namespace, name] = /^system:serviceaccount:([^:]+):([^:]+)$/.exec(user) ?? []
    if (namespace !== undefined && name !== undefined) return `${namespace}/${name}`
    throw new DeltamapperError(
      'DM_ARGUMENT_MISSING',
      `tokens are made for service accounts, and ${user === '' ? 'our user' : user} is none`,
      'name one (NAMESPACE/NAME) that may get the VolumeSnapshots'
    )
  }
}

const snapshotApi = '/apis/snapshot.storage.k8s.io/v1'

function volumeSnapshotPath({ namespace, snapshotName }: SnapshotName): string {
  return `${snapshotApi}/namespaces/${encodeURIComponent(namespace)}/volumesnapshots/${encodeURIComponent(snapshotName)}`
}

/** The size_bytes of the CSI driver's snapshot, an int64; 0 means that the driver does not know. */
function restoreBytesOf(content: unknown): number | undefined {
  const bytes = fieldOf(content, 'status', 'restoreSize')
  return Number.isSafeInteger(bytes) && Number(bytes) > 0 ? Number(bytes) : undefined
}

function noSnapshot(what: string): DeltamapperError {
  return new DeltamapperError(
    'DM_SNAPSHOT_NOT_FOUND',
    what,
    'check namespace and name (kubectl get volumesnapshots -A)'
  )
}

function notReady(what: string): DeltamapperError {
  return new DeltamapperError(
    'DM_SNAPSHOT_NOT_READY',
    what,
    'wait until it is; if that does not come, see the log of the CSI driver and of the snapshot controller'
  )
}
