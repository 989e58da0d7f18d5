/**
 * Recovery of leases' records: of what an agent before this one left, and of what could not be given back.
 */
import type { Logger } from 'pino'
import type { Clock } from '../../clock.ts'
import type { KeyedLock } from '../node/keyed-lock.ts'
import { isEraSlot } from './era-slot-content.ts'
import type { LeaseCatalog, RecordedSlots } from './recorded-slots.ts'

export interface LeaseRecoveryParts {
  readonly catalog: LeaseCatalog
  readonly slots: RecordedSlots
  readonly locks: KeyedLock
  readonly clock: Clock
  readonly logger: Logger
  /** How often a failed recovery is tried again, in milliseconds. */
  readonly retryMs: number
  /** Whether the agent has a lease of this key, whose record is no concern of the recovery. */
  readonly isHeld: (key: string) => boolean
}

export class LeaseRecovery {
  readonly #parts: LeaseRecoveryParts
  #closed = false
  #retry: (() => void) | undefined
  #running: Promise<void> | undefined

  constructor(parts: LeaseRecoveryParts) {
    this.#parts = parts
  }

  /**
   * Recovers every record that has no lease: releases what is proven to be ours, forgets what is over, and keeps the
   * rest, which it tries again from time to time. Never rejects.
   */
  async recover(): Promise<void> {
    this.#running ??= this.#recoverAll().finally(() => (this.#running = undefined))
    await this.#running
  }

  tryAgainLater(): void {
    if (this.#closed) return
    this.#retry?.()
    this.#retry = this.#parts.clock.after(this.#parts.retryMs, () => void this.recover(), true)
  }

  /** Begins with no further record. Resolves when the running one is done. */
  async close(): Promise<void> {
    this.#closed = true
    this.#retry?.()
    await this.#running
  }

  async #recoverAll(): Promise<void> {
    const { catalog, slots, locks, logger, isHeld } = this.#parts
    try {
      for (const { device } of await catalog.leases.list()) {
        // Leases of tracked volumes are recovered elsewhere (era/history/era-slot.ts).
        if (isEraSlot(device)) continue
        if (this.#closed) return
        await locks.take(device, async () => {
          const record = await catalog.leases.find(device)
          if (record === undefined || isHeld(device)) return
          const settlement = await slots.settle(device, record)
          if (!settlement.settled) this.tryAgainLater()
        })
      }
    } catch (error) {
      logger.error({ err: error }, 'leases of metadata snapshots could not be looked after')
      this.tryAgainLater()
    }
  }
}
