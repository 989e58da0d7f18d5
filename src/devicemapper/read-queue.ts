/**
 * Reads through the kernel's own queue (native/kernel-aio.ts): a window of blocks is one submission, and no thread
 * waits for it. One queue for each JavaScript thread, kept for the thread's life.
 *
 * A read in the queue cannot be taken back. So its memory is held here until the kernel has returned it, whatever has
 * become of whoever asked: otherwise a late answer would overwrite nodes that have been verified already.
 *
 * Nothing tells this thread that a read has ended; it looks. While the youngest reads are expected every moment, and
 * no walk has anything else to do, a look waits for them in the kernel, for a millisecond at most, and then the event
 * loop has its turn. What takes longer is
 * looked after by a timer, after an eighth of the time that it has taken so far. (An eventfd would need one of libuv's
 * threads for each wait.)
 *
 * No call of this thread's waits for a device: reads are begun with RWF_NOWAIT. What cannot be begun so (a suspended
 * device, no place in its queue, a target that does not know the flag) is begun by one of libuv's threads, which may
 * wait. A device has one of those at a time, however much is asked of it: a device that hangs must leave some.
 */
import { systemCallError } from '../../native/system-call-error.ts'
import type { KernelAio } from '../../native/kernel-aio.ts'
import { pageAligned } from './page-aligned.ts'
import type { FailedRun, ReadRuns } from './read-runs.ts'
import { windowTurns } from './window-turns.ts'

/**
 * Places of a thread's queue. The kernel counts twice as many against the host's budget (65,536 by default). A device
 * gets a quarter (device-reads.ts), so that three may hang.
 */
const PLACES = 512
const IOCB_BYTES = 64
/** The longest wait in the kernel, in milliseconds, and how young reads must be for it. */
const WAIT_MS = 1
const SOON_MS = 4
/** The same where nobody waits: each turn of the event loop is a look, which keeps a processor busy. */
const SOON_WITHOUT_WAITING_MS = 1
/** A timer's part of the time that reads have taken, and its limit in milliseconds. */
const PART = 8
const LONGEST_PAUSE_MS = 50

const EAGAIN = 11
const EINVAL = 22
const EOPNOTSUPP = 95

/** What a device's reads that take waiting share. */
export interface WaitingLine {
  /** It does not know RWF_NOWAIT: no read is tried with it again. */
  alwaysWaits: boolean
  /** Places of reads that are to be begun by a thread. */
  places: number[]
  /** A thread is beginning some. */
  hasThread: boolean
}

interface Batch {
  /** Held, so that it is not freed. */
  readonly memory: Uint8Array
  readonly runs: ReadRuns
  readonly line: WaitingLine
  readonly sentAt: number
  failed: FailedRun | undefined
  underWay: number
  readonly done: (failed: FailedRun | undefined) => void
}

export class ReadQueue {
  readonly #aio: KernelAio
  readonly #addressOf: (memory: Uint8Array) => number
  readonly #free: Int32Array
  #freeCount: number
  readonly #batchAt: (Batch | undefined)[] = []
  readonly #runAt: Uint16Array
  /** Reads that were begun, or are to be, without RWF_NOWAIT. */
  readonly #mayWait: Uint8Array
  /** Batches of which the kernel has reads, the oldest first. */
  readonly #underWay = new Set<Batch>()
  readonly #addresses = new WeakMap<ArrayBufferLike, number>()
  #looksNext = false
  #timer: NodeJS.Timeout | undefined
  #waits = true

  private constructor({ KernelAio, addressOf }: typeof import('../../native/kernel-aio.ts')) {
    this.#aio = new KernelAio(PLACES, pageAligned(PLACES * IOCB_BYTES))
    this.#addressOf = addressOf
    this.#free = Int32Array.from({ length: PLACES }, (_, place) => place)
    this.#freeCount = PLACES
    this.#runAt = new Uint16Array(PLACES)
    this.#mayWait = new Uint8Array(PLACES)
  }

  /** This thread's. @throws where there is none to be had */
  static async ofThread(): Promise<ReadQueue> {
    // The foreign function interface takes time to load, and most programs read no device.
    return (threadQueue ??= import('../../native/kernel-aio.ts').then((native) => new ReadQueue(native)))
  }

  /** From now on no look waits in the kernel: for a thread that has clients to serve meanwhile. */
  neverWait(): void {
    this.#waits = false
  }

  /** Places in use, for tests. */
  get placesUsed(): number {
    return PLACES - this.#freeCount
  }

  /**
   * Begins to read into page-aligned memory, which with the runs belongs to the queue until `done` is called.
   *
   * @param line the device's
   * @param done is told of a run that was not read whole, if there is one
   * @returns false when there is no place for so many, and nothing was begun
   */
  send(file: number, memory: Uint8Array, runs: ReadRuns, line: WaitingLine, done: Batch['done']): boolean {
    const { count } = runs
    if (count > this.#freeCount) return false
    const batch: Batch = {
      ...{ memory, runs, line, sentAt: performance.now(), failed: undefined, underWay: count, done }
    }
    const places = this.#free.slice(this.#freeCount - count, this.#freeCount)
    const address = this.#addressOfStart(memory)
    for (let run = 0; run < count; run++) {
      const place = places[run]
      this.#batchAt[place] = batch
      this.#runAt[place] = run
      this.#mayWait[place] = 0
      this.#aio.prepare(place, file, address + runs.starts[run], runs.lengths[run], runs.positions[run])
    }
    this.#freeCount -= count
    this.#underWay.add(batch)
    for (let begun = 0; begun < count;) {
      const outcome = line.alwaysWaits ? -EAGAIN : this.#aio.submit(places.subarray(begun), count - begun)
      if (outcome > 0) begun += outcome
      // The first of the rest cannot be begun.
      else while (begun < count) this.#end(places[begun++], outcome < 0 ? outcome : -EAGAIN)
    }
    this.#lookSoon()
    return true
  }

  #beginInThread(line: WaitingLine): void {
    if (line.hasThread || line.places.length === 0) return
    const { places } = line
    line.places = []
    line.hasThread = true
    this.#aio.submitInThread(places, places.length, (begun) => {
      line.hasThread = false
      // The first read was none that the kernel could begin.
      if (begun <= 0) this.#end(places[0], begun)
      line.places.unshift(...places.slice(Math.max(begun, 1)))
      this.#beginInThread(line)
      this.#lookSoon()
    })
  }

  #addressOfStart({ buffer, byteOffset }: Uint8Array): number {
    let address = this.#addresses.get(buffer)
    if (address === undefined) this.#addresses.set(buffer, (address = this.#addressOf(new Uint8Array(buffer))))
    return address + byteOffset
  }

  #lookSoon(): void {
    if (this.#underWay.size === 0) return
    clearTimeout(this.#timer)
    this.#timer = undefined
    if (!this.#looksNext) setImmediate(this.#look)
    this.#looksNext = true
  }

  readonly #look = (): void => {
    this.#looksNext = false
    this.#timer = undefined
    const now = performance.now()
    const soonMs = this.#waits ? SOON_MS : SOON_WITHOUT_WAITING_MS
    let expected: Batch | undefined
    let youngest = 0
    for (const batch of this.#underWay) {
      youngest = batch.sentAt
      if (now - youngest < soonMs) {
        expected = batch
        break
      }
    }
    const waits = this.#waits && !windowTurns.areWanted
    const count = expected && waits ? this.#aio.fetch(expected.underWay, WAIT_MS) : this.#aio.fetch(0, 0)
    for (let i = 0; i < count; i++) this.#end(this.#aio.places[i], this.#aio.results[i])
    if (this.#underWay.size === 0) return
    if (expected || count > 0) return this.#lookSoon()
    const pause = Math.min((now - youngest) / PART, LONGEST_PAUSE_MS)
    this.#timer ??= setTimeout(this.#look, pause)
  }

  /** @param result bytes, or -errno */
  #end(place: number, result: number): void {
    const batch = this.#batchAt[place]
    if (!batch) throw new Error(`the kernel has returned read ${place}, which it does not have`)
    const { line, runs } = batch
    const isUnknown = result === -EOPNOTSUPP || result === -EINVAL
    if (this.#mayWait[place] === 0 && (result === -EAGAIN || isUnknown)) {
      line.alwaysWaits ||= isUnknown
      this.#mayWait[place] = 1
      line.places.push(place)
      // What else comes back in this turn goes along.
      if (line.places.length === 1) setImmediate(() => this.#beginInThread(line))
      return
    }
    this.#batchAt[place] = undefined
    this.#free[this.#freeCount++] = place
    const run = this.#runAt[place]
    if (result < 0) batch.failed ??= { run, outcome: systemCallError('read', -result) }
    else if (result !== runs.lengths[run]) batch.failed ??= { run, outcome: result }
    if (--batch.underWay > 0) return
    this.#underWay.delete(batch)
    batch.done(batch.failed)
  }
}

let threadQueue: Promise<ReadQueue> | undefined
