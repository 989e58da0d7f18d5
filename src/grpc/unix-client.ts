/**
 * The identity of a client on a unix socket, as an address is over TCP: its process, however many connections it makes.
 * A process in a container that ours does not see into has no number here; all of those of one user count as one
 * client.
 */
import type { Socket } from 'node:net'
import { peerCredentials } from '../../native/peer-credentials.ts'

/** @returns undefined where the kernel does not say */
export function unixClient(socket: Socket): string | undefined {
  // Node has no public way to the file descriptor of a connection; without one a connection is a client of its own.
  const fileDescriptor = (socket as unknown as { _handle?: { fd?: number } })._handle?.fd
  if (fileDescriptor === undefined || fileDescriptor < 0) return undefined
  const peer = peerCredentials(fileDescriptor)
  if (peer === undefined) return undefined
  return peer.pid > 0 ? `pid-${peer.pid}` : `uid-${peer.uid}`
}
