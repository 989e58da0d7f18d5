/**
 * Every error of deltamapper, in one place: a stable code, its gRPC status, and its meaning.
 *
 * A published code keeps its meaning for ever and is never reused. `docs/errors.md` explains each one, and a test holds
 * the two together. The gRPC status follows the error table of the CSI specification (SnapshotMetadata service,
 * csi.proto). Where that is silent, it follows what backup software can act on: FAILED_PRECONDITION always means "take
 * a full backup instead".
 */

import { systemRemedy } from './system-errors.ts'

/** gRPC status names; their numbers are fixed by the gRPC specification (statuscodes.md). */
export type StatusName =
  | 'CANCELLED'
  | 'INVALID_ARGUMENT'
  | 'DEADLINE_EXCEEDED'
  | 'NOT_FOUND'
  | 'ALREADY_EXISTS'
  | 'PERMISSION_DENIED'
  | 'FAILED_PRECONDITION'
  | 'ABORTED'
  | 'OUT_OF_RANGE'
  | 'UNIMPLEMENTED'
  | 'INTERNAL'
  | 'UNAVAILABLE'
  | 'DATA_LOSS'

/** What each code means, in the words that `docs/errors.md` and `deltamapper` use. */
export const errorRegistry = {
  DM_ARGUMENT_MISSING: { status: 'INVALID_ARGUMENT', summary: 'a required field is empty' },
  DM_ARGUMENT_INVALID: { status: 'INVALID_ARGUMENT', summary: 'a field holds a value that can never be right' },
  DM_HANDLE_INVALID: {
    status: 'INVALID_ARGUMENT',
    summary: 'a snapshot handle is too long or not of the form SOURCE/NAME'
  },
  DM_OFFSET_OUT_OF_RANGE: { status: 'OUT_OF_RANGE', summary: 'starting_offset is negative or beyond the volume' },
  DM_SNAPSHOT_NOT_FOUND: { status: 'NOT_FOUND', summary: 'no such snapshot' },
  DM_POOLS_DIFFER: { status: 'INVALID_ARGUMENT', summary: 'base and target are in different pools' },
  DM_VOLUMES_DIFFER: { status: 'INVALID_ARGUMENT', summary: 'base and target are snapshots of different volumes' },
  DM_ORDER_REVERSED: { status: 'INVALID_ARGUMENT', summary: 'the base was taken after the target' },
  DM_BASE_LOST: { status: 'FAILED_PRECONDITION', summary: 'the base snapshot no longer exists in the pool' },
  DM_BASE_CHANGED: {
    status: 'FAILED_PRECONDITION',
    summary: 'the base was written to, trimmed or replaced since it was served or taken'
  },
  DM_BASE_RECORD_DAMAGED: { status: 'FAILED_PRECONDITION', summary: 'the record that stands for a base is damaged' },
  DM_BASE_RECORD_FOREIGN: {
    status: 'FAILED_PRECONDITION',
    summary: 'the file is no base record, or one of another pool or version'
  },
  DM_BASE_RECORD_ROLLED_BACK: {
    status: 'FAILED_PRECONDITION',
    summary: 'the pool was restored to an earlier state since the base was recorded'
  },
  DM_BASE_RECORD_NONE: {
    status: 'FAILED_PRECONDITION',
    summary: 'the base no longer exists, and there is no record of it'
  },
  DM_BASE_RECORD_AMBIGUOUS: {
    status: 'FAILED_PRECONDITION',
    summary: 'the base no longer exists, and its handle has meant two snapshots, or one that changed'
  },
  DM_BASE_RECORD_UNWATCHED: {
    status: 'FAILED_PRECONDITION',
    summary: 'the base no longer exists, and was not looked at often enough while it did'
  },
  DM_BASE_RECORD_INTERRUPTED: {
    status: 'FAILED_PRECONDITION',
    summary: 'the base no longer exists, and its pool was not active all the time since its answer'
  },
  DM_BASE_RECORD_STILL_THERE: {
    status: 'FAILED_PRECONDITION',
    summary: 'the base is not found by its name, and its device is still in the pool'
  },
  DM_BASE_RECORD_REBUILT: {
    status: 'FAILED_PRECONDITION',
    summary: 'the pool was made anew or its blocks were given other numbers since the base was recorded'
  },
  DM_BASE_RECORD_NEEDS_CHECK: {
    status: 'FAILED_PRECONDITION',
    summary: 'the pool of a base that is gone needs a check'
  },
  DM_BASE_RECORD_WRITABLE: {
    status: 'FAILED_PRECONDITION',
    summary:
      'a base that is gone could have been written to between its backup and its removal, or a base that exists differs from its record'
  },
  DM_BASE_RECORD_ORIGIN: {
    status: 'FAILED_PRECONDITION',
    summary: 'an external origin shows through base or target, and may have changed'
  },
  DM_BASE_RECORD_TIME_EXHAUSTED: {
    status: 'FAILED_PRECONDITION',
    summary: 'the pool has had more snapshots than its mappings tell apart'
  },
  DM_BASE_RECORD_IMPOSSIBLE: { status: 'FAILED_PRECONDITION', summary: 'no record can be made of this snapshot' },
  DM_POOL_WENT_BACK: {
    status: 'FAILED_PRECONDITION',
    summary: 'the pool was restored to an earlier state since the base was served'
  },
  DM_SNAPSHOT_CHANGED: {
    status: 'ABORTED',
    summary: 'a snapshot was written to, trimmed, removed or renamed while it was looked at'
  },
  DM_BASE_UNRECORDED: {
    status: 'FAILED_PRECONDITION',
    summary: 'the base was never served by this agent, and strictBases is set'
  },
  DM_RESUME_REFUSED: {
    status: 'ABORTED',
    summary: 'an answer cannot be resumed: its snapshot is not known to be the same as at its beginning'
  },
  DM_VOLUME_IN_USE: { status: 'FAILED_PRECONDITION', summary: 'the target is a volume in use, not a snapshot' },
  DM_METADATA_DAMAGED: { status: 'DATA_LOSS', summary: 'a metadata block is damaged' },
  DM_METADATA_FOREIGN: {
    status: 'FAILED_PRECONDITION',
    summary: 'the file or device holds no metadata of the kind that was asked about'
  },
  DM_METADATA_UNSUPPORTED: {
    status: 'FAILED_PRECONDITION',
    summary: 'the metadata needs features this version does not know'
  },
  DM_ERA_NOT_REACHED: {
    status: 'FAILED_PRECONDITION',
    summary: 'the metadata does not have the requested era yet, or not any more'
  },
  DM_HISTORY_BROKEN: {
    status: 'FAILED_PRECONDITION',
    summary: 'what was written between two snapshots of a tracked volume is not known'
  },
  DM_COW_INVALID: {
    status: 'FAILED_PRECONDITION',
    summary: 'the kernel has given a classic snapshot up: its store overflowed or could not be written'
  },
  DM_COW_OVERFLOWED: { status: 'FAILED_PRECONDITION', summary: "a classic snapshot's store has overflowed" },
  DM_COW_MERGING: {
    status: 'FAILED_PRECONDITION',
    summary: 'the origin of a classic snapshot is being put back to a snapshot'
  },
  DM_COW_TRANSIENT: {
    status: 'FAILED_PRECONDITION',
    summary: 'a classic snapshot keeps its list of changes in memory only'
  },
  DM_COW_INACTIVE: { status: 'FAILED_PRECONDITION', summary: 'a classic snapshot, or its origin, is not active' },
  DM_COW_DETACHED: {
    status: 'FAILED_PRECONDITION',
    summary: "a classic snapshot's devices do not stand as LVM puts them"
  },
  DM_COW_REJOINED: {
    status: 'FAILED_PRECONDITION',
    summary: 'a classic snapshot was split off its origin and joined again'
  },
  DM_DEVICE_NOT_FOUND: { status: 'NOT_FOUND', summary: 'the pool has no thin device with this id' },
  DM_READ_FAILED: { status: 'UNAVAILABLE', summary: 'the metadata could not be opened or read' },
  DM_RECORDED_POOL_INVALID: {
    status: 'FAILED_PRECONDITION',
    summary: 'a recorded pool is incomplete or contradicts itself'
  },
  DM_XML_INVALID: {
    status: 'INVALID_ARGUMENT',
    summary: "the XML of a tool is incomplete, changed, or another tool's"
  },
  DM_TOOL_MISSING: { status: 'FAILED_PRECONDITION', summary: 'a tool that the engine needs cannot be started' },
  DM_TOOL_UNFIT: { status: 'FAILED_PRECONDITION', summary: 'this version of a tool answers wrongly, or is not known' },
  DM_TOOL_FAILED: { status: 'INTERNAL', summary: 'a tool ended with an error, or printed unexpected output' },
  DM_ENGINES_DISAGREE: {
    status: 'INTERNAL',
    summary: "our own reading of the metadata and the tools' do not agree"
  },
  DM_CONFIG_INVALID: { status: 'FAILED_PRECONDITION', summary: 'the configuration cannot be used' },
  DM_SOCKET_IN_USE: { status: 'FAILED_PRECONDITION', summary: 'another process is listening on this socket' },
  DM_CANCELLED: { status: 'CANCELLED', summary: 'the caller went away' },
  DM_DEADLINE_EXCEEDED: {
    status: 'DEADLINE_EXCEEDED',
    summary: "the caller's time was up before the answer was complete"
  },
  DM_SHUTTING_DOWN: { status: 'UNAVAILABLE', summary: 'the agent or router is stopping' },
  DM_UNREACHABLE: { status: 'UNAVAILABLE', summary: 'nothing answers at the endpoint' },
  DM_ANSWER_INVALID: { status: 'INTERNAL', summary: 'a server sent an answer that breaks the CSI rules' },
  DM_NOT_TRACKED: { status: 'FAILED_PRECONDITION', summary: 'changed blocks cannot be told for this snapshot' },
  DM_SERVER_FAILED: { status: 'INTERNAL', summary: 'another CSI server ended the call with an error of its own' },
  DM_LIBDEVMAPPER_MISSING: { status: 'FAILED_PRECONDITION', summary: 'libdevmapper is not installed, or too old' },
  DM_CONTROL_MISSING: { status: 'FAILED_PRECONDITION', summary: "the kernel's device-mapper cannot be reached" },
  DM_PERMISSION: { status: 'FAILED_PRECONDITION', summary: 'this process may not use device-mapper' },
  DM_NO_SUCH_DEVICE: { status: 'NOT_FOUND', summary: 'no such device-mapper device' },
  DM_DEVICE_BUSY: {
    status: 'UNAVAILABLE',
    summary: 'a device-mapper device, or a part of it that the call needs, is in use'
  },
  DM_NAME_TAKEN: { status: 'ALREADY_EXISTS', summary: 'something goes by this name already' },
  DM_CALL_FAILED: { status: 'FAILED_PRECONDITION', summary: 'the kernel or libdevmapper refused a call' },
  DM_CALL_STUCK: { status: 'UNAVAILABLE', summary: 'a device-mapper call has not come back from the kernel in time' },
  DM_STATUS_UNKNOWN: {
    status: 'FAILED_PRECONDITION',
    summary: 'the kernel describes a target in words this version does not know'
  },
  DM_NODE_UNKNOWN: { status: 'UNAVAILABLE', summary: 'the router knows no agent for the node of a snapshot' },
  DM_NODE_AMBIGUOUS: { status: 'FAILED_PRECONDITION', summary: 'several nodes have a snapshot of this name' },
  DM_HANDLE_AMBIGUOUS: {
    status: 'FAILED_PRECONDITION',
    summary: 'several sources of an agent have a snapshot of this name'
  },
  DM_SNAPSHOT_NOT_READY: { status: 'UNAVAILABLE', summary: 'the CSI driver has not finished the snapshot' },
  DM_CLUSTER_UNREACHABLE: {
    status: 'UNAVAILABLE',
    summary: 'the Kubernetes API does not answer, and what is known of the cluster is not enough'
  },
  DM_ACCESS_DENIED: { status: 'PERMISSION_DENIED', summary: 'the Kubernetes API or a server refuses us permission' },
  DM_CLUSTER_SETUP: {
    status: 'FAILED_PRECONDITION',
    summary: 'the cluster lacks something, or has it in an unusable form'
  },
  DM_NODES_DIFFER: { status: 'INVALID_ARGUMENT', summary: 'base and target are on different nodes' },
  DM_AGENT_UNREACHABLE: { status: 'UNAVAILABLE', summary: 'the router does not reach an agent, or has lost it' },
  DM_TOO_MANY_STREAMS: {
    status: 'UNAVAILABLE',
    summary: 'one client, or all together, have as many answers running as they may; or a client cancels calls too fast'
  },
  DM_CLIENT_IDLE: { status: 'UNAVAILABLE', summary: 'the client has not read its answer for too long' },
  DM_CATALOG_DAMAGED: { status: 'FAILED_PRECONDITION', summary: "the agent's catalog is damaged" },
  DM_CATALOG_NEWER: { status: 'FAILED_PRECONDITION', summary: "the agent's catalog was written by a newer version" },
  DM_CATALOG_IN_USE: { status: 'FAILED_PRECONDITION', summary: 'another process is using the catalog' },
  DM_CATALOG_UNAVAILABLE: { status: 'UNAVAILABLE', summary: 'the catalog could not be read or written' },
  DM_CATALOG_DISAGREES: {
    status: 'FAILED_PRECONDITION',
    summary: 'the catalog and the kernel disagree about a pool'
  },
  DM_LVM_FAILED: { status: 'UNAVAILABLE', summary: 'LVM gave no usable answer, or none in time' },
  DM_POOL_INACTIVE: { status: 'FAILED_PRECONDITION', summary: 'the thin pool is not active on this node' },
  DM_POOL_FAILED: { status: 'UNAVAILABLE', summary: 'the thin pool has failed' },
  DM_LEASE_REFUSED: {
    status: 'FAILED_PRECONDITION',
    summary: 'the pool must not hold a metadata snapshot now'
  },
  DM_LEASE_LOST: { status: 'ABORTED', summary: 'a metadata snapshot was released before its user was done' },
  DM_POOL_READ_ONLY: {
    status: 'FAILED_PRECONDITION',
    summary: 'the thin pool takes no changes: it is out of metadata space, needs a check, or has failed'
  },
  DM_DEVICE_NOT_BLANK: {
    status: 'FAILED_PRECONDITION',
    summary: 'a device holds something that would be overwritten'
  },
  DM_ERA_INACTIVE: { status: 'FAILED_PRECONDITION', summary: 'the tracked volume is not active on this node' },
  DM_ERA_HISTORY_LOST: {
    status: 'FAILED_PRECONDITION',
    summary: 'writes to a tracked volume may have gone unseen, or its metadata is not what it was'
  },
  DM_KERNEL_LOSSY: {
    status: 'FAILED_PRECONDITION',
    summary: "this kernel's dm-era loses an era's writes in a crash"
  },
  DM_SNAPSHOT_TOO_SLOW: {
    status: 'FAILED_PRECONDITION',
    summary: 'a tracked volume was resumed before its snapshot was done'
  },
  DM_SYSTEM_REFUSED: {
    status: 'UNAVAILABLE',
    summary: 'the operating system refuses what is needed: memory, processes, open files, room or a right'
  },
  DM_OUTPUT_FAILED: { status: 'INTERNAL', summary: 'the answer could not be written out' },
  DM_CHAIN_IN_USE: { status: 'UNAVAILABLE', summary: 'another process is working on the chain of backups' },
  DM_CHAIN_NO_SPACE: { status: 'UNAVAILABLE', summary: 'the disk that backups go to has not enough room' },
  DM_CHAIN_READ_ONLY: { status: 'UNAVAILABLE', summary: 'the folder that backups go to cannot be written to' },
  DM_CHAIN_GONE: { status: 'UNAVAILABLE', summary: 'the folder that backups go to is not there, or not any more' },
  DM_CHAIN_INVALID: {
    status: 'FAILED_PRECONDITION',
    summary: 'the manifest of a chain of backups cannot be understood'
  },
  DM_CHAIN_FOREIGN: { status: 'FAILED_PRECONDITION', summary: "the chain of backups is another volume's" },
  DM_CHAIN_SWAPPED: {
    status: 'DATA_LOSS',
    summary: 'a file of a chain of backups is gone, or another was put in its place'
  },
  DM_CHAIN_DAMAGED: { status: 'DATA_LOSS', summary: 'a file of a chain of backups does not hold what was written' },
  DM_HOOK_FAILED: { status: 'FAILED_PRECONDITION', summary: 'a command that --before or --after names has failed' },
  DM_FREEZE_FAILED: { status: 'UNAVAILABLE', summary: 'a file system could not be frozen for the snapshots' },
  DM_BACKUP_INCOMPLETE: { status: 'UNAVAILABLE', summary: 'some of several volumes were not backed up' },
  DM_POINT_NOT_FOUND: { status: 'NOT_FOUND', summary: 'there is no such point of a volume' },
  DM_RESTORE_SIZE_DIFFERS: {
    status: 'FAILED_PRECONDITION',
    summary: 'the device to restore to has not the size of the point'
  },
  DM_RESTORE_FAILED: { status: 'UNAVAILABLE', summary: 'the place to restore to could not be written' },
  DM_INTERNAL: { status: 'INTERNAL', summary: 'a defect in deltamapper' }
} as const satisfies Record<string, { status: StatusName; summary: string }>

export type ErrorCode = keyof typeof errorRegistry

/** Optional parts of an error. */
export interface ErrorDetails extends ErrorOptions {
  /** The node that the error is about, as configuration or cluster name it. Metrics count errors by node. */
  readonly node?: string
  /**
   * Sent to clients on other machines in place of message and remedy, where these name things of the machine or of
   * other clients. (grpc/status.ts removes folder names in any case.)
   */
  readonly forOthers?: { readonly message?: string; readonly remedy?: string }
}

/**
 * The one error class that crosses rooms. `message` says what is wrong with which thing; `remedy` says what to do about
 * it. Anything else that is thrown is a defect and travels as DM_INTERNAL, without its stack trace.
 */
export class DeltamapperError extends Error {
  readonly code: ErrorCode
  readonly remedy: string
  readonly node: string | undefined
  readonly forOthers: ErrorDetails['forOthers']

  constructor(code: ErrorCode, message: string, remedy: string, { node, forOthers, ...options }: ErrorDetails = {}) {
    super(message, options)
    this.node = node
    this.forOthers = forOthers
    this.name = 'DeltamapperError'
    this.code = code
    this.remedy = remedy
  }

  get status(): StatusName {
    return errorRegistry[this.code].status
  }

  /** One line for a person: `DM_CODE: what is wrong; what to do`. */
  get line(): string {
    return `${this.code}: ${this.message}; ${this.remedy}`
  }
}

/** A value of a caller's that can never be right. */
export function invalid(message: string, remedy: string): DeltamapperError {
  return new DeltamapperError('DM_ARGUMENT_INVALID', message, remedy)
}

/** What cannot be unless this program is wrong. */
export function defect(message: string, options?: ErrorDetails): DeltamapperError {
  return new DeltamapperError('DM_INTERNAL', message, 'report it with the log lines around it', options)
}

/** What is refused or given up because agent or router is being stopped. */
export function shuttingDown(
  message = 'the agent is stopping',
  remedy = 'ask again once it has been restarted'
): DeltamapperError {
  return new DeltamapperError('DM_SHUTTING_DOWN', message, remedy)
}

/** A process of ours or of others that the system has no memory, processes or descriptors for. */
export function notStarted(program: string, cause: Error): DeltamapperError {
  const remedy = systemRemedy(cause, 'the right to start it') ?? 'ask again'
  return new DeltamapperError('DM_SYSTEM_REFUSED', `${program} could not be started (${cause.message})`, remedy, {
    cause
  })
}

/** Any thrown value as a DeltamapperError: what neither is one already nor the system's refusal is a defect. */
export function asDeltamapperError(thrown: unknown): DeltamapperError {
  if (thrown instanceof DeltamapperError) return thrown
  if (!(thrown instanceof Error)) return defect(String(thrown), { cause: thrown })
  const remedy = systemRemedy(thrown, 'that right')
  if (remedy === undefined) return defect(thrown.message, { cause: thrown })
  return new DeltamapperError('DM_SYSTEM_REFUSED', thrown.message, remedy, { cause: thrown })
}
