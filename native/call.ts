/** The questions and answers of the helper process: plain data, so that they can travel between two processes. */
import type { DeviceInfo, DeviceNumber, DeviceReference, ListedDevice, TableRow, TargetVersion } from './device.ts'
import type { NodeKeeper } from './udev.ts'

/** The setup of the helper; constant for its life. */
export interface HelperConfiguration {
  /** The folder with `mapper`, which has the device nodes. */
  readonly devDirectory: string
  /** The shared library to load; by default the usual names of libdevmapper are tried. */
  readonly libraryPath?: string
  /** What makes the device nodes; by default found out at every call that changes them. */
  readonly nodeKeeper?: NodeKeeper
  /** How long udev may take to process an event, in milliseconds. After that its work is done without it. */
  readonly udevTimeoutMs: number
}

export interface SuspendOptions {
  /** Freeze a mounted file system first (default), so that the device below is consistent. */
  readonly lockfs?: boolean
  /** Wait for I/O in flight (default); without, it is queued inside the device. */
  readonly flush?: boolean
}

export type Call =
  | { readonly call: 'versions' }
  | { readonly call: 'targets' }
  | { readonly call: 'list' }
  | { readonly call: 'info'; readonly device: DeviceReference }
  | { readonly call: 'deps'; readonly device: DeviceReference }
  | { readonly call: 'table'; readonly device: DeviceReference; readonly inactive: boolean }
  | { readonly call: 'status'; readonly device: DeviceReference; readonly flush: boolean }
  | { readonly call: 'message'; readonly device: DeviceReference; readonly sector: number; readonly text: string }
  | {
      readonly call: 'create'
      readonly device: string
      readonly uuid?: string | undefined
      readonly table?: readonly TableRow[] | undefined
      readonly readOnly: boolean
    }
  | {
      readonly call: 'reload'
      readonly device: DeviceReference
      readonly table: readonly TableRow[]
      readonly readOnly: boolean
    }
  | { readonly call: 'clear'; readonly device: DeviceReference }
  | ({ readonly call: 'suspend'; readonly device: DeviceReference } & Required<SuspendOptions>)
  | ({ readonly call: 'resume'; readonly device: DeviceReference } & Required<SuspendOptions>)
  | { readonly call: 'rename'; readonly device: DeviceReference; readonly newName: string }
  | { readonly call: 'remove'; readonly device: DeviceReference; readonly deferred: boolean; readonly retry: boolean }
  | { readonly call: 'nodes'; readonly device?: string | undefined }

export type CallName = Call['call']

export interface CallResults {
  versions: { readonly library: string; readonly driver: string }
  targets: readonly TargetVersion[]
  list: readonly ListedDevice[]
  /** Nothing when there is no such device. */
  info: DeviceInfo | undefined
  deps: readonly DeviceNumber[]
  table: readonly TableRow[]
  status: readonly TableRow[]
  /** The target's answer, for the few messages that have one. */
  message: string | undefined
  create: DeviceInfo
  reload: DeviceInfo
  clear: DeviceInfo
  suspend: DeviceInfo
  resume: DeviceInfo
  rename: undefined
  /** Removed, or (deferred only) removed when the last user closes it. */
  remove: 'removed' | 'deferred'
  nodes: undefined
}

/** Why a call failed, as far as the helper knows. */
export interface CallFailure {
  /**
   * `library`: libdevmapper cannot be loaded. `control`: the control node cannot be used. `permission`: not allowed to.
   * `missing`: no such device. `refused`: the kernel or the library said no.
   */
  readonly reason: 'library' | 'control' | 'permission' | 'missing' | 'refused'
  /** The error number of the ioctl or system call; 0 when the library gave up before it came to one. */
  readonly errno: number
  /** The library's messages, line by line, or the reason why it could not be asked. */
  readonly said: readonly string[]
}

export interface Request {
  readonly id: number
  /** One, or several queries: they are made one after the other. */
  readonly calls: readonly Call[]
}

export interface Reply {
  readonly id: number
  /** Of each call, in their order. */
  readonly outcomes: readonly CallOutcome[]
}

export interface CallOutcome {
  readonly result?: unknown
  readonly failure?: CallFailure
  /** Messages of the library or udev about a call that succeeded. */
  readonly notices: readonly string[]
}

/** Thrown inside the helper; only the failure leaves it. */
export class CallFailed extends Error {
  readonly failure: CallFailure

  constructor(failure: CallFailure) {
    super(failure.said.join('; '))
    this.failure = failure
  }
}
