/**
 * Reads around the page cache, and limits the cost of a device that does not answer.
 *
 * Walks and an agent's looks read through the kernel's queue where they may (read-queue.ts). Everything else is read
 * by Node, in threads that the whole process shares (UV_THREADPOOL_SIZE of them). A request to a device that hangs
 * (suspended, or behind a dead path) keeps its thread for as long as the device hangs; nothing takes the thread back,
 * not even SIGKILL. Its place in the queue likewise. Other devices must stay readable meanwhile. So, for each device:
 *
 * - at most threadsAtOnce and PLACES_AT_ONCE of this JavaScript thread's requests run at once;
 * - none is sent while one of them has been running for longer than PATIENCE_MS, so that asking again costs nothing;
 * - a request fails when its deadline passes, which includes the wait for its turn. Its place is free when the kernel
 *   returns it.
 *
 * A pace limits the requests to so many bytes a second, so that a pool serves others first.
 */
import { read, readv } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import type { ReadQueue, WaitingLine } from './read-queue.ts'
import type { FailedRun, ReadRuns } from './read-runs.ts'

/**
 * An agent has few threads (bin/deltamapper.js), as its walks need none: a device that hangs may keep two of them for
 * each JavaScript thread that reads it. Where there are more (for `reads: preadv`), more requests at once are faster.
 */
const threadsAtOnce = Number(process.env['UV_THREADPOOL_SIZE'] ?? 32) < 32 ? 2 : 16
/** Of the queue's places. A window of blocks is never larger. */
const PLACES_AT_ONCE = 128
/** Requests for no more than so many runs go before larger ones, into places of their own: answers begin with them. */
const SMALL_RUNS = 2
const PLACES_FOR_SMALL = 32
const PATIENCE_MS = 1000
/** The resolution of timers, in milliseconds. A request that should wait for less is sent, and counts nevertheless. */
const SHORTEST_PAUSE_MS = 1

/** How a device is read. */
export interface ReadTerms {
  /** How long an answer may take, including the wait for its turn, in milliseconds. */
  deadlineMs: number
  /** The most bytes a second that this JavaScript thread reads from the device; undefined for no limit. */
  bytesPerSecond?: number | undefined
}

/** A request that was not answered in time. */
export class Unanswered extends Error {
  /** It was sent: the kernel may still write into its buffer. */
  readonly sent: boolean

  constructor(afterMs: number, sent: boolean) {
    super(`there was no answer for ${afterMs / 1000} s`)
    this.name = 'Unanswered'
    this.sent = sent
  }
}

/** fs.read, or its replacement in tests. */
export type ReadCall = (
  file: number,
  into: Uint8Array,
  start: number,
  bytes: number,
  position: number,
  done: (error: Error | null, bytesRead: number) => void
) => void

interface Request {
  /** Places in the queue that it takes; 0 if it takes a thread. */
  readonly places: number
  send(): void
}

type Done<T> = (error: Error | null, value: T) => void

const devices = new Map<string, DeviceReads>()

/** The requests of this JavaScript thread to one device. */
export class DeviceReads {
  readonly #key: string
  readonly #read: ReadCall
  readonly #waiting: Request[] = []
  readonly #smallWaiting: Request[] = []
  /** When each running request was sent (performance.now()), the oldest first. */
  readonly #underWay = new Set<{ sentAt: number }>()
  #threads = 0
  #places = 0
  readonly #line: WaitingLine = { alwaysWaits: false, places: [], hasThread: false }
  /** When the requests sent so far are paid for at the configured pace, by performance.now(). */
  #paidUntil = 0
  #users = 0

  private constructor(key: string, read: ReadCall) {
    this.#key = key
    this.#read = read
  }

  /** Call it on opening the device, and `leave` at the end. @param key the same for every reader of this device */
  static join(key: string, readCall: ReadCall = read): DeviceReads {
    let device = devices.get(key)
    if (device === undefined) devices.set(key, (device = new DeviceReads(key, readCall)))
    device.#users++
    return device
  }

  leave(): void {
    this.#users--
    this.#forgetIfUnused()
  }

  /**
   * Reads into a buffer when the pace allows it. The buffer belongs to the kernel until this has settled (and beyond
   * that, see Unanswered.sent).
   *
   * @returns how many bytes came back
   * @throws Unanswered; what fs.read throws
   */
  async read(
    file: number,
    into: Uint8Array,
    start: number,
    bytes: number,
    position: number,
    terms: ReadTerms
  ): Promise<number> {
    return this.#inTurn(0, bytes, terms, (done) => this.#read(file, into, start, bytes, position, done))
  }

  /** The same into several buffers, one after the other, as one request. */
  async readInto(file: number, into: readonly Uint8Array[], position: number, terms: ReadTerms): Promise<number> {
    const bytes = into.reduce((sum, { length }) => sum + length, 0)
    return this.#inTurn(0, bytes, terms, (done) => readv(file, into, position, done))
  }

  /**
   * Reads all runs into page-aligned memory, which with the runs belongs to the kernel until this has settled (and
   * beyond that, see Unanswered.sent).
   *
   * @param queue for reads that take no thread
   * @returns a run that was not read whole, if there is one: one that the kernel still has, rather than another
   */
  async readRuns(
    file: number,
    memory: Uint8Array,
    runs: ReadRuns,
    terms: ReadTerms,
    queue?: ReadQueue
  ): Promise<FailedRun | undefined> {
    if (!queue) return this.#readByThreads(file, memory, runs, terms)
    const began = performance.now()
    let returned: FailedRun | 'no place' | undefined
    try {
      returned = await this.#inTurn(runs.count, runs.bytes, terms, (done: Done<typeof returned>) => {
        const isSent = queue.send(file, memory, runs, this.#line, (failed) => done(null, failed))
        if (!isSent) done(null, 'no place')
      })
    } catch (error) {
      return { run: 0, outcome: error as Error }
    }
    if (returned !== 'no place') return returned
    // The pace has been kept already, and the deadline goes on.
    const deadlineMs = Math.max(SHORTEST_PAUSE_MS, terms.deadlineMs - (performance.now() - began))
    return this.#readByThreads(file, memory, runs, { deadlineMs })
  }

  async #readByThreads(
    file: number,
    memory: Uint8Array,
    { count, starts, lengths, positions }: ReadRuns,
    terms: ReadTerms
  ): Promise<FailedRun | undefined> {
    let failed: FailedRun | undefined
    const isSent = (run: FailedRun | undefined) => run?.outcome instanceof Unanswered && run.outcome.sent
    // Every request must have returned before the memory may be used or given away, even if one of them failed.
    const read = async (run: number): Promise<void> => {
      const outcome = await this.read(file, memory, starts[run], lengths[run], positions[run], terms).catch(
        (error: unknown) => error as Error
      )
      if (outcome === lengths[run]) return
      if (failed === undefined || (!isSent(failed) && isSent({ run, outcome }))) failed = { run, outcome }
    }
    await Promise.all(Array.from({ length: count }, (_, run) => read(run)))
    return failed
  }

  /** @param places in the queue; 0 if it takes a thread */
  async #inTurn<T>(
    places: number,
    bytes: number,
    { deadlineMs, bytesPerSecond }: ReadTerms,
    send: (done: Done<T>) => void
  ): Promise<T> {
    const pauseMs = bytesPerSecond === undefined ? 0 : this.#pause(bytes, bytesPerSecond)
    if (pauseMs >= SHORTEST_PAUSE_MS) await sleep(pauseMs)
    const waiting = isSmall(places) ? this.#smallWaiting : this.#waiting
    return new Promise((resolve, reject) => {
      let sent = false
      const request: Request = {
        places,
        send: () => {
          sent = true
          const since = { sentAt: performance.now() }
          this.#underWay.add(since)
          this.#count(places, 1)
          send((error, value) => {
            clearTimeout(timer)
            this.#underWay.delete(since)
            this.#count(places, -1)
            if (error) reject(error)
            else resolve(value)
            this.#sendNext()
            this.#forgetIfUnused()
          })
        }
      }
      const timer = setTimeout(() => {
        if (!sent) waiting.splice(waiting.indexOf(request), 1)
        reject(new Unanswered(deadlineMs, sent))
      }, deadlineMs)
      waiting.push(request)
      this.#sendNext()
    })
  }

  #count(places: number, by: 1 | -1): void {
    if (places > 0) this.#places += by * places
    else this.#threads += by
  }

  /** Counts a request. @returns how long it must wait for those before, in milliseconds */
  #pause(bytes: number, bytesPerSecond: number): number {
    const now = performance.now()
    const begin = Math.max(now, this.#paidUntil)
    this.#paidUntil = begin + (bytes / bytesPerSecond) * 1000
    return begin - now
  }

  #sendNext(): void {
    for (const waiting of [this.#smallWaiting, this.#waiting]) {
      while (waiting.length > 0 && this.#mayBeSent(waiting[0])) waiting.shift()?.send()
    }
  }

  #mayBeSent({ places }: Request): boolean {
    const most = PLACES_AT_ONCE + (isSmall(places) ? PLACES_FOR_SMALL : 0)
    const isRoom = places === 0 ? this.#threads < threadsAtOnce : this.#places === 0 || this.#places + places <= most
    if (!isRoom) return false
    const [oldest] = this.#underWay
    return oldest === undefined || performance.now() - oldest.sentAt < PATIENCE_MS
  }

  /** A device is remembered for as long as it owes an answer. */
  #forgetIfUnused(): void {
    if (this.#users === 0 && this.#underWay.size === 0) devices.delete(this.#key)
  }
}

/** @param places that a request takes in the queue */
function isSmall(places: number): boolean {
  return places > 0 && places <= SMALL_RUNS
}
