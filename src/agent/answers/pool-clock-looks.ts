/**
 * Looks at the clocks of live pools, one after the other for each pool. The catalog tells whether one was restored to
 * an earlier state (pool-clocks.ts).
 *
 * They are in order because a look that is reported late would look like a restored pool. Callers share a look that
 * still waits for its turn. A running look is not shared, because it may be older than the question.
 */
import type { ReadOptions } from '../../devicemapper/block-reader.ts'
import { openPoolMetadata } from '../../devicemapper/thin/pool-metadata.ts'
import type { Catalog } from '../catalog/catalog.ts'
import type { WentBack } from '../catalog/pool-clocks.ts'
import type { Snapshot } from '../walks/snapshot.ts'

/** A pool's metadata device, and which pool it is. */
type PoolPlace = Pick<Snapshot, 'metadataPath' | 'metadataDevice' | 'poolIdentity'>

type Reading = Pick<ReadOptions, 'deadlineMs' | 'open'>

/** One look. */
interface PoolClockCatalog {
  readonly poolClocks: Pick<Catalog['poolClocks'], 'saw'>
}

interface Turn {
  /** Its subject. */
  readonly key: string
  readonly look: Promise<WentBack | undefined>
  waits: boolean
}

export class PoolClockLooks {
  readonly #catalog: PoolClockCatalog
  readonly #reading: Reading
  readonly #now: () => number
  /** The last look of each pool, waiting or running. */
  readonly #last = new Map<string, Turn>()

  /**
   * @param reading how metadata devices are read
   * @param now milliseconds since 1970
   */
  constructor(catalog: PoolClockCatalog, reading: Reading = {}, now: () => number = Date.now) {
    this.#catalog = catalog
    this.#reading = reading
    this.#now = now
  }

  /**
   * Looks at the pool of a snapshot.
   *
   * @returns when it was last found in an earlier state
   * @throws what reading metadata throws, what the catalog throws
   */
  async look(place: PoolPlace): Promise<WentBack | undefined> {
    const { poolIdentity: pool, metadataPath, metadataDevice } = place
    if (pool === undefined) return undefined
    const key = JSON.stringify([pool, metadataPath, metadataDevice])
    const last = this.#last.get(pool)
    if (last?.waits && last.key === key) return last.look
    const before = last?.look ?? Promise.resolve(undefined)
    const turn: Turn = {
      key,
      waits: true,
      look: before
        .catch(() => undefined)
        .then(() => {
          turn.waits = false
          return this.#read(pool, place)
        })
        .finally(() => {
          if (this.#last.get(pool) === turn) this.#last.delete(pool)
        })
    }
    this.#last.set(pool, turn)
    return turn.look
  }

  async #read(pool: string, { metadataPath, metadataDevice }: PoolPlace): Promise<WentBack | undefined> {
    const metadata = await openPoolMetadata(metadataPath, {
      ...{ liveRoot: true, device: metadataDevice, ...this.#reading }
    })
    try {
      const clock = { pool, ...(await metadata.moment()) }
      return await this.#catalog.poolClocks.saw(clock, this.#now())
    } finally {
      await metadata.close()
    }
  }
}
