/**
 * Backup software: asks what changed, copies that, and keeps what it has copied under the name that it asked for. What it keeps is held
 * against the truth each time that an answer has ended well.
 */
import { DeltamapperError } from '../../../src/errors.ts'
import { BlockMetadataMessage, decodeBlockMetadata } from '../../../src/grpc/block-metadata.ts'
import type { SimulatedAgent } from './agent.ts'
import type { DeviceContent } from './content.ts'
import type { Volume } from './group.ts'
import { BLOCK_BYTES, type Machine } from './machine.ts'

/** A backup that is complete: what every block held, of a snapshot that goes, or went, by this name. */
export interface Backup {
  readonly handle: string
  readonly versions: Int32Array
  readonly sizeBytes: number
  /** What it was read from. */
  readonly content: DeviceContent
  /** Nothing of it was being written to. */
  readonly isCommitted: boolean
}

/** An answer that ended early, and may be gone on with. */
export interface Unfinished {
  readonly handle: string
  readonly base: Backup | undefined
  /** By block: at which turn it was copied; 0 where it was not. */
  readonly copiedAt: Int32Array
  readonly content: DeviceContent
  readonly sizeBytes: number
  /** Where the last extent that was received ends, in bytes. */
  offset: number
}

export interface Question {
  readonly handle: string
  readonly base: Backup | undefined
  readonly unfinished: Unfinished | undefined
  readonly maxResults: number
  /** The client leaves after so many messages. */
  readonly leavesAfter: number
}

export type Outcome = { readonly ended: 'well' | 'left' } | { readonly ended: 'badly'; readonly error: unknown }

/** Something that must never be. */
export class Violation extends Error {}

export class Client {
  readonly backups = new Map<string, Backup>()
  readonly unfinished = new Map<string, Unfinished>()
  readonly #machine: Machine
  readonly #asked = new Set<Named>()

  constructor(machine: Machine) {
    this.#machine = machine
  }

  /** Whether something of it is, or was begun to be, backed up. */
  keeps(content: DeviceContent | undefined): boolean {
    return [...this.backups.values(), ...this.unfinished.values()].some((each) => each.content === content)
  }

  /** What was copied from a device is not to be relied on any more. */
  forget(content: DeviceContent): void {
    for (const kept of [this.backups, this.unfinished]) {
      for (const [handle, each] of kept) if (each.content === content) kept.delete(handle)
    }
    for (const [handle, { base }] of this.unfinished) if (base?.content === content) this.unfinished.delete(handle)
  }

  /** All but what was copied under one name, if one is given. */
  forgetAllBut(handle?: string): void {
    for (const kept of [this.backups, this.unfinished]) {
      for (const each of kept.keys()) if (each !== handle || kept === this.unfinished) kept.delete(each)
    }
  }

  /** Names may go to others at any moment: who goes by one meanwhile is what an answer may be about. */
  look(): void {
    for (const named of this.#asked) named.look()
  }

  /** The agent is gone: nobody waits for its answers any more. */
  abandon(): void {
    for (const named of this.#asked) named.keep()
    this.#asked.clear()
  }

  async ask(agent: SimulatedAgent, question: Question): Promise<Outcome> {
    const { handle, base, unfinished, maxResults } = question
    const named = new Named(this.#machine, handle)
    const request = { startingOffset: BigInt(unfinished?.offset ?? 0), maxResults }
    const copiedAt = unfinished ? unfinished.copiedAt.slice() : new Int32Array(this.#capacity)
    const since = named.volume?.pool.visibleSince ?? 0
    const askedAt = this.#machine.scheduler.turn
    let offset = unfinished?.offset ?? 0
    let sizeBytes = 0
    const signal = new AbortController().signal
    const keep = () => {
      const { content } = named
      if (content && offset > 0) this.unfinished.set(handle, { handle, base, copiedAt, content, sizeBytes, offset })
    }
    named.keep = keep
    this.#asked.add(named)
    this.unfinished.delete(handle)
    try {
      const { messages } = base
        ? await agent.backend.delta({ ...request, baseSnapshotId: base.handle, targetSnapshotId: handle }, signal)
        : await agent.backend.allocated({ ...request, snapshotId: handle }, signal)
      let received = 0
      const message = new BlockMetadataMessage()
      for await (const bytes of messages) {
        decodeBlockMetadata(bytes, message)
        sizeBytes = message.capacityBytes
        offset = this.#copy(message, copiedAt, offset, unfinished?.offset ?? 0)
        named.look()
        if (++received === question.leavesAfter) {
          keep()
          return { ended: 'left' }
        }
      }
    } catch (error) {
      if (error instanceof DeltamapperError) keep()
      return { ended: 'badly', error }
    } finally {
      this.#asked.delete(named)
    }
    named.look()
    // Of a volume in use, what was written before it was asked about counts, committed or not.
    this.#hold(question, named, copiedAt, sizeBytes, named.wasInUse ? askedAt : since)
    return { ended: 'well' }
  }

  get #capacity(): number {
    return Math.max(1, ...this.#machine.volumes.map(({ content }) => content?.blocks ?? 0))
  }

  /** Takes in a message. @returns where its last extent ends @throws Violation where it breaks the service's rules */
  #copy(message: BlockMetadataMessage, copiedAt: Int32Array, reached: number, startedAt: number): number {
    const { count, offsets, sizes, capacityBytes } = message
    for (let i = 0; i < count; i++) {
      const [offset, end] = [offsets[i], offsets[i] + sizes[i]]
      const isFirst = reached === startedAt
      if ((!isFirst && offset <= reached) || end > capacityBytes || end <= startedAt || sizes[i] <= 0) {
        throw new Violation(`an extent ${offset}..${end} after ${reached}, of ${capacityBytes} bytes`)
      }
      reached = end
      for (let block = Math.floor(offset / BLOCK_BYTES); block * BLOCK_BYTES < end; block++) {
        copiedAt[block] = this.#machine.scheduler.turn
      }
    }
    return reached
  }

  /** The answer says that it is complete: with it and the base, the target can be had. */
  #hold({ handle, base }: Question, named: Named, copiedAt: Int32Array, sizeBytes: number, since: number): void {
    const missing: string[] = []
    const fitting: Backup[] = []
    for (const content of named.contents) {
      const versions = new Int32Array(content.blocks)
      const blocks = Math.ceil(sizeBytes / BLOCK_BYTES)
      let wrong: number | undefined
      for (let block = 0; block < blocks; block++) {
        const at = copiedAt[block]
        versions[block] =
          at > 0 ? content.at(block, at) : base && inBackup(base, block, sizeBytes) ? base.versions[block] : 0
        if (!content.heldSince(block, versions[block], since)) wrong ??= block
      }
      const behind = Math.min(Math.ceil(named.leastDeviceBytes / BLOCK_BYTES), content.blocks)
      for (let block = blocks; block < behind; block++) if (content.now(block) !== 0) wrong ??= block
      if (wrong !== undefined) {
        missing.push(`block ${wrong} holds ${content.now(wrong)}, the backup ${versions[wrong]}`)
      } else {
        const visibleSince = named.volume?.pool.visibleSince ?? 0
        const isCommitted = versions.every(
          (version, block) => block >= blocks || version === content.at(block, visibleSince)
        )
        // What was being written to is no base: docs/guarantees.md, writable snapshots that are in use.
        fitting.push({ handle, versions, sizeBytes, content, isCommitted })
      }
    }
    // Where the name went to another one meanwhile and both fit, nobody knows of which it is a backup.
    const [backup] = fitting
    if (backup?.isCommitted && fitting.length === 1) this.backups.set(handle, backup)
    if (backup) return
    const of = base ? ` since ${base.handle}` : ''
    throw new Violation(`a missed block: the answer about ${handle}${of} was complete, but ${missing.join('; or ')}`)
  }
}

/** Whether a backup holds all of a block that a target of this size has of it. */
function inBackup(base: Backup, block: number, sizeBytes: number): boolean {
  return sizeBytes <= base.sizeBytes || (block + 1) * BLOCK_BYTES <= base.sizeBytes
}

/** What goes by a name while a question is asked: an answer is about one of them. */
class Named {
  readonly contents = new Set<DeviceContent>()
  readonly #machine: Machine
  readonly #name: string
  volume: Volume | undefined
  /** Of the active device, at each look: how large it was at least; 0 where there was none once. */
  leastDeviceBytes = Infinity
  /** At each look, it was a volume that could be written to. */
  wasInUse = true
  /** What has arrived so far is kept, to be gone on with. */
  keep: () => void = () => undefined

  constructor(machine: Machine, handle: string) {
    this.#machine = machine
    this.#name = handle.slice(handle.indexOf('/') + 1)
    this.look()
  }

  get content(): DeviceContent | undefined {
    return this.volume?.content
  }

  look(): void {
    this.volume = this.#machine.volumes.find(({ name }) => name === this.#name)
    if (this.volume?.content) this.contents.add(this.volume.content)
    const { volume } = this
    this.leastDeviceBytes = Math.min(this.leastDeviceBytes, volume ? this.#machine.deviceBytes(volume) : 0)
    this.wasInUse &&= volume?.active === true && !volume.readOnly && volume.content?.isVolume === true
  }
}
