/**
 * What a client of the real flow finds in a cluster, and no more: VolumeSnapshots and their contents, the driver's
 * SnapshotMetadataService, and tokens for service accounts. The objects follow from the snapshots that there are at
 * the moment.
 */
import { randomBytes } from 'node:crypto'
import { MOCK_DRIVER_NAME } from '../driver/driver.ts'
import type { History, Snapshot } from '../driver/history.ts'

export const NAMESPACE = 'default'
export const AUDIENCE = 'mock-snapshot-metadata'
const CLASS = 'mock'

/** How long a token is good for, in seconds. */
const TOKEN_SECONDS = 600

type KubernetesObject = Readonly<Record<string, unknown>> & { readonly metadata: Readonly<Record<string, unknown>> }

export class Cluster {
  readonly #history: History
  /** Tokens that are good, with their audience. */
  readonly #tokens = new Map<string, string>()
  /** VolumeSnapshots whose name another snapshot has by now. */
  readonly #reused = new Map<string, string>()
  /** Where the service is, and the certificate of its authority. */
  service = { address: '', caCert: '' }

  constructor(history: History) {
    this.#history = history
  }

  /** A token as TokenRequest makes it. */
  token(audiences: readonly string[] = []): { token: string; expirationTimestamp: string } {
    const token = `mock-${randomBytes(16).toString('hex')}`
    this.#tokens.set(token, audiences[0] ?? '')
    return { token, expirationTimestamp: new Date(Date.now() + TOKEN_SECONDS * 1000).toISOString() }
  }

  isGood(token: string): boolean {
    return this.#tokens.get(token) === AUDIENCE
  }

  /** No token made until now is good any more. */
  expireTokens(): void {
    this.#tokens.clear()
  }

  /** From now on, the VolumeSnapshot of that snapshot's name is one of another snapshot of the volume. */
  reuseName(snapshotId: string): void {
    const { volume } = this.#history.snapshot(snapshotId)!
    const other = this.#history.snapshots.find((each) => each.volume === volume && each.id !== snapshotId)
    if (other !== undefined) this.#reused.set(snapshotId, other.id)
  }

  /** The snapshot that a VolumeSnapshot means; undefined where there is none. */
  snapshotNamed(namespace: string, name: string): Snapshot | undefined {
    return namespace === NAMESPACE ? this.#history.snapshot(this.#reused.get(name) ?? name) : undefined
  }

  /** What is at a path of the API: an object, or a list. */
  at(path: string): object | undefined {
    const all: Record<string, { kind: string; items: KubernetesObject[] }> = {
      [`/apis/snapshot.storage.k8s.io/v1/namespaces/${NAMESPACE}/volumesnapshots`]: this.#list(
        'VolumeSnapshotList',
        (each) => this.#snapshot(each)
      ),
      '/apis/snapshot.storage.k8s.io/v1/volumesnapshots': this.#list('VolumeSnapshotList', (each) =>
        this.#snapshot(each)
      ),
      '/apis/snapshot.storage.k8s.io/v1/volumesnapshotcontents': this.#list('VolumeSnapshotContentList', (each) =>
        this.#content(each)
      ),
      '/apis/snapshot.storage.k8s.io/v1/volumesnapshotclasses': {
        kind: 'VolumeSnapshotClassList',
        items: [snapshotClass()]
      },
      '/apis/cbt.storage.k8s.io/v1beta1/snapshotmetadataservices': {
        kind: 'SnapshotMetadataServiceList',
        items: [this.#service()]
      }
    }
    const list = all[path]
    if (list !== undefined) {
      const [apiVersion] = /(?<=^\/apis\/)[^/]+\/[^/]+/.exec(path) ?? ['v1']
      return { apiVersion, kind: list.kind, metadata: { resourceVersion: '1' }, items: list.items }
    }
    const [, folder, name] = /^(.*)\/([^/]+)$/.exec(path) ?? []
    return folder === undefined ? undefined : all[folder]?.items.find(({ metadata }) => metadata['name'] === name)
  }

  #list(kind: string, made: (snapshot: Snapshot) => KubernetesObject): { kind: string; items: KubernetesObject[] } {
    return { kind, items: this.#history.snapshots.map(made) }
  }

  /** The VolumeSnapshot of a snapshot's name, whatever it means. */
  #snapshot(named: Snapshot): KubernetesObject {
    const meant = this.#meant(named)
    return {
      apiVersion: 'snapshot.storage.k8s.io/v1',
      kind: 'VolumeSnapshot',
      metadata: {
        name: named.id,
        namespace: NAMESPACE,
        uid: uidOf(named, meant),
        resourceVersion: '1',
        creationTimestamp: timestamp(meant)
      },
      spec: { source: { persistentVolumeClaimName: meant.volume }, volumeSnapshotClassName: CLASS },
      status: {
        boundVolumeSnapshotContentName: `snapcontent-${named.id}`,
        readyToUse: meant.ready,
        creationTime: timestamp(meant),
        restoreSize: String(meant.capacityBytes)
      }
    }
  }

  #content(named: Snapshot): KubernetesObject {
    const meant = this.#meant(named)
    const reference = { name: named.id, namespace: NAMESPACE, uid: uidOf(named, meant) }
    return {
      apiVersion: 'snapshot.storage.k8s.io/v1',
      kind: 'VolumeSnapshotContent',
      metadata: {
        name: `snapcontent-${named.id}`,
        uid: `content-${named.id}`,
        resourceVersion: '1',
        creationTimestamp: timestamp(meant)
      },
      spec: {
        driver: MOCK_DRIVER_NAME,
        deletionPolicy: 'Retain',
        source: { volumeHandle: meant.volume },
        volumeSnapshotClassName: CLASS,
        volumeSnapshotRef: reference
      },
      status: { snapshotHandle: meant.id, readyToUse: meant.ready, restoreSize: meant.capacityBytes }
    }
  }

  #meant(named: Snapshot): Snapshot {
    return this.snapshotNamed(NAMESPACE, named.id) ?? named
  }

  #service(): KubernetesObject {
    const { address, caCert } = this.service
    return {
      apiVersion: 'cbt.storage.k8s.io/v1beta1',
      kind: 'SnapshotMetadataService',
      metadata: { name: MOCK_DRIVER_NAME, uid: 'service', resourceVersion: '1' },
      spec: { address, audience: AUDIENCE, caCert: Buffer.from(caCert).toString('base64') }
    }
  }
}

function snapshotClass(): KubernetesObject {
  return {
    apiVersion: 'snapshot.storage.k8s.io/v1',
    kind: 'VolumeSnapshotClass',
    metadata: { name: CLASS, annotations: { 'snapshot.storage.kubernetes.io/is-default-class': 'true' } },
    driver: MOCK_DRIVER_NAME,
    deletionPolicy: 'Retain'
  }
}

/** A name that is used anew is another object. */
const uidOf = (named: Snapshot, meant: Snapshot) =>
  named === meant ? `uid-${named.id}` : `uid-${named.id}-${meant.id}`

const timestamp = ({ createdAt }: Snapshot) => createdAt.toISOString().replace(/\.\d+/, '')
