/**
 * Snapshots that are taken for a backup, and given up after it.
 *
 *   --before ─▶ freeze, where there are several volumes ─▶ one after the other ─▶ thaw ─▶ --after
 *
 * Each is marked with its chain. So whatever a killed run has left is found by the next one, which knows from the
 * manifest which of them is the base of the next increment.
 */
import { release } from 'node:os'
import { asDeltamapperError, DeltamapperError } from '../errors.ts'
import type { Snapshots, TakenSnapshot } from './backup.ts'
import type { Chain } from './chain.ts'
import { Frozen, mountPointsOf, thawLeft } from './freeze.ts'
import { runHook } from './hooks.ts'
import { snapshotName } from './snapshot-names.ts'

/** How snapshots of one kind of volume are made and removed. */
export interface SnapshotMaker {
  /** Whether a base has to stay in the pool for the next increment. */
  readonly needsBase: boolean
  /** The volume's block device, for its file system. */
  readonly device: string
  /** @param name of the snapshot, which nothing has yet @returns its handle @throws where there is none after it */
  take(chain: Chain, name: string): Promise<string>
  /** Handles of all that are marked with the chain, as of when the maker was found. */
  marked(chain: Chain): Promise<string[]>
  /** Nothing where it is gone already. */
  remove(chain: Chain, handle: string): Promise<void>
}

export interface LiveSnapshotOptions {
  /** Says who takes them, by volume, and what there is of them now. Asked once all chains are locked. */
  readonly findMakers: () => Promise<ReadonlyMap<string, SnapshotMaker>>
  /** The newest one stays in its pool. */
  readonly keeps: boolean
  readonly freezes: boolean
  readonly before: string | undefined
  readonly after: string | undefined
  readonly hookDeadlineMs: number
  readonly remark: (text: string) => void
}

export class LiveSnapshots implements Snapshots {
  readonly #options: LiveSnapshotOptions
  /** Handles of what is marked with each chain: nobody else makes any while it is locked. */
  readonly #marked = new Map<Chain, Set<string>>()
  #makers: ReadonlyMap<string, SnapshotMaker> = new Map()
  #failure: DeltamapperError | undefined

  constructor(options: LiveSnapshotOptions) {
    this.#options = options
  }

  get failure(): DeltamapperError | undefined {
    return this.#failure
  }

  async clear(chains: readonly Chain[]): Promise<void> {
    // (LVM would wait for what is frozen still.)
    for (const chain of chains) await thawLeft(chain)
    this.#makers = await this.#options.findMakers()
    for (const chain of chains) {
      // One that cannot be removed (somebody has mounted it, say) is no reason to have no backup.
      this.#marked.set(chain, new Set(await this.#maker(chain).marked(chain)))
      await this.#removeAllBut(chain, chain.newest?.snapshot.handle).catch((error: unknown) => {
        this.#options.remark(`${chain.volume}: ${asDeltamapperError(error).message}`)
      })
    }
  }

  async take(chains: readonly Chain[], signal: AbortSignal): Promise<TakenSnapshot[]> {
    const { before, after, hookDeadlineMs, remark } = this.#options
    const volumes = chains.map(({ volume }) => volume)
    try {
      if (before !== undefined) await runHook('--before', before, hookDeadlineMs, volumes)
      signal.throwIfAborted()
      return await this.#takeTogether(chains)
    } finally {
      // Also where the first one failed: it may have stopped something.
      if (after !== undefined) {
        await runHook('--after', after, hookDeadlineMs, volumes).catch((error: unknown) => {
          this.#failure = asDeltamapperError(error)
          remark(this.#failure.message)
        })
      }
    }
  }

  async giveUp(chain: Chain, { handle }: TakenSnapshot, stored: boolean): Promise<void> {
    const { keeps } = this.#options
    const isKept = keeps && this.#maker(chain).needsBase
    // What was not stored is nobody's base: the one before stays, as it was.
    await this.#removeAllBut(chain, stored ? (isKept ? handle : undefined) : chain.newest?.snapshot.handle)
  }

  async #takeTogether(chains: readonly Chain[]): Promise<TakenSnapshot[]> {
    const { freezes, remark } = this.#options
    const devices = chains.map((chain) => this.#maker(chain).device)
    const folders = chains.map(({ folder }) => folder)
    // (LVM and the agent freeze a single one by themselves.)
    const mounted = freezes && chains.length > 1 ? await mountPointsOf(devices, folders) : []
    if (mounted.length === 0) return this.#takeEach(chains)
    if (!canSuspendFrozen()) {
      remark('the snapshots are taken one after the other: kernels before 6.8 take none of a frozen file system')
      return this.#takeEach(chains)
    }
    const frozen = await Frozen.freeze(mounted, chains)
    const taken = await this.#takeEach(chains).finally(async () => {
      await frozen.thaw()
    })
    if (!frozen.hasThawedEarly) return taken
    await this.clear(chains)
    throw new DeltamapperError(
      'DM_FREEZE_FAILED',
      `the snapshots took longer than ${mounted.join(', ')} may be frozen: they are not of one moment`,
      'see what makes LVM slow; or say --no-freeze'
    )
  }

  async #takeEach(chains: readonly Chain[]): Promise<TakenSnapshot[]> {
    const taken: TakenSnapshot[] = []
    try {
      for (const chain of chains) {
        const takenAt = new Date()
        const handle = await this.#maker(chain).take(chain, snapshotName(chain, takenAt))
        this.#marked.get(chain)?.add(handle)
        taken.push({ handle, takenAt })
      }
      return taken
    } catch (error) {
      // What failed may have left one all the same.
      await this.clear(chains).catch(() => undefined)
      throw error
    }
  }

  async #removeAllBut(chain: Chain, kept: string | undefined): Promise<void> {
    const marked = this.#marked.get(chain) ?? new Set()
    const failures: unknown[] = []
    for (const handle of marked) {
      if (handle === kept) continue
      const removed = this.#maker(chain).remove(chain, handle)
      await removed.then(
        () => marked.delete(handle),
        (error: unknown) => failures.push(error)
      )
    }
    if (failures.length > 0) throw failures[0]
  }

  #maker({ volume }: Chain): SnapshotMaker {
    const maker = this.#makers.get(volume)
    if (!maker) throw new TypeError(`nothing takes snapshots of ${volume}`)
    return maker
  }
}

/** Whether the kernel suspends a device whose file system `fsfreeze` has frozen (fs/super.c, FREEZE_MAY_NEST: 6.8). */
function canSuspendFrozen(): boolean {
  const [major = 0, minor = 0] = release().split('.').map(Number.parseFloat)
  return major > 6 || (major === 6 && minor >= 8)
}
