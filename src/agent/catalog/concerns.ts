/**
 * What the catalog is asked, by concern: the main thread's side of `catalogCalls`. `catalog.leases.begin(…)` here is
 * `leases.begin` in the catalog's thread. Times are milliseconds since 1970, and by default now.
 */
import type { Admission, Admitted, RecordAdmission } from './admission.ts'
import type { BaseKey, BaseLook, KeptRecord, KnownBase, PoolLook } from './bases.ts'
import type { CatalogCalls, Concern } from './calls.ts'
import type { ClassicFacts, ClassicRow } from './classic-served.ts'
import type {
  EraHistoryFacts,
  EraSnapshot,
  HistoryPage,
  HistoryPlace,
  LastBoundary,
  TakenSnapshot
} from './era-snapshots.ts'
import type { EraIntent, EraVolume, EraVolumeLook, NewEraIntent } from './era-volumes.ts'
import type { ErrorCode } from '../../errors.ts'
import type { Role, ServedTarget } from './fingerprint.ts'
import type { LeaseRecord } from './lease.ts'
import type { CatalogView, Intent, NewIntent, OwnedThin } from './owned-pools.ts'
import type { PoolClock, WentBack } from './pool-clocks.ts'
import type { ServedRecord } from './served-targets.ts'
import type { WrittenChunk } from './store/written-chunks.ts'

/** Runs a call of one concern in the catalog's thread. */
export type Send<C extends Concern> = <K extends keyof CatalogCalls[C] & string>(
  call: K,
  ...args: Arguments<CatalogCalls[C][K]>
) => Promise<Result<CatalogCalls[C][K]>>

type Arguments<F> = F extends (...args: infer A) => unknown ? A : never
type Result<F> = F extends (...args: never[]) => infer R ? R : never

/** What was served. */
export function servedCalls(send: Send<'served'>) {
  return {
    /**
     * Decides whether an answer about a live pool may begin, and records it. Await it before the first message leaves.
     *
     * @throws what `admit` throws (admission.ts)
     */
    async admit(admission: Admission, at = Date.now()): Promise<Admitted> {
      return send('admit', admission, at)
    },

    /** The same for an answer from the record of a base that is gone. @throws what `admitFromRecord` throws */
    async admitFromRecord(admission: RecordAdmission, at = Date.now()): Promise<KnownBase> {
      return send('admitFromRecord', admission, at)
    },

    /**
     * Records that an answer about a snapshot is about to begin. Await it before the first message leaves. See
     * served-targets.ts.
     */
    async remember(
      snapshot: ServedTarget,
      at = Date.now(),
      role: Role = 'target'
    ): Promise<'new' | 'known' | 'changed'> {
      return send('remember', snapshot, at, role)
    },

    /** All records with this handle, or with this identity under another handle: for `checkBase` and `checkResumed`. */
    async find(
      snapshot: Pick<ServedTarget, 'handle' | 'identity' | 'formerIdentity' | 'formerPlace'>
    ): Promise<ServedRecord[]> {
      return send('find', snapshot)
    },

    /** Forgets the oldest served records beyond a number. Returns how many; repeat until 0. */
    async forget(keep: number): Promise<number> {
      return send('forget', keep)
    }
  }
}

/** Snapshots that a record may stand for once they are gone (bases.ts). */
export function basesCalls(send: Send<'bases'>) {
  return {
    /** What a handle meant that means nothing now. @throws what `baseByHandle` throws */
    async byHandle(handle: string, pool: string): Promise<KnownBase | undefined> {
      return send('byHandle', handle, pool)
    },

    async find(key: BaseKey): Promise<KnownBase | undefined> {
      return send('find', key)
    },

    async list(): Promise<KnownBase[]> {
      return send('list')
    },

    /** Those that are looked at: there as far as is known, and not spoilt. */
    async watched(): Promise<KnownBase[]> {
      return send('watched')
    },

    /** A snapshot that was found at a look. */
    async saw(now: ServedTarget, look: BaseLook): Promise<void> {
      await send('saw', now, look)
    },

    /** A snapshot that is no longer in its pool. */
    async sawGone(key: BaseKey, look: PoolLook, at = Date.now()): Promise<void> {
      await send('sawGone', key, look, at)
    },

    /** A snapshot that is about to be made writable. */
    async spoil(identity: string, why: string): Promise<void> {
      await send('spoil', identity, why)
    },

    async spoilPool(pool: string, by: ErrorCode, why: string): Promise<void> {
      await send('spoilPool', pool, by, why)
    },

    /** A record that is on disk. @returns false when it is of no use */
    async kept(record: KeptRecord, at = Date.now()): Promise<boolean> {
      return send('kept', record, at)
    },

    /** A record that could not be made, and why. */
    async notKept(key: BaseKey, why: string): Promise<void> {
      await send('notKept', key, why)
    },

    /** A record that is there no longer, and why. */
    async lost(key: BaseKey, why: string): Promise<void> {
      await send('lost', key, why)
    },

    /** Forgets snapshots that are gone, without a record. */
    async forget(keys: readonly BaseKey[]): Promise<void> {
      await send('forget', keys)
    }
  }
}

/** Classic snapshots that were answered about. */
export function classicSnapshotsCalls(send: Send<'classicSnapshots'>) {
  return {
    /**
     * Records that a classic snapshot is about to be answered about; to be awaited before the first message leaves. See
     * classic-served.ts.
     */
    async remember(
      facts: ClassicFacts,
      list: { readonly entries: number; readonly digest: string },
      role: Role,
      at = Date.now()
    ): Promise<void> {
      await send('remember', facts, list, role, at)
    },

    /** Records that a classic snapshot could be written to. See classic-served.ts. */
    async sawWritable(facts: Pick<ClassicFacts, 'identity'>): Promise<void> {
      await send('sawWritable', facts)
    },

    /** Records that the kernel has given a classic snapshot up. See classic-served.ts. */
    async giveUp(facts: ClassicFacts, at = Date.now()): Promise<void> {
      await send('giveUp', facts, at)
    },

    /** Everything on record of a classic snapshot, by its handle or its identity. */
    async find(snapshot: Pick<ClassicFacts, 'handle' | 'identity'>): Promise<ClassicRow[]> {
      return send('find', snapshot)
    },

    /** @throws DM_BASE_CHANGED where a thin snapshot was answered about by this name */
    async refuseServedAsThin(handle: string): Promise<void> {
      await send('refuseServedAsThin', handle)
    },

    /** Forgets the oldest classic snapshots on record, beyond a number. Returns how many; to be repeated until 0. */
    async forget(keep: number): Promise<number> {
      return send('forget', keep)
    }
  }
}

/** How far each pool's clock had come. */
export function poolClocksCalls(send: Send<'poolClocks'>) {
  return {
    /**
     * Takes a look at a pool's clock into account. Returns when the pool was last found in an earlier state. See
     * pool-clocks.ts.
     */
    async saw(clock: PoolClock, at = Date.now()): Promise<WentBack | undefined> {
      return send('saw', clock, at)
    },

    /** The same, without another look. */
    async wentBack(pool: string): Promise<WentBack | undefined> {
      return send('wentBack', pool)
    }
  }
}

/** Pools, volumes and snapshots that the agent made. */
export function ownedPoolsCalls(send: Send<'ownedPools'>) {
  return {
    /** All pools, volumes and snapshots that the agent made, and all intents: for `reconcile`. */
    async view(): Promise<CatalogView> {
      return send('view')
    },

    async findThin(id: string): Promise<OwnedThin | undefined> {
      return send('findThin', id)
    },

    async findThinByName(pool: string, name: string): Promise<OwnedThin | undefined> {
      return send('findThinByName', pool, name)
    },

    /**
     * Records an intent for a pool. Tell the kernel only after this has resolved.
     *
     * @throws DM_DEVICE_BUSY, DM_NO_SUCH_DEVICE, DM_CATALOG_DISAGREES, DM_ARGUMENT_INVALID
     */
    async begin(intent: NewIntent, at = Date.now()): Promise<Intent> {
      return send('begin', intent, at)
    },

    /**
     * Completes the pool's intent. @param creation needed after a creation: its creation time, from the device details
     */
    async complete(pool: string, creation?: { creationTime: number | undefined }): Promise<void> {
      await send('complete', pool, creation)
    },

    /** Rolls back the pool's intent: the kernel refused, or has not done it. */
    async rollBack(pool: string): Promise<void> {
      await send('rollBack', pool)
    },

    /** Adds a thin device that only the kernel has to the catalog. A person decided it. */
    async adoptThin(thin: Parameters<CatalogCalls['ownedPools']['adoptThin']>[0], at = Date.now()): Promise<OwnedThin> {
      return send('adoptThin', thin, at)
    },

    /** Removes a thin that only the catalog has from it. A person decided it. */
    async forgetThin(id: string): Promise<void> {
      await send('forgetThin', id)
    },

    /** Takes over the kernel's transaction id, and ends an intent that contradicts it. A person decided it. */
    async acceptTransactionId(pool: string, transactionId: bigint): Promise<void> {
      await send('acceptTransactionId', pool, transactionId)
    }
  }
}

/** Tracked volumes. */
export function eraVolumesCalls(send: Send<'eraVolumes'>) {
  return {
    /**
     * Records an intent for a tracked volume. Tell the kernel only after this has resolved.
     *
     * @throws DM_DEVICE_BUSY, DM_NO_SUCH_DEVICE, DM_ARGUMENT_INVALID
     */
    async begin(intent: NewEraIntent, at = Date.now()): Promise<EraIntent> {
      return send('begin', intent, at)
    },

    /** Completes the volume's intent. (`eraSnapshots.record` completes that of a snapshot.) */
    async complete(volume: string): Promise<void> {
      await send('complete', volume)
    },

    /** Rolls back the volume's intent: the kernel refused, or has not done it. */
    async rollBack(volume: string): Promise<void> {
      await send('rollBack', volume)
    },

    /** Records a look at a volume. */
    async saw(volume: string, seen: EraVolumeLook): Promise<void> {
      await send('saw', volume, seen)
    },

    /** Ends the volume's history at its last snapshot, and begins a new one. */
    async endHistory(
      volume: string,
      because: string,
      now: { newestEra: number; seenBlocks: number }
    ): Promise<EraVolume> {
      return send('endHistory', volume, because, now)
    },

    async view(): Promise<{ volumes: readonly EraVolume[]; intents: readonly EraIntent[] }> {
      return send('view')
    },

    async find(name: string): Promise<EraVolume | undefined> {
      return send('find', name)
    }
  }
}

/** Snapshots of tracked volumes, and what was written between them. */
export function eraSnapshotsCalls(send: Send<'eraSnapshots'>) {
  return {
    /** Where the next snapshot's record begins. Clears what an interrupted one has left. */
    async beginHistory(volume: string): Promise<LastBoundary> {
      return send('beginHistory', volume)
    },

    /** Stores a part of the next snapshot's bitmap. */
    async stageWrites(volume: string, chunks: readonly WrittenChunk[]): Promise<void> {
      await send('stageWrites', volume, chunks)
    },

    /** Records a snapshot with its stored bitmap, and completes the volume's intent. */
    async record(volume: string, taken: TakenSnapshot, since: LastBoundary, exact: boolean): Promise<EraSnapshot> {
      return send('record', volume, taken, since, exact)
    },

    /** The snapshots of a volume, by its name, or of all volumes; including those whose data were removed. */
    async list(volume?: string): Promise<readonly EraSnapshot[]> {
      return send('list', volume)
    },

    async find(volume: string, name: string): Promise<EraSnapshot | undefined> {
      return send('find', volume, name)
    },

    /** Records that a snapshot's data were removed. */
    async delete(volume: string, name: string, at = Date.now()): Promise<void> {
      await send('delete', volume, name, at)
    },

    /** The least size that a volume had from one snapshot to a later one, by their ids. */
    async leastSize(base: string, target: string): Promise<number | undefined> {
      return send('leastSize', base, target)
    },

    /** A page of what was written between two snapshots, by their ids; undefined when one is forgotten. */
    async writes(base: string, target: string, after: HistoryPlace): Promise<HistoryPage | undefined> {
      return send('writes', base, target, after)
    },

    /** Forgets snapshots taken before a time, and beyond a number for each volume. Returns how many. */
    async forget(limits: { before: number; keep: number }): Promise<number> {
      return send('forget', limits)
    },

    /** When a forgotten snapshot of this name was taken, in milliseconds since 1970. */
    async nameUsedBefore(volume: string, name: string): Promise<number | undefined> {
      return send('nameUsedBefore', volume, name)
    },

    /** Forgets the oldest names of forgotten snapshots. Returns how many; repeat until 0. */
    async forgetNames(keep: number): Promise<number> {
      return send('forgetNames', keep)
    },

    /** Merges bitmaps of forgotten snapshots; repeat until it returns 0. */
    async compact(): Promise<number> {
      return send('compact')
    },

    /** The size of each volume's history. */
    async facts(): Promise<readonly EraHistoryFacts[]> {
      return send('facts')
    }
  }
}

/** Metadata snapshots that we hold. */
export function leasesCalls(send: Send<'leases'>) {
  return {
    /** Records that a metadata snapshot is about to be reserved. Send the message only after this has resolved. */
    async begin(lease: { device: string; purpose: string; factsBefore: string }, at = Date.now()): Promise<void> {
      await send('begin', lease, at)
    },

    /** Records which metadata snapshot it is. */
    async confirm(device: string, held: { heldRoot: number; factsHeld: string }): Promise<void> {
      await send('confirm', device, held)
    },

    /** Records that it is about to be released. Send the message only after this has resolved. */
    async beginRelease(device: string): Promise<void> {
      await send('beginRelease', device)
    },

    /** Records that the kernel refused to release it. */
    async keep(device: string): Promise<void> {
      await send('keep', device)
    },

    /** Forgets the lease. */
    async clear(device: string): Promise<void> {
      await send('clear', device)
    },

    async find(device: string): Promise<LeaseRecord | undefined> {
      return send('find', device)
    },

    async list(): Promise<LeaseRecord[]> {
      return send('list')
    }
  }
}
