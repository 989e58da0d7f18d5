/**
 * How full the node's active thin pools and stores of classic snapshots are, made by anyone: for metrics. It looks
 * only when asked, and not again at once.
 *
 * A look takes one device-mapper call for each pool, and none of them makes a pool commit. A call that hangs makes the
 * look late.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { parsePoolStatus, type PoolMode } from '../../devicemapper/thin/status.ts'
import { parsePoolTable } from '../../devicemapper/thin/table.ts'
import { DeltamapperError } from '../../errors.ts'
import { type SurveyedDevice, type SurveyPort, surveyDevices } from './survey.ts'
import { lookAtStores, type StoreFullness } from './store-fullness.ts'
import { METADATA_BLOCK_BYTES, SECTOR_BYTES } from '../../units.ts'

export interface PoolFullness {
  /** Device-mapper's name of the pool's device. */
  readonly name: string
  readonly state: PoolMode | 'failed' | 'unknown'
  /** Undefined if the state is `failed` or `unknown`. */
  readonly usage: PoolUsage | undefined
}

/** Bytes, and the pool's own word on its metadata. */
interface PoolUsage {
  readonly dataBytes: number
  readonly dataUsedBytes: number
  readonly metadataBytes: number
  readonly metadataUsedBytes: number
  readonly needsCheck: boolean
}

/**
 * Every active thin pool of the node, by name.
 *
 * @param survey the node's devices; those that go away meanwhile are left out
 * @throws what device-mapper calls throw
 */
export async function lookAtFullness(
  deviceMapper: SurveyPort,
  survey: readonly SurveyedDevice[]
): Promise<PoolFullness[]> {
  const pools: PoolFullness[] = []
  for (const { info, row } of survey) {
    if (row?.targetType !== 'thin-pool') continue
    const { name, major, minor } = info
    try {
      const [{ params } = { params: '' }] = await deviceMapper.status({ major, minor })
      const status = parsePoolStatus(params)
      if (status.state !== 'working') {
        pools.push({ name, state: status.state, usage: undefined })
        continue
      }
      const blockBytes = parsePoolTable(row.params).blockSectors * SECTOR_BYTES
      const usage = {
        dataBytes: status.totalDataBlocks * blockBytes,
        dataUsedBytes: status.usedDataBlocks * blockBytes,
        metadataBytes: status.totalMetadataBlocks * METADATA_BLOCK_BYTES,
        metadataUsedBytes: status.usedMetadataBlocks * METADATA_BLOCK_BYTES,
        needsCheck: status.needsCheck ?? false
      }
      pools.push({ name, state: status.mode, usage })
    } catch (error) {
      if (!(error instanceof DeltamapperError)) throw error
      // It disappeared meanwhile, or its status has unknown words.
      if (error.code !== 'DM_NO_SUCH_DEVICE') pools.push({ name, state: 'unknown', usage: undefined })
    }
  }
  return pools.sort((one, other) => (one.name < other.name ? -1 : 1))
}

/** A look that has succeeded. */
export interface FullnessSeen {
  /** Milliseconds since 1970. */
  readonly at: number
  readonly pools: readonly PoolFullness[]
  /** Of classic snapshots. */
  readonly stores: readonly StoreFullness[]
}

export class FullnessLooks {
  readonly #deviceMapper: SurveyPort
  readonly #freshMs: number
  readonly #waitMs: number
  #seen: FullnessSeen | undefined
  #looking: Promise<void> | undefined

  /**
   * @param freshMs how long a look is used
   * @param waitMs how long to wait for a new one, before the last one is used again
   */
  constructor(deviceMapper: SurveyPort, { freshMs = 10_000, waitMs = 1000 } = {}) {
    this.#deviceMapper = deviceMapper
    this.#freshMs = freshMs
    this.#waitMs = waitMs
  }

  /** The last look that has succeeded; a new one if that is old. Never rejects. */
  async latest(): Promise<FullnessSeen | undefined> {
    if (this.#seen && Date.now() - this.#seen.at < this.#freshMs) return this.#seen
    this.#looking ??= this.#look().finally(() => (this.#looking = undefined))
    await Promise.race([this.#looking, sleep(this.#waitMs, undefined, { ref: false })])
    return this.#seen
  }

  async #look(): Promise<void> {
    const at = Date.now()
    try {
      const survey = await surveyDevices(this.#deviceMapper)
      const pools = await lookAtFullness(this.#deviceMapper, survey)
      this.#seen = { at, pools, stores: await lookAtStores(this.#deviceMapper, survey) }
    } catch {
      // Its age shows the failure; every other call reports what is wrong with device-mapper.
    }
  }
}
