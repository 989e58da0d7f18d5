/**
 * Listening on a unix socket that is at no moment too open.
 *
 * 1. Only a dead socket file is replaced: one that refuses connections. A live one, or anything that is not a socket,
 *    stays.
 * 2. The socket is never more open than configured. It is bound under a short name of its own in the same folder, with
 *    mode 0600 from its creation on (umask). Then it gets its group, then its mode, and only then its real name, by a
 *    rename, which also replaces a dead file in one step. Connections follow the inode, so the rename does not disturb
 *    them.
 * 3. On close the file is removed only if it is still ours, by device and inode. (libuv removes the name it bound when
 *    a listener closes, even if another process owns it by then: one more reason for binding under another name.)
 *
 * The short name follows from the real one. Two processes that start at once collide there, because bind(2) never
 * replaces a file. If a process was killed between two steps, the next one finds and removes its file.
 */
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { chmodSync, existsSync, lchownSync, lstatSync, readFileSync, renameSync, unlinkSync, type Stats } from 'node:fs'
import { connect, type Server } from 'node:net'
import { basename, dirname, join } from 'node:path'
import { DeltamapperError } from '../errors.ts'
import { systemRemedy } from '../system-errors.ts'

/** sockaddr_un.sun_path holds 108 bytes including the closing NUL (unix(7)). */
const maximumPathBytes = 107

export interface UnixSocketOptions {
  /**
   * Permission bits, 0 to 0o777. 0600 unless given: anyone who can connect can read which blocks of every volume hold
   * data.
   */
  readonly mode?: number
  /** Group of the socket file, as a number or a name in /etc/group. The process's own unless given. */
  readonly group?: number | string
}

export interface UnixSocketListener {
  readonly path: string
  /** Stops accepting and removes the file, unless another process has put its own there. Open connections go on. */
  close(): void
}

/**
 * Makes `server` listen at `path` (absolute).
 *
 * @throws DM_SOCKET_IN_USE when another process listens there; DM_CONFIG_INVALID when the path, the mode or the group
 *   cannot be used
 */
export async function listenOnUnixSocket(
  server: Server,
  path: string,
  { mode = 0o600, group }: UnixSocketOptions = {}
): Promise<UnixSocketListener> {
  if (!Number.isInteger(mode) || mode < 0 || mode > 0o777) {
    throw invalid(`socket mode ${mode} is no permission mode`, 'give one of 0 to 0777, such as 0600 or 0660')
  }
  const groupId = group === undefined ? undefined : groupIdOf(group)
  const bindPath = join(dirname(path), shortName(basename(path)))
  for (const candidate of [path, bindPath]) checkLength(candidate)
  checkFolder(path)
  if ((await probe(path)) === 'live') throw inUse(path)
  if ((await probe(bindPath)) === 'dead') unlinkSync(bindPath)

  const previousUmask = process.umask(0o177)
  try {
    // bind(2) and listen(2) happen before this returns; only the news of it comes later.
    server.listen(bindPath)
  } finally {
    process.umask(previousUmask)
  }
  try {
    await once(server, 'listening')
  } catch (error) {
    throw bindFailed(error as NodeJS.ErrnoException, path)
  }

  try {
    if (groupId !== undefined) changeGroup(bindPath, groupId)
    chmodSync(bindPath, mode)
    // The last look before the rename: another process may have begun to listen since the first.
    if ((await probe(path)) === 'live') throw inUse(path)
    const ours = lstatSync(bindPath)
    renameSync(bindPath, path)
    return {
      path,
      close() {
        const there = lstatSync(path, { throwIfNoEntry: false })
        if (there?.dev === ours.dev && there.ino === ours.ino) unlinkSync(path)
        server.close()
      }
    }
  } catch (error) {
    server.close()
    if (error instanceof DeltamapperError) throw error
    throw bindFailed(error as NodeJS.ErrnoException, path)
  }
}

/** Six characters: never longer than a name that ends in `.sock`, so a path that fits still fits. */
function shortName(name: string): string {
  return `.${createHash('sha256').update(name).digest('base64url').slice(0, 5)}`
}

function checkLength(path: string): void {
  const length = Buffer.byteLength(path)
  if (length > maximumPathBytes) {
    throw invalid(
      `the socket path ${path} is ${length} bytes long, and the kernel takes ${maximumPathBytes}`,
      'put the socket into a folder with a shorter path'
    )
  }
}

function checkFolder(path: string): void {
  const folder = dirname(path)
  let stats: Stats
  try {
    stats = lstatSync(`${folder}/.`)
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    const what = code === 'ENOENT' ? 'does not exist' : `cannot be used (${code})`
    const remedy =
      systemRemedy(error, 'the right to enter it') ?? `create it (mkdir -p ${folder}), or listen somewhere else`
    throw invalid(`the folder ${folder} for the socket ${what}`, remedy)
  }
  if (!stats.isDirectory()) throw invalid(`${folder} is no folder`, 'listen somewhere else')
}

/** What is at `path`: nothing, a dead socket, or a live one. Throws for anything that is not a stream socket. */
async function probe(path: string): Promise<'absent' | 'dead' | 'live'> {
  const stats = lstatSync(path, { throwIfNoEntry: false })
  if (stats === undefined) return 'absent'
  if (!stats.isSocket()) throw notASocket(path)
  const client = connect(path)
  try {
    await once(client, 'connect')
    return 'live'
  } catch (error) {
    switch ((error as NodeJS.ErrnoException).code as string) {
      case 'ECONNREFUSED':
        return 'dead'
      case 'ENOENT':
        return 'absent'
      case 'EPROTOTYPE':
        throw notASocket(path)
      default:
        // EAGAIN: its queue is full. EACCES: not ours to judge. Either way it is not proven dead.
        return 'live'
    }
  } finally {
    client.destroy()
  }
}

/** The number of a group: itself, or found by name in /etc/group. @throws DM_CONFIG_INVALID */
export function groupIdOf(group: number | string): number {
  if (typeof group === 'number' || /^\d+$/.test(group)) {
    const id = Number(group)
    // (gid_t)-1 means "leave it" to chown(2).
    if (Number.isInteger(id) && id >= 0 && id < 2 ** 32 - 1) return id
    throw invalid(`${group} is no group number`, 'give the number or the name of a group')
  }
  // Containers may come without the file.
  const groups = existsSync('/etc/group') ? readFileSync('/etc/group', 'utf8') : ''
  for (const line of groups.split('\n')) {
    const [name, , id] = line.split(':')
    if (name === group && id !== undefined) return Number(id)
  }
  throw invalid(
    `there is no group ${JSON.stringify(group)} in /etc/group`,
    'create it, or give its number if it is defined elsewhere'
  )
}

function changeGroup(path: string, groupId: number): void {
  try {
    // A user of -1 would be "leave it", but Node wants one.
    lchownSync(path, process.geteuid!(), groupId)
  } catch (error) {
    throw invalid(
      `the socket cannot be given to group ${groupId} (${(error as NodeJS.ErrnoException).code})`,
      `choose a group that user ${process.geteuid?.()}, who runs this, belongs to; or run it with CAP_CHOWN`
    )
  }
}

function bindFailed(error: NodeJS.ErrnoException, path: string): DeltamapperError {
  if (error.code === 'EADDRINUSE' || error.code === 'ENOENT') {
    // The short name is taken, or has disappeared: another process is at the same steps for the same socket.
    return new DeltamapperError(
      'DM_SOCKET_IN_USE',
      `another process is about to listen on ${path}`,
      'start only one, and again'
    )
  }
  return invalid(
    `cannot listen on ${path} (${error.code ?? error.message})`,
    systemRemedy(error, 'the right to write into its folder') ?? 'listen on a path in a local file system'
  )
}

function inUse(path: string): DeltamapperError {
  return new DeltamapperError(
    'DM_SOCKET_IN_USE',
    `another process is listening on ${path}`,
    'stop that process first, or listen on another path'
  )
}

function notASocket(path: string): DeltamapperError {
  return invalid(`${path} exists and is no stream socket; it is left alone`, 'remove it, or listen on another path')
}

function invalid(what: string, remedy: string): DeltamapperError {
  return new DeltamapperError('DM_CONFIG_INVALID', what, remedy)
}
