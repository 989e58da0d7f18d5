/**
 * Logs when an owned pool fills up, is full, or gets into a worse state: once when it happens, and again when it is
 * over.
 *
 * A pool without data space fails writes or holds them. A pool without metadata space accepts no changes at all, and
 * may need a repair. So data has a warning at its low-water mark, and both have one at 80, 90 and 95 percent.
 */
import type { Logger } from 'pino'
import type { DescribedPool, DescribedUsage } from './description.ts'

/** In percent. */
const THRESHOLDS = [80, 90, 95, 100]

/** The last warning about a pool. */
interface Said {
  state: string
  data: number
  metadata: number
  lowWater: boolean
}

export class FullnessLog {
  readonly #logger: Logger
  readonly #said = new Map<string, Said>()

  constructor(logger: Logger) {
    this.#logger = logger
  }

  /** Looks at a pool, and logs what has changed. */
  look(pool: DescribedPool): void {
    const before = this.#said.get(pool.name) ?? { state: '', data: 0, metadata: 0, lowWater: false }
    const now = { ...before, state: pool.state, ...(pool.usage && levels(pool, pool.usage)) }
    this.#said.set(pool.name, now)
    const about = { pool: pool.name, state: pool.state, usage: pool.usage }
    if (now.state !== before.state) {
      if (pool.problem !== '') this.#logger.warn(about, `pool ${pool.name} is ${pool.state}: ${pool.problem}`)
      else if (before.state !== '') this.#logger.info(about, `pool ${pool.name} is ${pool.state}`)
    }
    for (const kind of ['data', 'metadata'] as const) {
      if (now[kind] > before[kind]) {
        this.#logger.warn(
          about,
          `pool ${pool.name} has used ${now[kind]} % of its ${kind} space: enlarge its ${kind} device, and \`deltamapper pool grow ${pool.name}\``
        )
      } else if (now[kind] < before[kind]) {
        this.#logger.info(about, `pool ${pool.name} has used less than ${before[kind]} % of its ${kind} space again`)
      }
    }
    if (now.lowWater && !before.lowWater) {
      this.#logger.warn(about, `pool ${pool.name} has reached its low-water mark of ${pool.lowWaterBytes} free bytes`)
    }
  }

  /** The pool was removed; one of the same name is another. */
  forget(pool: string): void {
    this.#said.delete(pool)
  }
}

/** The highest threshold that was reached; 0 for none. */
function levels(pool: DescribedPool, usage: DescribedUsage): Pick<Said, 'data' | 'metadata' | 'lowWater'> {
  const reached = (used: number, total: number) => THRESHOLDS.findLast((each) => used * 100 >= each * total) ?? 0
  return {
    data: reached(usage.dataUsedBytes, usage.dataTotalBytes),
    metadata: reached(usage.metadataUsedBytes, usage.metadataTotalBytes),
    lowWater: pool.lowWaterBytes > 0 && usage.dataTotalBytes - usage.dataUsedBytes <= pool.lowWaterBytes
  }
}
