/**
 * What Kubernetes' own objects say of a snapshot, for drivers without objects of their own: the VolumeSnapshotContents
 * that bind its handle, and the PersistentVolume that it was taken of.
 *
 * A handle may have several contents. The one that came with the snapshot names the volume. Those that were imported by
 * handle (backup software does that) do not, and their times are those of the import.
 */
import { fieldOf, type KubernetesObject, listOf, textOf } from '../../kubernetes/object.ts'
import { ambiguous, type Find, type Resource } from './driver.ts'

/** external-snapshotter sets it if the snapshot's node takes snapshots (--enable-distributed-snapshotting). */
const managedBy = 'snapshot.storage.kubernetes.io/managed-by'

/** These keys do not identify a node in a region or zone. */
const wideTopology = /(^|[./])(zone|region)$/

/** The objects that `snapshotFacts` reads. */
export function commonResources(driverName: string): { contents: Resource; volumes: Resource } {
  return {
    contents: {
      path: '/apis/snapshot.storage.k8s.io/v1/volumesnapshotcontents',
      keys: (object) =>
        textOf(object, 'spec', 'driver') === driverName
          ? given(textOf(object, 'status', 'snapshotHandle') ?? textOf(object, 'spec', 'source', 'snapshotHandle'))
          : [],
      fields: [
        ...[
          ['spec', 'driver'],
          ['spec', 'source'],
          ['metadata', 'labels', managedBy]
        ],
        ...[
          ['status', 'snapshotHandle'],
          ['status', 'creationTime']
        ]
      ]
    },
    volumes: {
      path: '/api/v1/persistentvolumes',
      keys: (object) =>
        textOf(object, 'spec', 'csi', 'driver') === driverName
          ? given(textOf(object, 'spec', 'csi', 'volumeHandle'))
          : [],
      // Of its attributes, those that a driver of ours looks at.
      fields: [
        ...['driver', 'volumeHandle'].map((field) => ['spec', 'csi', field]),
        ...['type', 'vgName'].map((field) => ['spec', 'csi', 'volumeAttributes', field]),
        ['spec', 'nodeAffinity', 'required', 'nodeSelectorTerms']
      ]
    }
  }
}

export interface SnapshotFacts {
  /** The handle of the volume that it is a snapshot of. */
  readonly volume?: string | undefined
  /** The node that objects name, if any do. */
  readonly node?: string | undefined
  /** The `volumeAttributes` of the volume. */
  readonly attributes: Readonly<Record<string, string>>
  /** According to the driver, in milliseconds since 1970. */
  readonly createdAt?: number | undefined
}

/** @throws DM_NODE_AMBIGUOUS when objects contradict each other */
export function snapshotFacts(handle: string, find: Find): SnapshotFacts {
  const contents = find('contents', handle)
  const own = contents.filter((content) => textOf(content, 'spec', 'source', 'volumeHandle') !== undefined)
  const volume = agreed(handle, 'volume', own, (content) => textOf(content, 'spec', 'source', 'volumeHandle'))
  const volumes = volume === undefined ? [] : find('volumes', volume)
  const node = agreed(handle, 'node', [...contents, ...volumes], (object) =>
    'csi' in ((fieldOf(object, 'spec') as object | undefined) ?? {})
      ? nodeOf(object)
      : object.metadata.labels?.[managedBy]
  )
  const attributes = (fieldOf(volumes[0], 'spec', 'csi', 'volumeAttributes') ?? {}) as Record<string, string>
  // Nanoseconds since 1970: more than a double holds exactly, by less than a microsecond.
  const [nanoseconds] = own.map((content) => fieldOf(content, 'status', 'creationTime'))
  return { volume, node, attributes, createdAt: typeof nanoseconds === 'number' ? nanoseconds / 1e6 : undefined }
}

/** The one node that can use a PersistentVolume; undefined if it is not exactly one. */
function nodeOf(volume: KubernetesObject): string | undefined {
  const terms = listOf(volume, 'spec', 'nodeAffinity', 'required', 'nodeSelectorTerms')
  // Terms are alternatives; within one, everything has to be met.
  if (terms.length !== 1) return undefined
  const wanted = [...listOf(terms[0], 'matchExpressions'), ...listOf(terms[0], 'matchFields')].flatMap((expression) => {
    const values = listOf(expression, 'values')
    const narrow = textOf(expression, 'operator') === 'In' && !wideTopology.test(textOf(expression, 'key') ?? '')
    return narrow && values.length === 1 ? values : []
  })
  const [node, ...others] = new Set(wanted)
  return typeof node === 'string' && others.length === 0 ? node : undefined
}

/** The value on which all objects agree that have one. */
function agreed(
  handle: string,
  what: string,
  objects: readonly KubernetesObject[],
  say: (object: KubernetesObject) => string | undefined
): string | undefined {
  const said = new Map<string, string>()
  for (const object of objects) {
    const value = say(object)
    if (value !== undefined && !said.has(value)) said.set(value, object.metadata.name)
  }
  if (said.size > 1) {
    throw ambiguous(handle, [...said].map(([value, name]) => `${what} ${value} (${name})`).join(' and '))
  }
  return [...said.keys()][0]
}

function given(text: string | undefined): readonly string[] {
  return text === undefined ? [] : [text]
}
