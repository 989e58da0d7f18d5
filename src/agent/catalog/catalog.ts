/**
 * The catalog: what the agent must remember beyond its own life. A SQLite database in a thread of its own, because
 * every write waits for the disk.
 *
 * - Which snapshots were served as target or used as base (fingerprint.ts, served-targets.ts). So a base that has
 *   changed is refused, and an answer is resumed only for the same snapshot.
 * - Classic snapshots that were answered about, and their stores' lists then (classic-served.ts).
 * - How far each pool's clock had come, to notice a pool that was restored to an earlier state (pool-clocks.ts).
 * - The pools, volumes and snapshots that the agent made on plain device-mapper (owned-pools.ts), and the changes that
 *   were interrupted when it was killed (reconcile.ts).
 * - Tracked volumes, their snapshots, and what was written between those (era-volumes.ts, era-snapshots.ts).
 * - Which metadata snapshots we hold (lease.ts, lease-records.ts).
 *
 * A call that resolves is on disk. One that rejects with DM_CATALOG_UNAVAILABLE may be on disk or not; the next call
 * opens the database again. Calls are run and answered in the order in which they are made. Times are milliseconds
 * since 1970.
 */
import { resolve } from 'node:path'
import { DeltamapperError, shuttingDown } from '../../errors.ts'
import type { Admission, Admitted } from './admission.ts'
import type { CallName, CatalogCalls } from './calls.ts'
import { type CatalogRun, CatalogThread } from './catalog-thread.ts'
import type { ClassicFacts, ClassicRow } from './classic-served.ts'
import type { Opening } from './database.ts'
import type {
  EraHistoryFacts,
  EraSnapshot,
  HistoryPage,
  HistoryPlace,
  LastBoundary,
  TakenSnapshot
} from './era-snapshots.ts'
import type { EraIntent, EraVolume, NewEraIntent, EraVolumeLook } from './era-volumes.ts'
import type { Role, ServedTarget } from './fingerprint.ts'
import type { Intent, NewIntent, OwnedThin, CatalogView } from './owned-pools.ts'
import type { LeaseRecord } from './lease.ts'
import type { Start } from './messages.ts'
import type { Lineage, LineageMember } from './lineage.ts'
import type { PoolClock, WentBack } from './pool-clocks.ts'
import type { ServedRecord } from './served-targets.ts'
import type { WrittenChunk } from './store/written-chunks.ts'

export interface CatalogOptions {
  /** How long one call may take, in milliseconds; 30,000 by default. After that, it fails with all calls behind it. */
  deadlineMs?: number
  /** How long to wait for another process to release the file, in milliseconds; 3,000 by default. */
  lockWaitMs?: number
  /** What runs it; by default, a thread. */
  run?: (start: Start, deadlineMs: number) => CatalogRun
}

/**
 * Opens the catalog, or makes it if there is none: the file with permissions 0600, its folder with 0700.
 *
 * @param path on a local file system, and not on a volume that the agent suspends
 * @throws DM_CATALOG_IN_USE, DM_CATALOG_DAMAGED, DM_CATALOG_NEWER, DM_CATALOG_UNAVAILABLE
 */
export async function openCatalog(path: string, options: CatalogOptions = {}): Promise<Catalog> {
  const catalog = new Catalog(resolve(path), options)
  await catalog.opening()
  return catalog
}

function startThread(start: Start, deadlineMs: number): CatalogRun {
  return new CatalogThread(start, deadlineMs)
}

export class Catalog {
  readonly path: string
  readonly #options: CatalogOptions
  #thread: CatalogRun | undefined
  #closed = false

  constructor(path: string, options: CatalogOptions) {
    this.path = path
    this.#options = options
  }

  /** The result of opening it. */
  async opening(): Promise<Opening> {
    return this.#running().opening
  }

  // What was served

  /**
   * Decides whether an answer about a live pool may begin, and records it. Await it before the first message leaves.
   *
   * @throws what `admit` throws (admission.ts)
   */
  async admit(admission: Admission, at = Date.now()): Promise<Admitted> {
    return this.#call('admit', admission, at)
  }

  /**
   * Records that an answer about a snapshot is about to begin. Await it before the first message leaves. See
   * served-targets.ts.
   */
  async remember(snapshot: ServedTarget, at = Date.now(), role: Role = 'target'): Promise<'new' | 'known' | 'changed'> {
    return this.#call('remember', snapshot, at, role)
  }

  /** All records with this handle, or with this identity under another handle: for `checkBase` and `checkResumed`. */
  async findServed(
    snapshot: Pick<ServedTarget, 'handle' | 'identity' | 'formerIdentity' | 'formerPlace'>
  ): Promise<ServedRecord[]> {
    return this.#call('findServed', snapshot)
  }

  /** Forgets the oldest served records beyond a number. Returns how many; repeat until 0. */
  async forgetServed(keep: number): Promise<number> {
    return this.#call('forgetServed', keep)
  }

  /**
   * Records that a classic snapshot is about to be answered about; to be awaited before the first message leaves. See
   * classic-served.ts.
   */
  async rememberClassic(
    facts: ClassicFacts,
    list: { readonly entries: number; readonly digest: string },
    role: Role,
    at = Date.now()
  ): Promise<void> {
    await this.#call('rememberClassic', facts, list, role, at)
  }

  /** Everything on record of a classic snapshot, by its handle or its identity. */
  async findClassic(snapshot: Pick<ClassicFacts, 'handle' | 'identity'>): Promise<ClassicRow[]> {
    return this.#call('findClassic', snapshot)
  }

  /** Forgets the oldest classic snapshots on record, beyond a number. Returns how many; to be repeated until 0. */
  async forgetClassic(keep: number): Promise<number> {
    return this.#call('forgetClassic', keep)
  }

  /** How two snapshots are related, according to their records. */
  async lineage(one: LineageMember, other: LineageMember): Promise<Lineage> {
    return this.#call('lineage', one, other)
  }

  /**
   * Takes a look at a pool's clock into account. Returns when the pool was last found in an earlier state. See
   * pool-clocks.ts.
   */
  async sawPoolClock(clock: PoolClock, at = Date.now()): Promise<WentBack | undefined> {
    return this.#call('sawPoolClock', clock, at)
  }

  /** The same, without another look. */
  async poolWentBack(pool: string): Promise<WentBack | undefined> {
    return this.#call('poolWentBack', pool)
  }

  // Owned pools

  /** All pools, volumes and snapshots that the agent made, and all intents: for `reconcile`. */
  async view(): Promise<CatalogView> {
    return this.#call('view')
  }

  async findThin(id: string): Promise<OwnedThin | undefined> {
    return this.#call('findThin', id)
  }

  async findThinByName(pool: string, name: string): Promise<OwnedThin | undefined> {
    return this.#call('findThinByName', pool, name)
  }

  /**
   * Records an intent for a pool. Tell the kernel only after this has resolved.
   *
   * @throws DM_DEVICE_BUSY, DM_NO_SUCH_DEVICE, DM_CATALOG_DISAGREES, DM_ARGUMENT_INVALID
   */
  async begin(intent: NewIntent, at = Date.now()): Promise<Intent> {
    return this.#call('begin', intent, at)
  }

  /**
   * Completes the pool's intent. @param creation needed after a creation: its creation time, from the device details
   */
  async complete(pool: string, creation?: { creationTime: number | undefined }): Promise<void> {
    await this.#call('complete', pool, creation)
  }

  /** Rolls back the pool's intent: the kernel refused, or has not done it. */
  async rollBack(pool: string): Promise<void> {
    await this.#call('rollBack', pool)
  }

  /** Adds a thin device that only the kernel has to the catalog. A person decided it. */
  async adoptThin(thin: Parameters<CatalogCalls['adoptThin']>[0], at = Date.now()): Promise<OwnedThin> {
    return this.#call('adoptThin', thin, at)
  }

  /** Removes a thin that only the catalog has from it. A person decided it. */
  async forgetThin(id: string): Promise<void> {
    await this.#call('forgetThin', id)
  }

  /** Takes over the kernel's transaction id, and ends an intent that contradicts it. A person decided it. */
  async acceptTransactionId(pool: string, transactionId: bigint): Promise<void> {
    await this.#call('acceptTransactionId', pool, transactionId)
  }

  // Tracked volumes and their history

  /**
   * Records an intent for a tracked volume. Tell the kernel only after this has resolved.
   *
   * @throws DM_DEVICE_BUSY, DM_NO_SUCH_DEVICE, DM_ARGUMENT_INVALID
   */
  async beginEra(intent: NewEraIntent, at = Date.now()): Promise<EraIntent> {
    return this.#call('beginEra', intent, at)
  }

  /** Completes the volume's intent. (`recordEraSnapshot` completes that of a snapshot.) */
  async completeEra(volume: string): Promise<void> {
    await this.#call('completeEra', volume)
  }

  /** Rolls back the volume's intent: the kernel refused, or has not done it. */
  async rollBackEra(volume: string): Promise<void> {
    await this.#call('rollBackEra', volume)
  }

  /** Records a look at a volume. */
  async sawEraVolume(volume: string, seen: EraVolumeLook): Promise<void> {
    await this.#call('sawEraVolume', volume, seen)
  }

  /** Ends the volume's history at its last snapshot, and begins a new one. */
  async endEraHistory(
    volume: string,
    because: string,
    now: { newestEra: number; seenBlocks: number }
  ): Promise<EraVolume> {
    return this.#call('endEraHistory', volume, because, now)
  }

  async eraView(): Promise<{ volumes: readonly EraVolume[]; intents: readonly EraIntent[] }> {
    return this.#call('eraView')
  }

  async findEraVolume(name: string): Promise<EraVolume | undefined> {
    return this.#call('findEraVolume', name)
  }

  /** Where the next snapshot's record begins. Clears what an interrupted one has left. */
  async beginEraHistory(volume: string): Promise<LastBoundary> {
    return this.#call('beginEraHistory', volume)
  }

  /** Stores a part of the next snapshot's bitmap. */
  async stageEraWrites(volume: string, chunks: readonly WrittenChunk[]): Promise<void> {
    await this.#call('stageEraWrites', volume, chunks)
  }

  /** Records a snapshot with its stored bitmap, and completes the volume's intent. */
  async recordEraSnapshot(
    volume: string,
    taken: TakenSnapshot,
    since: LastBoundary,
    exact: boolean
  ): Promise<EraSnapshot> {
    return this.#call('recordEraSnapshot', volume, taken, since, exact)
  }

  /** The snapshots of a volume, by its name, or of all volumes; including those whose data were removed. */
  async eraSnapshots(volume?: string): Promise<readonly EraSnapshot[]> {
    return this.#call('eraSnapshots', volume)
  }

  async findEraSnapshot(volume: string, name: string): Promise<EraSnapshot | undefined> {
    return this.#call('findEraSnapshot', volume, name)
  }

  /** Records that a snapshot's data were removed. */
  async deleteEraSnapshot(volume: string, name: string, at = Date.now()): Promise<void> {
    await this.#call('deleteEraSnapshot', volume, name, at)
  }

  /** The least size that a volume had from one snapshot to a later one, by their ids. */
  async leastEraSize(base: string, target: string): Promise<number | undefined> {
    return this.#call('leastEraSize', base, target)
  }

  /** A page of what was written between two snapshots, by their ids; undefined when one is forgotten. */
  async eraWrites(base: string, target: string, after: HistoryPlace): Promise<HistoryPage | undefined> {
    return this.#call('eraWrites', base, target, after)
  }

  /** Forgets snapshots taken before a time, and beyond a number for each volume. Returns how many. */
  async forgetEraSnapshots(limits: { before: number; keep: number }): Promise<number> {
    return this.#call('forgetEraSnapshots', limits)
  }

  /** When a forgotten snapshot of this name was taken, in milliseconds since 1970. */
  async eraNameUsedBefore(volume: string, name: string): Promise<number | undefined> {
    return this.#call('eraNameUsedBefore', volume, name)
  }

  /** Forgets the oldest names of forgotten snapshots. Returns how many; repeat until 0. */
  async forgetEraNames(keep: number): Promise<number> {
    return this.#call('forgetEraNames', keep)
  }

  /** Merges bitmaps of forgotten snapshots; repeat until it returns 0. */
  async compactEraHistory(): Promise<number> {
    return this.#call('compactEraHistory')
  }

  /** The size of each volume's history. */
  async eraHistoryFacts(): Promise<readonly EraHistoryFacts[]> {
    return this.#call('eraHistoryFacts')
  }

  // Leases

  /** Records that a metadata snapshot is about to be reserved. Send the message only after this has resolved. */
  async beginLease(lease: { device: string; purpose: string; factsBefore: string }, at = Date.now()): Promise<void> {
    await this.#call('beginLease', lease, at)
  }

  /** Records which metadata snapshot it is. */
  async confirmLease(device: string, held: { heldRoot: number; factsHeld: string }): Promise<void> {
    await this.#call('confirmLease', device, held)
  }

  /** Records that it is about to be released. Send the message only after this has resolved. */
  async beginRelease(device: string): Promise<void> {
    await this.#call('beginRelease', device)
  }

  /** Records that the kernel refused to release it. */
  async keepLease(device: string): Promise<void> {
    await this.#call('keepLease', device)
  }

  /** Forgets the lease. */
  async clearLease(device: string): Promise<void> {
    await this.#call('clearLease', device)
  }

  async findLease(device: string): Promise<LeaseRecord | undefined> {
    return this.#call('findLease', device)
  }

  async leases(): Promise<LeaseRecord[]> {
    return this.#call('listLeases')
  }

  // The catalog itself

  /** Bytes of the file, and rows by table. */
  async statistics(): Promise<{ bytes: number; rows: Record<string, number> }> {
    return this.#call('statistics')
  }

  /** Waits for running calls, and closes the file. Further calls fail with DM_SHUTTING_DOWN. */
  async close(): Promise<void> {
    if (this.#closed) return
    this.#closed = true
    const thread = this.#thread
    if (thread === undefined) return
    if (!thread.ended) await thread.call('close', []).catch(() => undefined)
    if (!thread.stuck) await thread.gone
  }

  async #call<K extends CallName>(call: K, ...args: Parameters<CatalogCalls[K]>): Promise<ReturnType<CatalogCalls[K]>> {
    return (await this.#running().call(call, args)) as ReturnType<CatalogCalls[K]>
  }

  /** The running thread, or a new one if the last has ended. */
  #running(): CatalogRun {
    if (this.#closed) {
      throw shuttingDown()
    }
    if (this.#thread?.stuck) {
      throw new DeltamapperError(
        'DM_CATALOG_UNAVAILABLE',
        `the catalog ${this.path} cannot be used: a call to it has not come back from its disk`,
        'look into the kernel log for errors of the disk'
      )
    }
    if (this.#thread === undefined || this.#thread.ended) {
      const { deadlineMs = 30_000, lockWaitMs, run = startThread } = this.#options
      this.#thread = run({ path: this.path, lockWaitMs }, deadlineMs)
    }
    return this.#thread
  }
}
