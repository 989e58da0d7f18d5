/**
 * How full the stores of the node's active classic snapshots are: one that overflows is a base that is lost. From
 * device-mapper alone.
 */
import { parseCowStatus } from '../../devicemapper/cow/status.ts'
import { DeltamapperError } from '../../errors.ts'
import type { SurveyedDevice, SurveyPort } from './survey.ts'
import { SECTOR_BYTES } from '../../units.ts'

export interface StoreFullness {
  /** Device-mapper's name of the snapshot's device. */
  readonly name: string
  /** Its device-mapper UUID. */
  readonly uuid: string
  /** The kernel has given it up: what it held is lost. */
  readonly isLost: boolean
  /** Undefined where it is lost, or says nothing of its use. */
  readonly usage: { readonly bytes: number; readonly usedBytes: number } | undefined
}

/**
 * @param survey the node's devices; those that go away meanwhile are left out.
 * @throws what device-mapper calls throw
 */
export async function lookAtStores(
  deviceMapper: Pick<SurveyPort, 'status'>,
  survey: readonly SurveyedDevice[]
): Promise<StoreFullness[]> {
  const stores: StoreFullness[] = []
  for (const { info, row } of survey) {
    if (row?.targetType !== 'snapshot') continue
    const { name, uuid, major, minor } = info
    try {
      const [{ params } = { params: '' }] = await deviceMapper.status({ major, minor })
      const status = parseCowStatus(params)
      const usage =
        status.state === 'working'
          ? { bytes: status.totalSectors * SECTOR_BYTES, usedBytes: status.allocatedSectors * SECTOR_BYTES }
          : undefined
      const isLost = status.state === 'invalid' || status.state === 'overflow'
      stores.push({ name, uuid, isLost, usage })
    } catch (error) {
      if (!(error instanceof DeltamapperError)) throw error
      if (error.code !== 'DM_NO_SUCH_DEVICE') stores.push({ name, uuid, isLost: false, usage: undefined })
    }
  }
  return stores.sort((one, other) => (one.name < other.name ? -1 : 1))
}
