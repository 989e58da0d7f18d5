/** The keeper of one pool's metadata snapshot (lease-keeper-process.ts), seen from the agent. */
import type { CallFailure } from '../../../native/call.ts'
import { failedError } from '../../../native/device-mapper-error.ts'
import { type DeviceNumber, type DeviceReference, describeDevice } from '../../../native/device.ts'
import { HelperDialogue } from '../../../native/helper-dialogue.ts'
import type { ThinSuperblock } from '../../devicemapper/thin/superblock.ts'
import { defect, DeltamapperError, type ErrorCode } from '../../errors.ts'
import { systemRemedy } from '../../system-errors.ts'
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
    const waits = 'see what the pool waits for (a suspended device? a dead disk?); ask again later'
    super('DM_CALL_STUCK', what, systemRemedy(cause) ?? waits, { cause })
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

type KeeperWord = KeeperAnswer | 'ready' | 'occupied'

export class LeaseKeeper {
  readonly #dialogue: HelperDialogue<KeeperQuestion, KeeperWord>
  readonly #pool: DeviceReference
  readonly #kind: SlotKind
  readonly #deadlineMs: number
  #letGo: KeeperLost | undefined

  private constructor(start: KeeperStart, deadlineMs: number) {
    const { pool, kind } = start
    this.#pool = pool
    this.#kind = kind
    this.#deadlineMs = deadlineMs
    this.#dialogue = new HelperDialogue('./lease-keeper-process', import.meta.url, start, {
      lost: (what, cause) => new KeeperLost(`the keeper of ${describeDevice(pool)}'s metadata snapshot ${what}`, cause),
      late: (ms) => new KeeperLost(`${describeDevice(pool)} has not taken a message for ${ms / 1000} s`)
    })
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
    const keeper = new LeaseKeeper(start, deadlineMs)
    const first = await keeper.#orLetGo(keeper.#dialogue.started())
    if (first === 'ready') return keeper
    if (first !== 'occupied') keeper.#expect(first, 'adopted', slotMessages[kind].reserve)
    throw new DeltamapperError(
      'DM_DEVICE_BUSY',
      `another process is dealing with the metadata snapshot of ${describeDevice(pool)}`,
      'ask again in a moment; two agents on one node should not use the same pool'
    )
  }

  get alive(): boolean {
    return this.#letGo === undefined && !this.#dialogue.lost.aborted
  }

  get pid(): number | undefined {
    return this.#dialogue.pid
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
    this.#letGo ??= new KeeperLost('the keeper was let go')
    await this.#dialogue.end()
  }

  async #ask(question: KeeperQuestion): Promise<KeeperAnswer> {
    if (this.#letGo !== undefined) throw this.#letGo
    this.#dialogue.lost.throwIfAborted()
    return (await this.#orLetGo(this.#dialogue.ask(question, this.#deadlineMs))) as KeeperAnswer
  }

  /** One that does not answer is let go: if its message is carried out after all, it finds us gone and undoes it. */
  async #orLetGo(word: Promise<KeeperWord>): Promise<KeeperWord> {
    try {
      return await word
    } catch (error) {
      void this.end()
      throw error
    }
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
