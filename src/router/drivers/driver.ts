/**
 * Tells from objects of the cluster what a CSI driver's snapshot handle means. A driver names the resources that it
 * needs, and looks up a handle in them. It is a pure function of the objects.
 */
import { ANY_SOURCE, isHandleName, MAX_HANDLE_BYTES, printable } from '../../handle.ts'
import { DeltamapperError } from '../../errors.ts'
import type { KubernetesObject } from '../../kubernetes/object.ts'

/** A resource of the Kubernetes API, and how its objects are looked up. */
export interface Resource {
  /** Path of the list, as in `/apis/GROUP/VERSION/PLURAL`. */
  readonly path: string
  /** The keys of an object; empty for one that does not matter. */
  readonly keys: (object: KubernetesObject) => readonly string[]
  /** What `keys` and `locate` look at beside an object's name: nothing else is kept of it. */
  readonly fields: readonly (readonly string[])[]
}

/** The facts about a snapshot. */
export interface Located {
  /** Undefined if nothing tells it. */
  readonly node?: string | undefined
  /** Its name for its node's agent, VG/LV; `*` for an unknown group. */
  readonly handle: string
  /** Identifies the volume that it is a snapshot of, comparable among the snapshots of one driver. */
  readonly origin?: string | undefined
  /** When it was taken, in milliseconds since 1970, as exactly as the cluster knows. */
  readonly createdAt?: number | undefined
}

/** The objects of one of the driver's resources that have a key. */
export type Find = (resource: string, key: string) => readonly KubernetesObject[]

export interface Driver {
  /** By the names that `locate` uses. */
  readonly resources: Readonly<Record<string, Resource>>
  /**
   * @throws DM_HANDLE_INVALID when it is no handle of this driver; DM_SNAPSHOT_NOT_FOUND, DM_SNAPSHOT_NOT_READY,
   *   DM_NODE_AMBIGUOUS; DM_NOT_TRACKED when the objects already say that it is not thin
   */
  locate(handle: string, find: Find): Located
  /**
   * The agent's name of a snapshot whose objects are gone, for the agent that has a later snapshot of its volume:
   * exactly as `locate` told it before. Undefined if that cannot be told, or it has objects.
   */
  whenGone(handle: string, target: Located, find: Find): string | undefined
}

/** The volume group in an agent's handle. */
export function groupIn({ handle }: Located): string {
  return handle.slice(0, handle.indexOf('/'))
}

/** When it was made, for `createdAt`. */
export const creation = ['metadata', 'creationTimestamp'] as const

/** For resources whose objects are looked up by name. */
export const byName = ({ metadata }: KubernetesObject): readonly string[] => [metadata.name]

/** The only object that a look-up finds. @throws DM_SNAPSHOT_NOT_FOUND, DM_NODE_AMBIGUOUS */
export function single(objects: readonly KubernetesObject[], kind: string, handle: string): KubernetesObject {
  const [object, another] = objects
  if (object === undefined) throw notFound(`there is no ${kind} for the snapshot ${printable(handle)}`)
  if (another === undefined) return object
  throw ambiguous(handle, objects.map(({ metadata }) => `${kind} ${metadata.name}`).join(' and '))
}

/**
 * VG/LV for the agent, made of parts from objects and handles. @throws DM_HANDLE_INVALID; DM_NOT_TRACKED when the two
 * are too long together
 */
export function agentHandle(volumeGroup: string, logicalVolume: string, handle: string): string {
  // Parts that no agent would take, such as a slash, would make another handle than intended.
  if (!(volumeGroup === anyGroup || isHandleName(volumeGroup)) || !isHandleName(logicalVolume)) {
    throw malformed(handle, 'a logical volume cannot be called that')
  }
  const agents = `${volumeGroup}/${logicalVolume}`
  // The agent's name is a field of CSI, like the driver's, and the driver's is not the one that is too long.
  if (agents.length > MAX_HANDLE_BYTES) {
    throw new DeltamapperError(
      'DM_NOT_TRACKED',
      `the snapshot ${printable(handle)} is called ${agents} on its node, and an agent cannot be asked by more than ${MAX_HANDLE_BYTES} bytes (these are ${agents.length})`,
      'back up every block; a volume group with a shorter name has changes told'
    )
  }
  return agents
}

/** Stands for a volume group that only the node knows. */
export const anyGroup = ANY_SOURCE

export function notFound(what: string): DeltamapperError {
  return new DeltamapperError(
    'DM_SNAPSHOT_NOT_FOUND',
    what,
    'check the handle; if the snapshot has been deleted, take a full backup'
  )
}

export function notReady(handle: string, state: string): DeltamapperError {
  return new DeltamapperError(
    'DM_SNAPSHOT_NOT_READY',
    `the snapshot ${printable(handle)} is not ready: ${state}`,
    'ask again once its VolumeSnapshot is ready to use; if that does not come, see the log of the CSI driver'
  )
}

export function ambiguous(handle: string, claims: string): DeltamapperError {
  return new DeltamapperError(
    'DM_NODE_AMBIGUOUS',
    `the snapshot ${printable(handle)} is claimed more than once: by ${claims}`,
    'find out which one is stale, and delete it'
  )
}

export function malformed(handle: string, why: string): DeltamapperError {
  return new DeltamapperError(
    'DM_HANDLE_INVALID',
    `${printable(handle)} is no snapshot handle of this driver: ${why}`,
    'give the snapshotHandle of the VolumeSnapshotContent'
  )
}
