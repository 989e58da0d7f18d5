/**
 * Locks on open files that end with the processes that have them open (flock(2)). Node has no call for it.
 */
import koffi from 'koffi'

const LOCK_SH = 1
const LOCK_EX = 2
const LOCK_NB = 4

type Flock = (file: number, operation: number) => number

let flock: Flock | undefined

/**
 * Takes the lock at once, or not at all. A child process that inherits the descriptor holds it as well.
 *
 * @returns whether nobody else has it; for `shared`, whether nobody else has it alone
 * @throws an Error with the code of errno where the file system has no locks
 */
export function lockFile(fileDescriptor: number, how: 'shared' | 'exclusive'): boolean {
  flock ??= koffi.load(null).func('int flock(int file, int operation)') as Flock
  if (flock(fileDescriptor, (how === 'shared' ? LOCK_SH : LOCK_EX) | LOCK_NB) === 0) return true
  const errno = koffi.errno()
  if (errno === koffi.os.errno.EWOULDBLOCK) return false
  const [code = String(errno)] = Object.entries(koffi.os.errno).find(([, number]) => number === errno) ?? []
  throw Object.assign(new Error(`the file cannot be locked (${code})`), { code })
}
