/** What a system call that was made through FFI failed with, as Node's own file functions say it. */
import { getSystemErrorMessage, getSystemErrorName } from 'node:util'

/** @param errno positive */
export function systemCallError(call: string, errno: number): NodeJS.ErrnoException {
  const code = getSystemErrorName(-errno)
  return Object.assign(new Error(`${code}: ${getSystemErrorMessage(-errno) ?? 'unknown error'}, ${call}`), {
    code,
    errno: -errno
  })
}
