/**
 * What the kernel announces about changes of device-mapper's devices (uevents), before udev has seen it: netlink(7),
 * NETLINK_KOBJECT_UEVENT; lib/kobject_uevent.c. Node has no such sockets.
 *
 * The kernel queues an event before the call that caused it returns. It sends them to every network namespace of the
 * initial user namespace, so a container gets them too.
 *
 * The queue has room for some hundred. So what other devices cause (`udevadm trigger` asks all of them for an event)
 * does not get in: a filter of the socket looks at each event's first line.
 */
import koffi from 'koffi'
import { addressOf } from './kernel-aio.ts'
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

const SOL_SOCKET = 1
const SO_ATTACH_FILTER = 26
/** Whatever the host's limit is; it takes CAP_NET_ADMIN. */
const SO_RCVBUFFORCE = 33
const SO_RCVBUF = 8
/** Bytes of events that may wait: each takes 1 to 2 KiB of them. */
const QUEUE_BYTES = 8 * 2 ** 20
/** Of `change@/devices/virtual/block/dm-3`: what has to be where. */
const CHANGE_OF_DEVICE_MAPPER = [
  [0, 'chan'],
  [4, 'ge@/'],
  [24, 'bloc'],
  [28, 'k/dm']
] as const
/** Classic BPF (linux/filter.h): load a word, compare, return how many bytes to keep. */
const [LOAD_WORD, JUMP_IF_EQUAL, RETURN] = [0x20, 0x15, 0x06]

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
    const set = library.func('int setsockopt(int socket, int level, int name, void *value, uint32_t length)') as Call
    const option = (name: number, value: Buffer) => set(this.#socket, SOL_SOCKET, name, value, value.length) === 0
    // Where one of these is not allowed, there is less room, and no more is lost than that is said.
    option(SO_ATTACH_FILTER, filterProgram(filter))
    if (!option(SO_RCVBUFFORCE, word(QUEUE_BYTES))) option(SO_RCVBUF, word(QUEUE_BYTES))
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

/** The filter's instructions: 16 bits of code, 8 each of how many to skip if equal and if not, 32 bits of value. */
const filter = Buffer.concat(
  [
    ...CHANGE_OF_DEVICE_MAPPER.flatMap(([at, text], i) => [
      [LOAD_WORD, 0, 0, at],
      // If not, to the last instruction of all.
      [JUMP_IF_EQUAL, 0, 2 * (CHANGE_OF_DEVICE_MAPPER.length - i) - 1, Buffer.from(text).readUInt32BE()]
    ]),
    [RETURN, 0, 0, EVENT_BYTES],
    [RETURN, 0, 0, 0]
  ].map(([code, isEqual, isNot, value]) => {
    const instruction = Buffer.alloc(8)
    instruction.writeUInt16LE(code, 0)
    instruction.writeUInt8(isEqual, 2)
    instruction.writeUInt8(isNot, 3)
    instruction.writeUInt32LE(value, 4)
    return instruction
  })
)

/** struct sock_fprog: how many instructions, and where they are. They have to stay there during the call only. */
function filterProgram(instructions: Buffer): Buffer {
  const program = Buffer.alloc(16)
  program.writeUInt16LE(instructions.length / 8, 0)
  program.writeBigUInt64LE(BigInt(addressOf(instructions)), 8)
  return program
}

function word(value: number): Buffer {
  const buffer = Buffer.alloc(4)
  buffer.writeUInt32LE(value)
  return buffer
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
