/**
 * One run of the catalog's thread, seen from the main thread. Calls are sent at once and answered in order. If the
 * thread ends or does not answer in time, every unanswered call fails.
 */
import { statSync } from 'node:fs'
import { extname } from 'node:path'
import { Worker } from 'node:worker_threads'
import { DeltamapperError } from '../../errors.ts'
import type { CallName } from './calls.ts'
import type { Opening } from './database.ts'
import { type FromCatalog, type Start, type ToCatalog } from './messages.ts'
import { fromPortable } from '../../portable-error.ts'

interface Pending {
  resolve: (result: unknown) => void
  reject: (error: DeltamapperError) => void
}

/**
 * The catalog needs little memory. If it needs more than this, that is a defect, and the limit ends the thread instead
 * of the agent. MiB.
 */
const HEAP_MIB = 256
/** Opening reads and checks the whole file: allow a second more for each so many bytes. */
const CHECKED_A_SECOND = 16 * 2 ** 20

/** How many deadlines of a call opening may take besides: on a busy machine, a thread loads its program slowly. */
const LOADING_DEADLINES = 4

/** One run of the catalog, in whatever carries out its calls. */
export interface CatalogRun {
  /** What opening found; rejects as opening failed. */
  readonly opening: Promise<Opening>
  /** Resolves when it is gone, and the file free. */
  readonly gone: Promise<void>
  /** It takes no more calls: it has ended, failed, or is being closed. */
  readonly ended: boolean
  /** It was given up while at a call, and is not gone yet. */
  readonly stuck: boolean
  /** @throws what the call throws; DM_CATALOG_UNAVAILABLE when it ended or took too long, done or not */
  call(call: CallName | 'close', args: unknown[]): Promise<unknown>
}

export class CatalogThread implements CatalogRun {
  readonly opening: Promise<Opening>
  readonly gone: Promise<void>
  ended = false
  stuck = false
  readonly #path: string
  readonly #deadlineMs: number
  /** How much longer opening may take, in milliseconds; 0 once it is open. */
  #openingMs: number
  readonly #worker: Worker
  readonly #pending: Pending[] = []
  #timer: NodeJS.Timeout | undefined
  #failure: DeltamapperError | undefined

  constructor(start: Start, deadlineMs: number) {
    this.#path = start.path
    this.#deadlineMs = deadlineMs
    // (`stat` only; opening the file here would lose the lock: see database.ts.)
    const bytes = statSync(start.path, { throwIfNoEntry: false })?.size ?? 0
    this.#openingMs = LOADING_DEADLINES * deadlineMs + Math.floor(bytes / CHECKED_A_SECOND) * 1000
    // The sources run as .ts, the published package as .js.
    const file = new URL(`./catalog-worker${extname(import.meta.filename)}`, import.meta.url)
    this.#worker = new Worker(file, {
      name: 'catalog',
      workerData: start,
      // The process's own options (how to read its input, a test runner's hooks) are not for the thread.
      execArgv: [],
      resourceLimits: { maxOldGenerationSizeMb: HEAP_MIB }
    })
    this.#worker.on('message', (message: FromCatalog) => this.#answered(message))
    this.#worker.on('error', (error: Error) => {
      this.#failure ??= this.#unavailable(`its thread failed: ${error.message}`, error)
    })
    this.gone = new Promise((resolve) => {
      this.#worker.on('exit', () => {
        this.#end(this.#failure ?? this.#unavailable('its thread ended'))
        this.stuck = false
        resolve()
      })
    })
    this.opening = this.#expect() as Promise<Opening>
    // The first call rejects with the reason why opening failed.
    this.opening.catch(() => undefined)
  }

  async call(call: CallName | 'close', args: unknown[]): Promise<unknown> {
    // A value that cannot be sent throws here, and then no answer will come.
    this.#worker.postMessage({ call, args } satisfies ToCatalog)
    if (call === 'close') this.ended = true
    return this.#expect()
  }

  #expect(): Promise<unknown> {
    return new Promise((resolve, reject) => {
      this.#pending.push({ resolve, reject })
      if (this.#pending.length === 1) this.#startClock()
    })
  }

  #answered(message: FromCatalog): void {
    this.#openingMs = 0
    const oldest = this.#pending.shift()
    // Given up already.
    if (oldest === undefined) return
    const { resolve, reject } = oldest
    this.#startClock()
    if ('error' in message) {
      const error = fromPortable(message.error)
      if (message.last) this.#failure = error
      reject(error)
    } else resolve(message.result)
    if (message.last) this.#end(this.#failure ?? this.#unavailable('it was closed'))
  }

  /** Only the oldest call has a deadline; those behind it are not late, they wait. */
  #startClock(): void {
    clearTimeout(this.#timer)
    this.#timer = undefined
    if (this.#pending.length === 0) {
      // An idle catalog must not keep the process alive. A running call must, and so must closing.
      if (!this.ended) this.#worker.unref()
      return
    }
    this.#worker.ref()
    const deadlineMs = this.#deadlineMs + this.#openingMs
    this.#timer = setTimeout(() => {
      this.stuck = true
      this.#end(this.#unavailable(`it has not answered for ${deadlineMs / 1000} seconds`))
      // A call that waits for the disk ends only when the disk answers.
      void this.#worker.terminate()
      this.#worker.unref()
    }, deadlineMs)
  }

  #end(error: DeltamapperError): void {
    this.ended = true
    clearTimeout(this.#timer)
    for (const { reject } of this.#pending.splice(0)) reject(error)
  }

  #unavailable(what: string, cause?: unknown): DeltamapperError {
    return new DeltamapperError(
      'DM_CATALOG_UNAVAILABLE',
      `the catalog ${this.#path} cannot be used: ${what}; whether it took what it was last told is not known`,
      'ask again; if it stays like this, look into the kernel log for errors of its disk',
      { cause }
    )
  }
}
