/**
 * The process at the other end of a unix socket, according to the kernel (unix(7), SO_PEERCRED), when the connection
 * was made. Node has no call for it.
 */
import koffi from 'koffi'

const SOL_SOCKET = 1
/** The same on all architectures that Node runs on with Linux (asm-generic/socket.h; PowerPC has its own). */
const SO_PEERCRED = process.arch === 'ppc64' ? 21 : 17
/** struct ucred: pid, uid and gid, 32 bits each. */
const UCRED_BYTES = 12

export interface PeerCredentials {
  /** 0 if our PID namespace does not see the process. */
  readonly pid: number
  readonly uid: number
}

type Getsockopt = (socket: number, level: number, name: number, value: Buffer, length: number[]) => number

let getsockopt: Getsockopt | undefined

/** @returns undefined when the socket is no unix socket or the kernel does not say */
export function peerCredentials(fileDescriptor: number): PeerCredentials | undefined {
  getsockopt ??= koffi
    .load(null)
    .func('int getsockopt(int socket, int level, int name, void *value, _Inout_ uint32_t *length)') as Getsockopt
  const value = Buffer.alloc(UCRED_BYTES)
  if (getsockopt(fileDescriptor, SOL_SOCKET, SO_PEERCRED, value, [UCRED_BYTES]) !== 0) return undefined
  return { pid: value.readInt32LE(0), uid: value.readUInt32LE(4) }
}
