/** The keeper of one pool's metadata snapshot (lease-keeper-process.ts), seen from the agent. */
import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'
import { getCompileCacheDir } from 'node:module'
import { extname } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import type { CallFailure } from '../../../native/call.ts'
import { failedError } from '../../../native/device-mapper-error.ts'
import { type DeviceNumber, type DeviceReference, describeDevice } from '../../../native/device.ts'
import { helperEnvironment } from '../../../native/helper-process.ts'
import type { ThinSuperblock } from '../../devicemapper/thin/superblock.ts'
import { defect, DeltamapperError, type ErrorCode } from '../../errors.ts'
import type { LeaseRecord } from '../catalog/lease.ts'
import { notePath, removeNote, withNote } from './release-note.ts'
import { isAnswered, keeperSocket } from './keeper-socket.ts'
import { keyedPool } from './pool-slot.ts'

/** How a slot is reserved and released. */
export const slotMessages = {
  thin: { reserve: 'reserve_metadata_snap', release: 'release_metadata_snap' },
  era: { reserve: 'take_metadata_snap', release: 'drop_metadata_snap' }
} as const

export type SlotKind = keyof typeof slotMessages

/** Most of a start is Node's own start-up, which is slow on a busy machine. Milliseconds. */
const START_DEADLINE_MS = 30_000
/** How long to wait for the end of a process that was let go, in milliseconds. */
const FAREWELL_MS = 1000

/** The node of a metadata device, and the device that it must be. */
export interface MetadataPlace {
  readonly path: string
  readonly device?: DeviceNumber
}

/** The arguments of a keeper, as JSON. */
export interface KeeperStart {
  readonly kind: SlotKind
  readonly pool: DeviceReference
  readonly metadata: MetadataPlace
  /** Where it listens (keeper-socket.ts). */
  readonly socket: string
  /** The path of its release note (release-note.ts), and the lease that the note is about. */
  readonly note: string
  readonly takenAt: number
}

/** It answers one question at a time. */
export type KeeperQuestion =
  | { readonly ask: 'reserve' }
  | { readonly ask: 'release' }
  /** Takes over a metadata snapshot that the records prove to be ours. */
  | { readonly ask: 'adopt'; readonly heldRoot: number; readonly facts: string }

export type KeeperAnswer =
  | {
      readonly answer: 'reserved'
      readonly heldRoot: number
      readonly facts: string
      /** For a thin pool, the superblock copy that it is. */
      readonly held?: ThinSuperblock | undefined
    }
  | { readonly answer: 'adopted' }
  | { readonly answer: 'released' }
  /** Another process has released ours; there may be another one, or (0) none. */
  | { readonly answer: 'not-ours'; readonly heldRoot: number }
  /** The kernel refused, and nothing has changed. */
  | { readonly answer: 'refused'; readonly failure: CallFailure }
  /** It was reserved, could not be read, and was released. */
  | ({ readonly answer: 'given-back' } & Portable)
  /** No message was sent. */
  | ({ readonly answer: 'failed' } & Portable)

interface Portable {
  readonly code: ErrorCode
  readonly message: string
  readonly remedy: string
}

/** Thrown when a keeper ended or did not answer: it is unknown whether its message was carried out. */
export class KeeperLost extends DeltamapperError {
  constructor(what: string, cause?: unknown) {
    super('DM_CALL_STUCK', what, 'see what the pool waits for (a suspended device? a dead disk?); ask again later', {
      cause
    })
  }
}

/** Whether a keeper of this pool is alive that works for this catalog: of this agent, or of an earlier one. */
export async function keeperAtWork(key: string, catalogPath: string): Promise<boolean> {
  return isAnswered(keeperSocket(catalogPath, key)).catch((error: unknown) => {
    throw new KeeperLost(`whether another process holds ${key} cannot be told: ${(error as Error).message}`, error)
  })
}

/** Keepers, and what they leave behind for the next agent. */
export interface Keepers {
  /** @throws DM_DEVICE_BUSY when there is one already; DM_CALL_STUCK when it cannot be started */
  start(
    lease: { device: string; takenAt: number },
    metadata: MetadataPlace,
    catalogPath: string,
    deadlineMs: number
  ): Promise<Keeper>
  /** Whether one of this pool is alive that works for this catalog. */
  atWork(key: string, catalogPath: string): Promise<boolean>
  /** A record, as it is to be understood with what a keeper has noted. */
  withNote(record: LeaseRecord, catalogPath: string): Promise<LeaseRecord>
  removeNote(device: string, catalogPath: string): Promise<void>
}

export type Keeper = Pick<LeaseKeeper, 'alive' | 'reserve' | 'adopt' | 'release' | 'end'>

export class LeaseKeeper {
  readonly #child: ChildProcess
  readonly #pool: DeviceReference
  readonly #kind: SlotKind
  readonly #deadlineMs: number
  #settle: ((answer: KeeperAnswer | 'ready' | 'occupied' | KeeperLost) => void) | undefined
  #gone: KeeperLost | undefined

  private constructor(child: ChildProcess, { pool, kind }: KeeperStart, deadlineMs: number) {
    this.#child = child
    this.#pool = pool
    this.#kind = kind
    this.#deadlineMs = deadlineMs
    const lost = (what: string, cause?: unknown) => {
      this.#gone ??= new KeeperLost(`the keeper of ${describeDevice(pool)}'s metadata snapshot ${what}`, cause)
      this.#settle?.(this.#gone)
    }
    child.on('message', (message: KeeperAnswer | 'ready' | 'occupied') => this.#settle?.(message))
    child.on('error', (error) => lost(`could not be started: ${error.message}`, error))
    child.on('exit', (code, signal) => lost(`ended (${signal ?? `exit status ${code}`})`))
  }

  /**
   * Starts a keeper for a pool.
   *
   * @param lease of its record: device and time
   * @param deadlineMs how long an answer may take
   * @param kind of the slot
   * @throws DM_DEVICE_BUSY when there is one already; DM_CALL_STUCK when it cannot be started
   */
  static async start(
    { device, takenAt }: { device: string; takenAt: number },
    metadata: MetadataPlace,
    catalogPath: string,
    deadlineMs: number,
    kind: SlotKind = 'thin'
  ): Promise<LeaseKeeper> {
    const pool = keyedPool(device)
    const note = notePath(catalogPath, device)
    const start: KeeperStart = { kind, pool, metadata, socket: keeperSocket(catalogPath, device), note, takenAt }
    const program = fileURLToPath(new URL(`./lease-keeper-process${extname(import.meta.filename)}`, import.meta.url))
    const compiled = getCompileCacheDir()
    const child = fork(program, [JSON.stringify(start)], {
      // A process group of its own: signals for the agent's group (Ctrl-C) are not for the keeper.
      detached: true,
      execArgv: ['--max-old-space-size=64'],
      // It starts several times as fast with Node's compile cache.
      env: { ...helperEnvironment(), ...(compiled === undefined ? {} : { NODE_COMPILE_CACHE: compiled }) },
      stdio: ['ignore', 'ignore', 'ignore', 'ipc'],
      // JSON has no bigint.
      serialization: 'advanced'
    })
    const keeper = new LeaseKeeper(child, start, deadlineMs)
    const first = await keeper.#next(START_DEADLINE_MS)
    if (first === 'ready') return keeper
    if (first !== 'occupied') keeper.#expect(first, 'adopted', slotMessages[kind].reserve)
    throw new DeltamapperError(
      'DM_DEVICE_BUSY',
      `another process is dealing with the metadata snapshot of ${describeDevice(pool)}`,
      'ask again in a moment; two agents on one node should not use the same pool'
    )
  }

  get alive(): boolean {
    return this.#gone === undefined
  }

  get pid(): number | undefined {
    return this.#child.pid
  }

  /**
   * Reserves the metadata snapshot. It is held until `release`, or until this process is gone.
   *
   * @throws KeeperLost when it is unknown whether it was reserved; DM_DEVICE_BUSY when one is held; otherwise it was
   *   not reserved
   */
  async reserve(): Promise<Extract<KeeperAnswer, { answer: 'reserved' }>> {
    return this.#expect(await this.#ask({ ask: 'reserve' }), 'reserved', slotMessages[this.#kind].reserve)
  }

  /** Puts a metadata snapshot that is known to be ours into the keeper's care. @throws KeeperLost */
  async adopt(heldRoot: number, facts: string): Promise<void> {
    this.#expect(await this.#ask({ ask: 'adopt', heldRoot, facts }), 'adopted', slotMessages[this.#kind].reserve)
  }

  /**
   * Releases it, if it is still ours.
   *
   * @returns whether it was: 'not-ours' when another process has released it
   * @throws KeeperLost when it is unknown whether it was released; otherwise it was not
   */
  async release(): Promise<'released' | 'not-ours'> {
    const answer = await this.#ask({ ask: 'release' })
    if (answer.answer === 'not-ours') return answer.answer
    this.#expect(answer, 'released', slotMessages[this.#kind].release)
    return 'released'
  }

  /**
   * Lets it go. It first releases what it still holds. Resolves when it has ended, or after a second: it may hang in
   * the kernel, and must not hold up this process.
   */
  async end(): Promise<void> {
    const child = this.#child
    if (child.connected) child.disconnect()
    this.#gone ??= new KeeperLost('the keeper was let go')
    if (child.exitCode !== null || child.signalCode !== null) return
    await Promise.race([once(child, 'exit').catch(() => undefined), sleep(FAREWELL_MS, undefined, { ref: false })])
    child.unref()
  }

  async #ask(question: KeeperQuestion): Promise<KeeperAnswer> {
    if (this.#gone !== undefined) throw this.#gone
    const next = this.#next(this.#deadlineMs)
    this.#child.send(question, () => undefined)
    return (await next) as KeeperAnswer
  }

  async #next(deadlineMs: number): Promise<KeeperAnswer | 'ready' | 'occupied'> {
    const answer = await new Promise<KeeperAnswer | 'ready' | 'occupied' | KeeperLost>((resolve) => {
      this.#settle = resolve
      const timer = setTimeout(() => {
        resolve(new KeeperLost(`${describeDevice(this.#pool)} has not taken a message for ${deadlineMs / 1000} s`))
      }, deadlineMs)
      this.#settle = (answer) => {
        clearTimeout(timer)
        resolve(answer)
      }
      if (this.#gone !== undefined) this.#settle(this.#gone)
    })
    this.#settle = undefined
    if (!(answer instanceof KeeperLost)) return answer
    // If its message is carried out after all, it finds us gone and undoes it.
    void this.end()
    throw answer
  }

  #expect<A extends KeeperAnswer['answer']>(
    answer: KeeperAnswer,
    expected: A,
    text: string
  ): Extract<KeeperAnswer, { answer: A }> {
    if (answer.answer === expected) return answer as Extract<KeeperAnswer, { answer: A }>
    if (answer.answer === 'refused') {
      throw failedError({ call: 'message', device: this.#pool, sector: 0, text }, answer.failure)
    }
    if (answer.answer === 'failed' || answer.answer === 'given-back') {
      throw new DeltamapperError(answer.code, answer.message, answer.remedy)
    }
    throw defect(`a lease's keeper answered ${answer.answer}`)
  }
}

/** Processes of this machine, with notes beside the catalog. */
export const processKeepers: Keepers = {
  start: (lease, metadata, catalogPath, deadlineMs) => LeaseKeeper.start(lease, metadata, catalogPath, deadlineMs),
  atWork: keeperAtWork,
  withNote,
  removeNote: (device, catalogPath) => removeNote(notePath(catalogPath, device))
}
