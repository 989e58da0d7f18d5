/**
 * The metrics that only an agent has: the cost of its walks, results of checks with the tools, its metadata snapshots,
 * how full the pools are, its tracked volumes, its catalog.
 *
 * Nothing is counted for each extent or node: totals are taken from the walks' own statistics when a scrape comes.
 */
import { stat } from 'node:fs/promises'
import { Counter, Gauge, Histogram, type Registry } from 'prom-client'
import type { KnownBase } from './catalog/bases.ts'
import type { Catalog } from './catalog/catalog.ts'
import { lookAtTracked, type TrackedState } from './era/tracked-state.ts'
import type { SurveyPort } from './node/survey.ts'
import { Looks } from './node/looks.ts'
import { lookAtPoolsAndStores, type PoolFullness } from './node/pool-fullness.ts'
import type { StoreFullness } from './node/store-fullness.ts'
import type { CheckCounts } from './walks/tool-engine.ts'
import type { TimedStatistics } from './walks/walk-messages.ts'
import type { Plan, WalkKind } from './walks/plan.ts'
import type { Walkers } from './walks/walkers.ts'

/** A small walk takes milliseconds, a whole large pool minutes. */
const WALK_SECONDS = [0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 60, 300]
/** Up to `lease.holdSeconds`, 600 by default. */
const LEASE_SECONDS = [0.1, 1, 10, 60, 300, 600, 1800]
/** The most pools that are shown, each with six time series; and of stores and tracked volumes. */
const MAXIMUM_POOLS = 64
/** The most volumes whose newest delta is shown, each with two. */
const MAXIMUM_VOLUMES = 64

const methods: Record<WalkKind, string> = { allocated: 'GetMetadataAllocated', delta: 'GetMetadataDelta' }

export class AgentMetrics {
  readonly #registers: [Registry]
  readonly #walkSeconds: Histogram<'method'>
  readonly #doubtful: Counter
  readonly #newestDeltas = new Map<string, TimedStatistics>()

  constructor(registry: Registry) {
    this.#registers = [registry]
    this.#walkSeconds = new Histogram({
      name: 'deltamapper_walk_seconds',
      help: 'How long walks took, without waiting for their clients',
      labelNames: ['method'],
      buckets: WALK_SECONDS,
      registers: this.#registers
    })
    this.#doubtful = new Counter({
      name: 'deltamapper_cow_doubtful_bytes_total',
      help: 'What answers about classic snapshots reported as changed because nothing told whether it was',
      registers: this.#registers
    })
    this.#showNewestDeltas()
  }

  /** Call for each walk that has ended. */
  readonly walkEnded = ({ kind, volume }: Plan, statistics: TimedStatistics, isComplete: boolean): void => {
    this.#walkSeconds.observe({ method: methods[kind] }, statistics.walkMs / 1000)
    if (!isComplete || volume === undefined) return
    // (The newest last, so that the first is the one to go.)
    this.#newestDeltas.delete(volume)
    this.#newestDeltas.set(volume, statistics)
    const [oldest] = this.#newestDeltas.keys()
    if (this.#newestDeltas.size > MAXIMUM_VOLUMES && oldest !== undefined) this.#newestDeltas.delete(oldest)
  }

  #showNewestDeltas(): void {
    const newest = this.#newestDeltas
    const gauge = (name: string, help: string, of: (delta: TimedStatistics) => number) =>
      new Gauge({
        ...{ name, help, labelNames: ['volume'], registers: this.#registers },
        collect() {
          this.reset()
          for (const [volume, delta] of newest) this.set({ volume }, of(delta))
        }
      })
    gauge(
      'deltamapper_volume_changed_bytes',
      'Bytes of the newest complete delta of each volume',
      (delta) => delta.extentBytes
    )
    gauge('deltamapper_volume_size_bytes', 'Size of the volume then', (delta) => delta.volumeBytes)
  }

  /** To be told of each answer about classic snapshots. */
  readonly reportedDoubtful = (bytes: number): void => {
    this.#doubtful.inc(bytes)
  }

  watchWalkers(walkers: Pick<Walkers, 'totals' | 'active' | 'alive'>): void {
    const registers = this.#registers
    const byMethod = (name: string, help: string, of: (statistics: TimedStatistics) => number) =>
      new Counter({
        ...{ name, help, labelNames: ['method'], registers },
        collect() {
          const { allocated, delta } = walkers.totals
          this.reset()
          this.inc({ method: methods.allocated }, of(allocated))
          this.inc({ method: methods.delta }, of(delta))
        }
      })
    byMethod('deltamapper_extents_total', 'Extents found by walks', (each) => each.extents)
    byMethod('deltamapper_extent_bytes_total', 'Bytes of these extents', (each) => each.extentBytes)
    byMethod(
      'deltamapper_volume_bytes_total',
      'Sizes of the volumes that they are of, once for each walk',
      (each) => each.volumeBytes
    )
    const total = (name: string, help: string, of: (statistics: TimedStatistics) => number) =>
      new Counter({
        ...{ name, help, registers },
        collect() {
          const { allocated, delta } = walkers.totals
          this.reset()
          this.inc(of(allocated) + of(delta))
        }
      })
    total(
      'deltamapper_metadata_nodes_read_total',
      'Metadata blocks read and verified; for tracked volumes, bitmaps of their history read from the catalog',
      (each) => each.nodesRead
    )
    total(
      'deltamapper_metadata_read_bytes_total',
      'Bytes of metadata read; for tracked volumes, bytes of bitmaps',
      (each) => each.bytesRead
    )
    total(
      'deltamapper_metadata_reads_total',
      'Read requests to metadata; for tracked volumes, pages of bitmaps read from the catalog',
      (each) => each.readCalls
    )
    this.#gauge('deltamapper_walks_running', 'Walks that have begun and not ended', () => walkers.active)
    this.#gauge('deltamapper_walkers', 'Walker threads that are alive', () => walkers.alive)
  }

  /**
   * For an agent that checks its answers with the tools. All outcomes exist from the start, so that the first of a kind
   * is an increase too.
   */
  watchChecks(counts: Readonly<CheckCounts>): void {
    new Counter({
      name: 'deltamapper_engine_checks_total',
      help: "Answers held against the tools', by outcome; unchecked: the tools said nothing",
      labelNames: ['outcome'],
      registers: this.#registers,
      collect() {
        const { agreed, disagreed, unchecked } = counts
        this.reset()
        for (const [outcome, count] of Object.entries({ agreed, disagreed, unchecked })) this.inc({ outcome }, count)
      }
    })
  }

  /**
   * @returns a function to call for each metadata snapshot that was held: how long in milliseconds, and whether it was
   *   lost before its users were done
   */
  watchLeases(held: () => number): (heldMs: number, lost: boolean) => void {
    this.#gauge('deltamapper_leases_held', 'Metadata snapshots held now', held)
    const seconds = new Histogram({
      name: 'deltamapper_lease_held_seconds',
      help: 'How long metadata snapshots were held; lost: ended before their users were done',
      labelNames: ['outcome'],
      buckets: LEASE_SECONDS,
      registers: this.#registers
    })
    return (heldMs, lost) => seconds.observe({ outcome: lost ? 'lost' : 'released' }, heldMs / 1000)
  }

  /**
   * Records of bases. @param counts what became of questions about bases that are gone, and of records, since the start
   */
  watchBases(
    catalog: { readonly bases: Pick<Catalog['bases'], 'list'> },
    counts: Readonly<Record<'answered' | 'refused' | 'notKept', number>>
  ): void {
    const looks = new Looks(async () => (await catalog.bases.list()).filter(({ record }) => record !== undefined))
    const registers = this.#registers
    const gauge = (name: string, help: string, of: (records: readonly KnownBase[]) => number) =>
      new Gauge({
        ...{ name, help, registers },
        async collect() {
          this.set(of((await looks.latest())?.what ?? []))
        }
      })
    gauge('deltamapper_base_records', 'Records of base snapshots', (records) => records.length)
    gauge('deltamapper_base_record_bytes', 'Bytes of these records', (records) =>
      records.reduce((sum, { recordBytes = 0 }) => sum + recordBytes, 0)
    )
    const counter = (name: string, help: string, of: () => number) =>
      new Counter({
        ...{ name, help, registers },
        collect() {
          this.reset()
          this.inc(of())
        }
      })
    counter(
      'deltamapper_base_record_answers_total',
      'Answers that compared with a record of a base that is gone',
      () => counts.answered
    )
    counter(
      'deltamapper_base_record_refusals_total',
      'Questions about a base that is gone, for which no record could stand',
      () => counts.refused
    )
    counter(
      'deltamapper_base_records_not_kept_total',
      'Records that could not be kept, so that their snapshots have to stay',
      () => counts.notKept
    )
  }

  /** @param path of the database */
  watchCatalog(path: string): void {
    new Gauge({
      name: 'deltamapper_catalog_bytes',
      help: 'Size of the catalog with its write-ahead log',
      registers: this.#registers,
      async collect() {
        const sizes = await Promise.all(
          [path, `${path}-wal`].map((file) =>
            stat(file)
              .then(({ size }) => size)
              .catch(() => 0)
          )
        )
        this.set(sizes[0] + sizes[1])
      }
    })
  }

  watchPools(deviceMapper: SurveyPort): void {
    const looks = new Looks(() => lookAtPoolsAndStores(deviceMapper))
    const registers = this.#registers
    const perPool = (name: string, help: string, of: (usage: NonNullable<PoolFullness['usage']>) => number) =>
      new Gauge({
        ...{ name, help, labelNames: ['pool'], registers },
        async collect() {
          const seen = await looks.latest()
          this.reset()
          for (const { name: pool, usage } of shown(seen?.what.pools)) if (usage) this.set({ pool }, of(usage))
        }
      })
    perPool('deltamapper_pool_data_bytes', "Size of a thin pool's data space", (each) => each.dataBytes)
    perPool('deltamapper_pool_data_used_bytes', 'What of it is used', (each) => each.dataUsedBytes)
    perPool('deltamapper_pool_metadata_bytes', "Size of a thin pool's metadata space", (each) => each.metadataBytes)
    perPool('deltamapper_pool_metadata_used_bytes', 'What of it is used', (each) => each.metadataUsedBytes)
    perPool('deltamapper_pool_needs_check', '1: the pool wants its metadata to be checked', (each) =>
      Number(each.needsCheck)
    )
    const perStore = (name: string, help: string, of: (store: StoreFullness) => number | undefined) =>
      new Gauge({
        ...{ name, help, labelNames: ['snapshot'], registers },
        async collect() {
          const seen = await looks.latest()
          this.reset()
          for (const store of worstFirst(seen?.what.stores ?? []).slice(0, MAXIMUM_POOLS)) {
            const value = of(store)
            if (value !== undefined) this.set({ snapshot: store.name }, value)
          }
        }
      })
    perStore('deltamapper_cow_store_bytes', "Size of a classic snapshot's store", ({ usage }) => usage?.bytes)
    perStore('deltamapper_cow_store_used_bytes', 'What of it is used', ({ usage }) => usage?.usedBytes)
    perStore('deltamapper_cow_store_lost', '1: the kernel has given the snapshot up', ({ isLost }) => Number(isLost))
    new Gauge({
      name: 'deltamapper_pool_state',
      help: '1 for the state a thin pool is in',
      labelNames: ['pool', 'state'],
      registers,
      async collect() {
        const seen = await looks.latest()
        this.reset()
        for (const { name: pool, state } of shown(seen?.what.pools)) this.set({ pool, state }, 1)
      }
    })
    new Gauge({
      name: 'deltamapper_pools_left_out',
      help: `Active thin pools beyond the first ${MAXIMUM_POOLS}, which are not shown`,
      registers,
      async collect() {
        const seen = await looks.latest()
        this.set(Math.max(0, (seen?.what.pools.length ?? 0) - MAXIMUM_POOLS))
      }
    })
    new Gauge({
      name: 'deltamapper_pools_looked_at_timestamp_seconds',
      help: 'Unix time of the last look at the pools that has succeeded',
      registers,
      async collect() {
        this.set(((await looks.latest())?.at ?? 0) / 1000)
      }
    })
  }

  /** Volumes that dm-era tracks. A name of theirs is one of the configuration's, as a pool's is. */
  watchTracked(volumes: Parameters<typeof lookAtTracked>[0]): void {
    const looks = new Looks(() => lookAtTracked(volumes))
    const registers = this.#registers
    const perVolume = (name: string, help: string, of: (volume: TrackedState) => number | undefined) =>
      new Gauge({
        ...{ name, help, labelNames: ['volume'], registers },
        async collect() {
          const seen = await looks.latest()
          this.reset()
          for (const volume of (seen?.what ?? []).slice(0, MAXIMUM_POOLS)) {
            const value = of(volume)
            if (value !== undefined) this.set({ volume: volume.name }, value)
          }
        }
      })
    perVolume('deltamapper_era_active', '1: the tracked volume is active', ({ active }) => Number(active))
    perVolume('deltamapper_era_suspended', '1: it is suspended, and whoever writes to it waits', ({ suspended }) =>
      Number(suspended)
    )
    perVolume('deltamapper_era_problem', '1: era status says what is wrong with it', ({ hasProblem }) =>
      Number(hasProblem)
    )
    perVolume(
      'deltamapper_era_history_lost',
      '1: what was written since its newest snapshot is not known, so that the next backup is a full one',
      ({ historyLost }) => Number(historyLost)
    )
    perVolume('deltamapper_era_metadata_bytes', "Size of the tracked volume's metadata", (each) => each.metadata?.bytes)
    perVolume('deltamapper_era_metadata_used_bytes', 'What of it is used', (each) => each.metadata?.usedBytes)
    new Gauge({
      name: 'deltamapper_era_looked_at_timestamp_seconds',
      help: 'Unix time of the last look at the tracked volumes that has succeeded',
      registers,
      async collect() {
        this.set(((await looks.latest())?.at ?? 0) / 1000)
      }
    })
  }

  #gauge(name: string, help: string, value: () => number): void {
    new Gauge({
      ...{ name, help, registers: this.#registers },
      collect() {
        this.set(value())
      }
    })
  }
}

function shown(pools: readonly PoolFullness[] = []): readonly PoolFullness[] {
  return pools.slice(0, MAXIMUM_POOLS)
}

/** Where not all are shown, those that are lost or fill up are. */
function worstFirst(stores: readonly StoreFullness[]): StoreFullness[] {
  const need = ({ isLost, usage }: StoreFullness) => (isLost ? 1 : usage ? usage.usedBytes / usage.bytes : 0)
  return stores.toSorted((one, other) => need(other) - need(one))
}
