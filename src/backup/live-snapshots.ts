/**
 * Snapshots that are taken for a backup, and given up after it.
 *
 *   --before ─▶ freeze, where there are several volumes ─▶ one after the other ─▶ thaw ─▶ --after
 *
 * Each is marked with its chain. So whatever a killed run has left is found by the next one, which knows from the
 * manifest which of them is the base of the next increment.
 */
import { asDeltamapperError, type DeltamapperError } from '../errors.ts'
import type { Snapshots, TakenSnapshot } from './backup.ts'
import type { Chain } from './chain.ts'
import { Frozen, mountPointsOf } from './freeze.ts'
import { runHook } from './hooks.ts'

/** How snapshots of one kind of volume are made and removed. */
export interface SnapshotMaker {
  /** Whether a base has to stay in the pool for the next increment. */
  readonly needsBase: boolean
  /** The volume's block device, for its file system. */
  readonly device: string
  /** @param name of the snapshot, which nothing has yet @returns its handle @throws where there is none after it */
  take(chain: Chain, name: string): Promise<string>
  /** Handles of all that are marked with the chain. */
  marked(chain: Chain): Promise<string[]>
  /** Nothing where it is gone already. */
  remove(handle: string): Promise<void>
}

export interface LiveSnapshotOptions {
  /** By volume. */
  readonly makers: ReadonlyMap<string, SnapshotMaker>
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
  #failure: DeltamapperError | undefined

  constructor(options: LiveSnapshotOptions) {
    this.#options = options
  }

  get failure(): DeltamapperError | undefined {
    return this.#failure
  }

  async clear(chains: readonly Chain[]): Promise<void> {
    for (const chain of chains) await this.#removeAllBut(chain, chain.newest?.snapshot.handle)
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
    await this.#removeAllBut(chain, isKept ? (stored ? handle : chain.newest?.snapshot.handle) : undefined)
  }

  /** A frozen file system cannot be suspended by kernels before 6.8: then they are taken one by one. */
  async #takeTogether(chains: readonly Chain[]): Promise<TakenSnapshot[]> {
    const { freezes, remark } = this.#options
    const devices = chains.map((chain) => this.#maker(chain).device)
    // (LVM and the agent freeze a single one by themselves.)
    const mounted = freezes && chains.length > 1 ? await mountPointsOf(devices) : []
    if (mounted.length === 0) return this.#takeEach(chains)
    const frozen = await Frozen.freeze(mounted)
    try {
      return await this.#takeEach(chains)
    } catch (error) {
      remark(`not taken while all are frozen, so one after the other (${asDeltamapperError(error).message})`)
    } finally {
      await frozen.thaw()
    }
    return this.#takeEach(chains)
  }

  async #takeEach(chains: readonly Chain[]): Promise<TakenSnapshot[]> {
    const taken: TakenSnapshot[] = []
    try {
      for (const chain of chains) {
        const takenAt = new Date()
        const volume = chain.volume.split('/').at(-1) ?? ''
        const stamp = takenAt.toISOString().replaceAll(/[-:.]/g, '')
        const name = `${markOf(chain, volume)}${stamp}`
        taken.push({ handle: await this.#maker(chain).take(chain, name), takenAt })
      }
      return taken
    } catch (error) {
      for (const chain of chains) await this.#removeAllBut(chain, chain.newest?.snapshot.handle).catch(() => undefined)
      throw error
    }
  }

  async #removeAllBut(chain: Chain, kept: string | undefined): Promise<void> {
    const maker = this.#maker(chain)
    for (const handle of await maker.marked(chain)) if (handle !== kept) await maker.remove(handle)
  }

  #maker({ volume }: Chain): SnapshotMaker {
    const maker = this.#options.makers.get(volume)
    if (!maker) throw new TypeError(`nothing takes snapshots of ${volume}`)
    return maker
  }
}

/** How names of a chain's snapshots begin. (LVM's names have at most 127 characters, handles 128.) */
export function markOf(chain: Chain, volume: string): string {
  return `${volume.slice(0, 40)}-backup-${chain.manifest.chain.slice(0, 8)}-`
}
