/**
 * Linux's own queue of reads: many are begun with one system call, and fetched with another when they are done
 * (io_setup(2), io_submit(2), io_getevents(2); structures: linux/aio_abi.h). No thread waits for them.
 *
 * The C library has no functions for these calls, only `syscall`, and containers have no libaio. io_uring would save
 * little, is forbidden by most containers' seccomp profiles, and corrupts memory in user-mode Linux from 6.12 on.
 */
import koffi from 'koffi'
import { systemCallError } from './system-call-error.ts'

/** Numbers of the calls: x86-64 has its own, architectures that came later share theirs (asm-generic/unistd.h). */
const numbers: Record<string, { setup: number; destroy: number; submit: number; getevents: number } | undefined> = {
  x64: { setup: 206, destroy: 207, getevents: 208, submit: 209 },
  arm64: { setup: 0, destroy: 1, submit: 2, getevents: 4 },
  riscv64: { setup: 0, destroy: 1, submit: 2, getevents: 4 }
}

/** struct iocb, in words of 4 bytes. */
const IOCB_WORDS = 16
/** Where an iocb has its flags (aio_rw_flags). */
const FLAGS_WORD = 3
/** struct io_event: data, obj, res and res2, 64 bits each. */
const EVENT_WORDS = 8
const IOCB_CMD_PREAD = 0
/** Return EAGAIN where the call would wait for the device (linux/fs.h). */
const RWF_NOWAIT = 8
const EINTR = 4
const NANOSECONDS_PER_MILLISECOND = 1e6

type Call = (...words: unknown[]) => number
type CallInThread = (...words: unknown[]) => void

/** An address, as a number: a process has 2^47 of them at most (2^56 with five levels of page tables are asked for). */
export function addressOf(memory: Uint8Array): number {
  return Number(koffi.address(memory))
}

/** Places for reads: `events` of them, numbered from 0. One for each thread, for as long as that lives. */
export class KernelAio {
  readonly events: number
  /** Of reads that have ended since the last `fetch`: place, and bytes or -errno. */
  readonly places: Int32Array
  readonly results: Int32Array
  readonly #numbers: NonNullable<(typeof numbers)[string]>
  readonly #context: bigint
  readonly #iocbs: Uint32Array
  readonly #iocbAt: number
  readonly #list: BigUint64Array
  readonly #fetched: Int32Array
  readonly #timeout = new BigInt64Array(2)
  readonly #submit: Call
  readonly #submitInThread: CallInThread
  readonly #getevents: Call
  readonly #destroy: Call

  /**
   * @param memory for as long as this lives, 64 bytes for each event; it must not move
   * @throws where the kernel does not allow it, or the host's budget (fs.aio-max-nr) is used up
   */
  constructor(events: number, memory: Buffer) {
    const known = numbers[process.arch]
    if (!known) throw new Error(`the numbers of the calls are not known for ${process.arch}`)
    this.#numbers = known
    this.events = events
    const library = koffi.load(null)
    const setup = library.func('syscall', 'long', ['long', 'ulong', 'void *']) as Call
    const submit = library.func('syscall', 'long', ['long', 'ulong', 'long', 'void *'])
    this.#submit = submit as Call
    this.#submitInThread = submit.async as CallInThread
    this.#getevents = library.func('syscall', 'long', ['long', 'ulong', 'long', 'long', 'void *', 'void *']) as Call
    this.#destroy = library.func('syscall', 'long', ['long', 'ulong']) as Call
    this.#iocbs = new Uint32Array(memory.buffer, memory.byteOffset, events * IOCB_WORDS)
    this.#iocbAt = addressOf(memory)
    this.#list = new BigUint64Array(events)
    this.#fetched = new Int32Array(events * EVENT_WORDS)
    this.places = new Int32Array(events)
    this.results = new Int32Array(events)
    const context = new BigUint64Array(1)
    if (setup(known.setup, events, context) !== 0) throw systemCallError('io_setup', koffi.errno())
    this.#context = context[0]
  }

  /**
   * Prepares the read at a free place, to be begun by `submit`.
   *
   * @param address of the memory, which must stay where it is until the read has been fetched
   * @param position in the file, in bytes below 2^53
   */
  prepare(place: number, file: number, address: number, bytes: number, position: number): void {
    const [words, at] = [this.#iocbs, place * IOCB_WORDS]
    words[at] = place
    words[at + 1] = words[at + 2] = 0
    words[at + FLAGS_WORD] = RWF_NOWAIT
    words[at + 4] = IOCB_CMD_PREAD
    words[at + 5] = file
    setU64(words, at + 6, address)
    setU64(words, at + 8, bytes)
    setU64(words, at + 10, position)
    words.fill(0, at + 12, at + 16)
  }

  /** Begins prepared reads. @returns how many of the first ones were begun, or -errno if none was */
  submit(places: ArrayLike<number>, count: number): number {
    for (let i = 0; i < count; i++) this.#list[i] = this.#addressAt(places[i])
    const begun = this.#submit(this.#numbers.submit, this.#context, count, this.#list)
    return begun < 0 ? -koffi.errno() : begun
  }

  /**
   * Begins prepared reads even where that takes waiting for the device: in one of libuv's threads, which it keeps
   * meanwhile.
   *
   * @param done is told how many of the first ones were begun, or -errno if none was
   */
  submitInThread(places: ArrayLike<number>, count: number, done: (begun: number) => void): void {
    const list = new BigUint64Array(count)
    for (let i = 0; i < count; i++) {
      this.#iocbs[places[i] * IOCB_WORDS + FLAGS_WORD] = 0
      list[i] = this.#addressAt(places[i])
    }
    this.#submitInThread(this.#numbers.submit, this.#context, count, list, (error: Error | null, begun: number) => {
      if (error) throw error
      // (The list is the kernel's until here.)
      done(begun < 0 ? -koffi.errno() : Math.min(begun, list.length))
    })
  }

  #addressAt(place: number): bigint {
    return BigInt(this.#iocbAt + place * IOCB_WORDS * 4)
  }

  /**
   * Fetches reads that have ended, into `places` and `results`.
   *
   * @param least so many are waited for, `forMs` at most (0: not at all; below 1000)
   * @returns how many
   */
  fetch(least: number, forMs: number): number {
    this.#timeout[1] = BigInt(Math.round(forMs * NANOSECONDS_PER_MILLISECOND))
    const count = this.#getevents(
      this.#numbers.getevents,
      this.#context,
      least,
      this.events,
      this.#fetched,
      this.#timeout
    )
    if (count < 0) {
      if (koffi.errno() === EINTR) return 0
      throw systemCallError('io_getevents', koffi.errno())
    }
    for (let i = 0; i < count; i++) {
      this.places[i] = this.#fetched[i * EVENT_WORDS]
      this.results[i] = this.#fetched[i * EVENT_WORDS + 4]
    }
    return count
  }

  /** Waits for all that is under way. */
  destroy(): void {
    this.#destroy(this.#numbers.destroy, this.#context)
  }
}

function setU64(words: Uint32Array, at: number, value: number): void {
  words[at] = value % 2 ** 32
  words[at + 1] = Math.floor(value / 2 ** 32)
}
