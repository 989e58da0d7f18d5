/**
 * Tells systemd that a service is ready (sd_notify(3)): services ordered after it then find it listening.
 *
 * The message is a datagram to a unix socket, which Node cannot send. A program that sends it for us would have to
 * outlive the moment in which systemd checks the sender.
 */
import koffi from 'koffi'

/** Of <sys/socket.h>. */
const [AF_UNIX, SOCK_DGRAM, SOCK_CLOEXEC, MSG_NOSIGNAL] = [1, 2, 0o2000000, 0x4000]

/**
 * Sends READY=1, once; does nothing without a service manager (NOTIFY_SOCKET).
 *
 * @throws Error when it cannot be sent: the service would seem not to start
 */
export function tellReady(): void {
  const place = process.env['NOTIFY_SOCKET']
  // It is sent once, and children have nothing to send.
  delete process.env['NOTIFY_SOCKET']
  if (place === undefined || !/^[/@]./.test(place)) return
  const libc = koffi.load(null)
  const socket = libc.func('int socket(int domain, int type, int protocol)') as (...words: number[]) => number
  const close = libc.func('int close(int file)') as (file: number) => number
  const sendto = libc.func(
    'int64_t sendto(int file, const void *bytes, size_t length, int flags, const void *address, unsigned int size)'
  ) as (file: number, bytes: Buffer, length: number, flags: number, address: Buffer, size: number) => number | bigint
  const file = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0)
  try {
    const [message, address] = [Buffer.from('READY=1'), socketAddress(place)]
    if (Number(sendto(file, message, message.length, MSG_NOSIGNAL, address, address.length)) !== message.length) {
      throw new Error(`the service manager at ${place} cannot be told that it may go on`)
    }
  } finally {
    if (file >= 0) close(file)
  }
}

/** A `sockaddr_un` (unix(7)); an abstract name, which begins with @, has a NUL in its place and none behind it. */
function socketAddress(place: string): Buffer {
  const family = Buffer.alloc(2)
  new Uint16Array(family.buffer, family.byteOffset, 1)[0] = AF_UNIX
  const path = place.startsWith('@') ? `\0${place.slice(1)}` : `${place}\0`
  return Buffer.concat([family, Buffer.from(path)])
}
