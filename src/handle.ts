/**
 * Our own snapshot handles, `SOURCE/NAME`: where a snapshot is (a recorded pool, a pool, a volume group, a tracked
 * volume) and its name there. The handles of a CSI driver go through that driver's resolver instead.
 *
 * A driver may know the name of a logical volume and not its group: `*` as SOURCE stands for the only source that has a
 * snapshot of that name.
 *
 * A handle comes from any process that can reach the socket. This file takes it apart, by a pattern that leaves no room
 * for paths, shells or control characters. After that it is only used as a key.
 */
import { DeltamapperError } from './errors.ts'

/** CSI's limit for string fields, in bytes. */
export const MAX_HANDLE_BYTES = 128
/** The characters that LVM allows in names; `.` and `..` are excluded below. */
const NAME = /^[A-Za-z0-9+_.-]+$/

/** As SOURCE: any source that has it. */
export const ANY_SOURCE = '*'

export interface Handle {
  source: string
  name: string
}

/** Whether a string can be either part of a handle. */
export function isHandleName(name: string): boolean {
  return NAME.test(name) && name !== '.' && name !== '..'
}

/** @throws DM_HANDLE_INVALID, which repeats no more of the handle than is safe to print */
export function parseHandle(handle: string): Handle {
  if (Buffer.byteLength(handle) > MAX_HANDLE_BYTES) {
    throw invalid(`a snapshot handle of ${Buffer.byteLength(handle)} bytes is longer than ${MAX_HANDLE_BYTES}`)
  }
  const [source, name, ...rest] = handle.split('/')
  if (name === undefined || rest.length > 0 || !isSource(source) || !isHandleName(name)) {
    throw invalid(`${printable(handle)} is no snapshot handle`)
  }
  return { source, name }
}

function isSource(source: string): boolean {
  return source === ANY_SOURCE || isHandleName(source)
}

/** In quotes and pure ASCII: JSON alone keeps characters that steer terminals or reverse the direction of text. */
export function printable(text: string): string {
  return JSON.stringify(text).replaceAll(/[^ -~]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`)
}

function invalid(what: string): DeltamapperError {
  return new DeltamapperError(
    'DM_HANDLE_INVALID',
    what,
    'a handle is SOURCE/NAME, each of letters, digits and + _ . - (128 bytes together at most)'
  )
}
