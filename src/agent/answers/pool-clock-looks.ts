/**
 * Looks at the clocks of live pools, one after the other for each pool. The catalog tells whether one was restored to
 * an earlier state (pool-clocks.ts).
 *
 * They are in order because a look that is reported late would look like a restored pool. Callers share a look that
 * still waits for its turn. A running look is not shared, because it may be older than the question.
 */
import type { ReadOptions } from '../../devicemapper/block-reader.ts'
import { openPoolMetadata, type PoolMetadata } from '../../devicemapper/thin/pool-metadata.ts'
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
  /** It may be shared: it has not begun, and nobody goes on with what it opens. */
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
    return this.#takeTurn(pool, { key, waits: true }, async () => {
      const { metadata, wentBack } = await this.#open(pool, place)
      await metadata.close()
      return wentBack
    })
  }

  /**
   * Looks at the clock of a pool, and lends its metadata as it was then. Whoever looks next does not wait until it is
   * given back.
   *
   * @throws what `look` throws, and what `use` throws
   */
  async lend<T>(
    place: PoolPlace & { readonly poolIdentity: string },
    use: (metadata: PoolMetadata) => Promise<T>
  ): Promise<T> {
    let opened: PoolMetadata | undefined
    try {
      await this.#takeTurn(place.poolIdentity, { key: '', waits: false }, async () => {
        const { metadata, wentBack } = await this.#open(place.poolIdentity, place)
        opened = metadata
        return wentBack
      })
      return await use(opened!)
    } finally {
      await opened?.close()
    }
  }

  /** Waits for the looks at this pool before, whatever becomes of them. */
  #takeTurn(
    pool: string,
    begun: Pick<Turn, 'key' | 'waits'>,
    read: () => Promise<WentBack | undefined>
  ): Promise<WentBack | undefined> {
    const before = this.#last.get(pool)?.look ?? Promise.resolve(undefined)
    const turn: Turn = {
      ...begun,
      look: before
        .catch(() => undefined)
        .then(() => {
          turn.waits = false
          return read()
        })
        .finally(() => {
          if (this.#last.get(pool) === turn) this.#last.delete(pool)
        })
    }
    this.#last.set(pool, turn)
    return turn.look
  }

  async #open(
    pool: string,
    { metadataPath, metadataDevice }: PoolPlace
  ): Promise<{ metadata: PoolMetadata; wentBack: WentBack | undefined }> {
    const metadata = await openPoolMetadata(metadataPath, {
      ...{ liveRoot: true, device: metadataDevice, ...this.#reading }
    })
    try {
      const clock = { pool, ...(await metadata.moment()) }
      return { metadata, wentBack: await this.#catalog.poolClocks.saw(clock, this.#now()) }
    } catch (error) {
      await metadata.close()
      throw error
    }
  }
}
