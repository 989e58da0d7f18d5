/**
 * A device-mapper call that failed, in the project's own terms: the call, the device, the error number, the library's
 * messages, and what to do.
 */
import { constants } from 'node:os'
import { DeltamapperError, type ErrorCode, notStarted } from '../src/errors.ts'
import type { Call, CallFailure, CallName } from './call.ts'
import { describeDevice } from './device.ts'

const errnoNames = new Map(Object.entries(constants.errno).map(([name, number]) => [number, name]))

export class DeviceMapperError extends DeltamapperError {
  readonly call: CallName
  /** The device as the caller named it; undefined for calls about none. */
  readonly device: string | undefined
  /** The error's name, such as `EBUSY`; undefined when there was no error number. */
  readonly errno: string | undefined

  constructor(code: ErrorCode, call: Call, message: string, remedy: string, errno?: string) {
    super(code, message, remedy)
    this.name = 'DeviceMapperError'
    this.call = call.call
    this.device = deviceOf(call)
    this.errno = errno
  }
}

/** The device a call is about, in words; undefined for a call about none. */
export function deviceOf(call: Call): string | undefined {
  return 'device' in call && call.device !== undefined ? describeDevice(call.device) : undefined
}

/** The call in words, such as `message "reserve_metadata_snap" to pool`. */
export function describeCall(call: Call): string {
  const device = deviceOf(call)
  if (call.call === 'message') return `message ${JSON.stringify(call.text.slice(0, 100))} to ${device}`
  return device === undefined ? call.call : `${call.call} of ${device}`
}

export function failedError(call: Call, { reason, errno, said }: CallFailure): DeviceMapperError {
  const name = errnoNames.get(errno)
  const words = said.join('; ')
  const error = (code: ErrorCode, message: string, remedy: string) =>
    new DeviceMapperError(code, call, message, remedy, name)
  switch (reason) {
    case 'library':
      return error(
        'DM_LIBDEVMAPPER_MISSING',
        `libdevmapper cannot be used: ${words}`,
        'install libdevmapper 1.02.124 or later: libdevmapper1.02.1 (Debian, Ubuntu), device-mapper-libs (Fedora, RHEL, Alpine), libdevmapper1_03 (SUSE)'
      )
    case 'control':
      return error(
        'DM_CONTROL_MISSING',
        `the kernel's device-mapper cannot be reached: ${words}`,
        "load the module on the host (modprobe dm_mod); in a container, mount the host's /dev"
      )
    case 'permission':
      return error(
        'DM_PERMISSION',
        `not allowed to use device-mapper: ${words}`,
        'run as root with CAP_SYS_ADMIN; in a container, make it privileged'
      )
    case 'missing':
      return error(
        'DM_NO_SUCH_DEVICE',
        `there is no device-mapper device ${deviceOf(call)}`,
        'see `dmsetup ls` for those that are'
      )
    case 'refused': {
      const message = `${describeCall(call)} failed${name === undefined ? '' : ` with ${name}`}${words === '' ? '' : `: ${words}`}`
      if (name === 'EBUSY') {
        return error(
          'DM_DEVICE_BUSY',
          message,
          'find who uses it (dmsetup info, lsof, a mount, a held metadata snapshot) and try again'
        )
      }
      return error('DM_CALL_FAILED', message, "see the kernel's log (dmesg) for its reason")
    }
  }
}

export function stuckError(call: Call, afterMs: number, pid: number | undefined): DeviceMapperError {
  return new DeviceMapperError(
    'DM_CALL_STUCK',
    call,
    `${describeCall(call)} has not come back from the kernel after ${afterMs / 1000} s; its process (${pid}) was given up`,
    'see what the device waits for (suspended? a dead disk below?); the call may still take effect when that ends'
  )
}

/** `stuck` says why it was not tried, such as `status of era is still stuck in the kernel`. */
export function refusedBehindStuckError(call: Call, stuck: string): DeviceMapperError {
  return new DeviceMapperError(
    'DM_CALL_STUCK',
    call,
    `${describeCall(call)} was not tried: ${stuck}`,
    'see what the device waits for (suspended? a dead disk below?); info, table, resume and remove are still possible'
  )
}

export function diedError(call: Call, why: string): DeviceMapperError {
  return new DeviceMapperError(
    'DM_CALL_STUCK',
    call,
    `the helper process ended during ${describeCall(call)}: ${why}`,
    'ask again; the call may have taken effect (the kernel log names processes that it killed when memory ran out)'
  )
}

/** The call was not made. */
export function helperNotStarted(call: Call, cause: Error): DeltamapperError {
  return notStarted(`the helper process for ${describeCall(call)}`, cause)
}
