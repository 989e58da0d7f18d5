/**
 * What became of the place where backups are stored, said by the error that a system call or a tool of it gave.
 */
import { DeltamapperError } from '../errors.ts'

/** By errno, and by what strerror(3) has tools print. */
const kinds = [
  [/ENOSPC|EDQUOT|No space left on device|Disk quota exceeded/, 'DM_CHAIN_NO_SPACE'],
  [/EROFS|EACCES|EPERM|Read-only file system|Permission denied|Operation not permitted/, 'DM_CHAIN_READ_ONLY'],
  [
    /ENOENT|ENOTDIR|EIO|ESTALE|ENODEV|ENXIO|ENOTCONN|ETIMEDOUT|No such file|Input\/output error|Stale file/,
    'DM_CHAIN_GONE'
  ]
] as const

const remedies = {
  DM_CHAIN_NO_SPACE: 'make room there, or keep fewer points (backup prune), and run it again: the chain is as it was',
  DM_CHAIN_READ_ONLY: 'let it be written to, and run it again: the chain is as it was',
  DM_CHAIN_GONE: 'mount it, or make it for a first backup, and run it again: what was finished is as it was'
}

/**
 * @param text what was said of the failure
 * @returns undefined where it tells nothing of the place
 */
export function targetFailure(where: string, text: string, cause?: unknown): DeltamapperError | undefined {
  const [, code] = kinds.find(([pattern]) => pattern.test(text)) ?? []
  if (code === undefined) return undefined
  const what = {
    DM_CHAIN_NO_SPACE: 'is full',
    DM_CHAIN_READ_ONLY: 'cannot be written to',
    DM_CHAIN_GONE: 'is not there, or cannot be read any more'
  }
  return new DeltamapperError(code, `${where} ${what[code]} (${text.trim()})`, remedies[code], { cause })
}

/** Runs what works on files there. @throws targetFailure's errors, and others as they are */
export async function atTarget<T>(where: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work()
  } catch (error) {
    if (error instanceof DeltamapperError) throw error
    throw targetFailure(where, (error as Error).message, error) ?? error
  }
}
