/**
 * The kernel's state of our owned pools, for `reconcile`: which pools are active, what their metadata holds, which thin
 * devices exist.
 *
 * A device with the name of one of our pools and another UUID is foreign, and is left out.
 */
import type { DeviceInfo } from '../../../native/device-mapper.ts'
import { type PoolMachine, thisMachine } from '../../devicemapper/thin/pool-machine.ts'
import { openPoolMetadata } from '../../devicemapper/thin/pool-metadata.ts'
import { parsePoolStatus } from '../../devicemapper/thin/status.ts'
import { parseThinTable } from '../../devicemapper/thin/table.ts'
import { DeltamapperError } from '../../errors.ts'
import type { OwnedPool } from '../catalog/owned-pools.ts'
import type { KernelDevice, KernelPool, KernelView } from '../catalog/reconcile.ts'
import { findPoolDevice } from '../node/pool-device.ts'
import { poolUuid } from '../node/naming.ts'
import { isLvm, type SurveyedDevice, type SurveyPort } from '../node/survey.ts'
import { SECTOR_BYTES } from '../../units.ts'

/** Looks at the pools given. @throws what device-mapper calls throw */
export async function readKernelView(
  deviceMapper: SurveyPort,
  pools: readonly OwnedPool[],
  survey: readonly SurveyedDevice[],
  machine: PoolMachine = thisMachine
): Promise<KernelView> {
  const active: KernelPool[] = []
  for (const pool of pools) {
    const device = survey.find(({ info }) => info.uuid === poolUuid(pool))
    if (device?.row?.targetType === 'thin-pool') active.push(await readPool(deviceMapper, pool, device.info, machine))
  }
  const devices = thinDevices(survey).flatMap((device) => {
    const pool = pools.find((each) => poolUuid(each) === device.poolUuid)
    return pool ? { ...device, pool: pool.dmName } : []
  })
  return { pools: active, devices }
}

/** An active thin device. */
export interface ThinDevice extends Omit<KernelDevice, 'pool'> {
  readonly info: DeviceInfo
  /** Empty when its pool has none. */
  readonly poolUuid: string
}

/** The active thin devices of all pools, except LVM's. */
export function thinDevices(survey: readonly SurveyedDevice[]): ThinDevice[] {
  return survey.flatMap(({ info, row }) => {
    if (row?.targetType !== 'thin' || isLvm(info)) return []
    const table = parseThinTable(row.params)
    const pool = survey.find(
      ({ info: { major, minor } }) => major === table?.poolDevice.major && minor === table.poolDevice.minor
    )
    if (!table || !pool) return []
    return {
      dmName: info.name,
      poolUuid: pool.info.uuid,
      thinId: table.deviceId,
      sizeBytes: row.lengthSectors * SECTOR_BYTES,
      suspended: info.suspended,
      info
    }
  })
}

/** Active thin pools that are neither LVM's nor among those given. */
export function otherPools(survey: readonly SurveyedDevice[], pools: readonly OwnedPool[]): KernelPool[] {
  const ours = new Set(pools.map(poolUuid))
  return survey
    .filter(({ info, row }) => row?.targetType === 'thin-pool' && !isLvm(info) && !ours.has(info.uuid))
    .map(({ info }) => ({ dmName: info.name, transactionId: 0n, thins: undefined }))
}

async function readPool(
  deviceMapper: SurveyPort,
  { dmName }: OwnedPool,
  info: DeviceInfo,
  machine: PoolMachine
): Promise<KernelPool> {
  const [row] = await deviceMapper.status({ uuid: info.uuid })
  const status = row && parsePoolStatus(row.params)
  if (status?.state !== 'working') return { dmName, transactionId: 0n, thins: undefined }
  return { dmName, transactionId: status.transactionId, thins: await readThins(deviceMapper, info, machine) }
}

async function readThins(
  deviceMapper: SurveyPort,
  { uuid }: DeviceInfo,
  { open }: PoolMachine
): Promise<KernelPool['thins']> {
  try {
    const pool = await findPoolDevice(deviceMapper, { uuid })
    if (!pool) return undefined
    const metadata = await openPoolMetadata(pool.metadataPath, { liveRoot: true, device: pool.metadataDevice, open })
    try {
      const thins = new Map<number, { creationTime: number; transactionId: bigint; mappedBlocks: number }>()
      for await (const { id, details } of metadata.devices()) thins.set(id, details)
      return thins
    } finally {
      await metadata.close()
    }
  } catch (error) {
    if (error instanceof DeltamapperError) return undefined
    throw error
  }
}
