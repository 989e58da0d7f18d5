/**
 * How full the node's active thin pools and stores of classic snapshots are, made by anyone: for metrics.
 *
 * A look takes one device-mapper call for each pool, and none of them makes a pool commit. A call that hangs makes the
 * look late (looks.ts).
 */
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

/** What metrics tell of pools, and of classic snapshots' stores. */
export interface Fullness {
  readonly pools: readonly PoolFullness[]
  readonly stores: readonly StoreFullness[]
}

/** @throws what device-mapper calls throw */
export async function lookAtPoolsAndStores(deviceMapper: SurveyPort): Promise<Fullness> {
  const survey = await surveyDevices(deviceMapper)
  const pools = await lookAtFullness(deviceMapper, survey)
  return { pools, stores: await lookAtStores(deviceMapper, survey) }
}
