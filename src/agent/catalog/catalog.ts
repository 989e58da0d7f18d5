/**
 * The catalog: what the agent must remember beyond its own life. A SQLite database in a thread of its own, because
 * every write waits for the disk.
 *
 * - Which snapshots were served as target or used as base (fingerprint.ts, served-targets.ts). So a base that has
 *   changed is refused, and an answer is resumed only for the same snapshot.
 * - Classic snapshots that were answered about, and their stores' lists then (classic-served.ts).
 * - Snapshots that a record may stand for once they are gone, and what was seen of them (bases.ts).
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
import type { CallName, Concern } from './calls.ts'
import { type CatalogRun, CatalogThread } from './catalog-thread.ts'
import {
  basesCalls,
  classicSnapshotsCalls,
  eraSnapshotsCalls,
  eraVolumesCalls,
  leasesCalls,
  ownedPoolsCalls,
  poolClocksCalls,
  type Send,
  servedCalls
} from './concerns.ts'
import type { Opening } from './database.ts'
import type { Start } from './messages.ts'

export interface CatalogOptions {
  /**
   * How long one call may take, in milliseconds; 30,000 by default. After that, it fails with all calls behind it.
   * Opening may take five times as long.
   */
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
  readonly served = servedCalls(this.#send('served'))
  readonly bases = basesCalls(this.#send('bases'))
  readonly classicSnapshots = classicSnapshotsCalls(this.#send('classicSnapshots'))
  readonly poolClocks = poolClocksCalls(this.#send('poolClocks'))
  readonly ownedPools = ownedPoolsCalls(this.#send('ownedPools'))
  readonly eraVolumes = eraVolumesCalls(this.#send('eraVolumes'))
  readonly eraSnapshots = eraSnapshotsCalls(this.#send('eraSnapshots'))
  readonly leases = leasesCalls(this.#send('leases'))
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

  /** Bytes of the file, and rows by table. */
  async statistics(): Promise<{ bytes: number; rows: Record<string, number> }> {
    return this.#send('file')('statistics')
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

  /** Takes the calls of one concern. */
  #send<C extends Concern>(concern: C): Send<C> {
    const send = async (call: string, ...args: unknown[]) =>
      this.#running().call(`${concern}.${call}` as CallName, args)
    return send as Send<C>
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
