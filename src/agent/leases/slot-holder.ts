/**
 * What a keeper does with the slot that it keeps (lease-keeper-process.ts), whatever it is asked through: reserves,
 * looks at what it has
 * got, and releases only what is still that.
 */
import { CallFailed } from '../../../native/call.ts'
import type { ThinSuperblock } from '../../devicemapper/thin/superblock.ts'
import { asDeltamapperError } from '../../errors.ts'
import type { HeldSlot } from '../catalog/lease.ts'
import { type KeeperAnswer, type KeeperQuestion, type SlotKind, slotMessages } from './lease-keeper.ts'

/** How a slot is reached. */
export interface SlotPlace {
  readonly kind: SlotKind
  /** Sends the pool a message. @throws CallFailed when it was refused */
  send(text: string): void | Promise<void>
  /** What is in the slot, and of a pool's the superblock's copy. */
  look(): Promise<HeldSlot & { held?: ThinSuperblock | undefined }>
  /** Notes, durably, that the lease is being released without the agent (release-note.ts); and takes that back. */
  writeNote(): Promise<void>
  removeNote(): Promise<void>
  /** Ends the process that this is: what it has reserved stays, and only the record tells whose it is. */
  end(): never
}

export class SlotHolder {
  readonly #place: SlotPlace
  /** The metadata snapshot that is ours: where it lies, and what is in it. */
  #ours: { heldRoot: number; facts: string } | undefined

  constructor(place: SlotPlace) {
    this.#place = place
  }

  async answer(question: KeeperQuestion): Promise<KeeperAnswer> {
    try {
      switch (question.ask) {
        case 'reserve':
          return await this.#reserve()
        case 'release':
          return await this.#release()
        case 'adopt':
          this.#ours = { heldRoot: question.heldRoot, facts: question.facts }
          return { answer: 'adopted' }
      }
    } catch (thrown) {
      if (thrown instanceof CallFailed) return { answer: 'refused', failure: thrown.failure }
      const { code, message, remedy } = asDeltamapperError(thrown)
      return { answer: 'failed', code, message, remedy }
    }
  }

  /**
   * The agent is gone. What cannot be noted is not released: then the record still proves to the next agent that it
   * is ours.
   */
  async releaseOnOurOwn(): Promise<void> {
    if (this.#ours === undefined) return
    await this.#place.writeNote()
    const { answer: outcome } = await this.answer({ ask: 'release' })
    if (outcome === 'refused' || outcome === 'failed') await this.#place.removeNote()
  }

  async #reserve(): Promise<KeeperAnswer> {
    const { kind } = this.#place
    const messages = slotMessages[kind]
    await this.#place.send(messages.reserve)
    try {
      const { heldRoot, facts, held } = await this.#place.look()
      if (facts === undefined || (kind === 'thin' && held === undefined))
        throw new Error(`it is not at block ${heldRoot} any more`)
      this.#ours = { heldRoot, facts }
      return { answer: 'reserved', heldRoot, facts, held }
    } catch (thrown) {
      // Not knowing what it looks like, nobody could release it later. Now, we can.
      try {
        await this.#place.send(messages.release)
      } catch {
        // It is ours, and stays: the agent takes our end for not knowing, which is the truth.
        this.#place.end()
      }
      const { code, message, remedy } = asDeltamapperError(thrown)
      return { answer: 'given-back', code, message, remedy }
    }
  }

  async #release(): Promise<KeeperAnswer> {
    if (this.#ours === undefined) return { answer: 'released' }
    const now = await this.#place.look()
    if (now.heldRoot !== this.#ours.heldRoot || now.facts !== this.#ours.facts) {
      this.#ours = undefined
      return { answer: 'not-ours', heldRoot: now.heldRoot }
    }
    await this.#place.send(slotMessages[this.#place.kind].release)
    this.#ours = undefined
    return { answer: 'released' }
  }
}
