/**
 * The events that the kernel announces about its devices (uevents), before udev has seen them: netlink(7),
 * NETLINK_KOBJECT_UEVENT; lib/kobject_uevent.c. Node has no such sockets.
 *
 * The kernel queues an event before the call that caused it returns. It sends them to every network namespace of the
 * initial user namespace, so a container gets them too.
 */
import koffi from 'koffi'
import { systemCallError } from './system-call-error.ts'

const AF_NETLINK = 16
const SOCK_RAW_CLOEXEC_NONBLOCK = 3 | 0o2000000 | 0o4000
const NETLINK_KOBJECT_UEVENT = 15
/** The group of the kernel's own events. (udevd sends its own to group 2.) */
const KERNEL_GROUP = 1
/** struct sockaddr_nl: family and padding of 16 bits each, port and groups of 32 bits each. */
const ADDRESS_BYTES = 12
/** An event is at most a header line and 2 KiB of variables (UEVENT_BUFFER_SIZE). */
const EVENT_BYTES = 8192
const EAGAIN = 11
const EINTR = 4
const ENOBUFS = 105

/** The variables of one event: ACTION, SUBSYSTEM, MAJOR, MINOR … */
export type KernelEvent = ReadonlyMap<string, string>

type Call = (...words: unknown[]) => number

export class KernelEvents {
  readonly #socket: number
  readonly #recv: Call
  readonly #close: Call
  readonly #buffer = Buffer.alloc(EVENT_BYTES)

  /** From now on, events wait to be read. @throws Error with the `code` of the system */
  constructor() {
    const library = koffi.load(null)
    const socket = library.func('int socket(int domain, int type, int protocol)') as Call
    const bind = library.func('int bind(int socket, void *address, uint32_t length)') as Call
    this.#recv = library.func('long recv(int socket, void *buffer, ulong length, int flags)') as Call
    this.#close = library.func('int close(int file)') as Call
    this.#socket = socket(AF_NETLINK, SOCK_RAW_CLOEXEC_NONBLOCK, NETLINK_KOBJECT_UEVENT)
    if (this.#socket < 0) throw systemCallError('socket', koffi.errno())
    const address = Buffer.alloc(ADDRESS_BYTES)
    address.writeUInt16LE(AF_NETLINK, 0)
    address.writeUInt32LE(KERNEL_GROUP, 8)
    if (bind(this.#socket, address, ADDRESS_BYTES) === 0) return
    const errno = koffi.errno()
    this.close()
    throw systemCallError('bind', errno)
  }

  /**
   * The events that have come since the last call, without waiting.
   *
   * @returns undefined where the kernel had to drop some, because they were not read in time
   */
  read(): KernelEvent[] | undefined {
    const events: KernelEvent[] = []
    let isWhole = true
    for (;;) {
      const bytes = this.#recv(this.#socket, this.#buffer, EVENT_BYTES, 0)
      if (bytes >= 0) {
        events.push(parsedEvent(this.#buffer.toString('utf8', 0, bytes)))
        continue
      }
      const errno = koffi.errno()
      if (errno === EAGAIN) return isWhole ? events : undefined
      if (errno === ENOBUFS) isWhole = false
      else if (errno !== EINTR) throw systemCallError('recv', errno)
    }
  }

  /** Once. */
  close(): void {
    this.#close(this.#socket)
  }
}

/** `change@/devices/virtual/block/dm-3`, then variables, each ended by a zero byte. */
function parsedEvent(text: string): KernelEvent {
  const pairs = text.split('\0').slice(1)
  return new Map(
    pairs.flatMap((each) => {
      const at = each.indexOf('=')
      return at < 0 ? [] : [[each.slice(0, at), each.slice(at + 1)] as const]
    })
  )
}
