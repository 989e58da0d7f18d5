/**
 * Owned pools, their volumes and snapshots for display: the catalog's data with the kernel's present state. If the
 * kernel does not answer, its part is left out, and the call still succeeds.
 */
import type { DeviceMapper } from '../../../native/device-mapper.ts'
import { nodeName } from '../../../native/device.ts'
import type { PoolStatus } from '../../devicemapper/thin/status.ts'
import { asDeltamapperError } from '../../errors.ts'
import type { Pool, ReconcileFinding, Volume } from '../../grpc/admin.ts'
import type { CatalogView, OwnedPool, OwnedThin } from '../catalog/owned-pools.ts'
import type { Finding } from '../catalog/reconcile.ts'
import { ActivePool } from './active-pool.ts'
import { thinUuid } from '../node/naming.ts'
import { SECTOR_BYTES } from '../node/request-checks.ts'

const METADATA_BLOCK_BYTES = 4096
/**
 * How long a metadata device may take to tell what is mapped, in milliseconds. After that, the rest is shown without
 * it.
 */
const LOOK_DEADLINE_MS = 5000

export async function describePool(
  deviceMapper: DeviceMapper,
  pool: OwnedPool,
  { thins, intents }: CatalogView
): Promise<Pool> {
  const { name, dataBlockSectors, lowWaterBlocks, transactionId } = pool
  const blockBytes = dataBlockSectors * SECTOR_BYTES
  const count = (kind: OwnedThin['kind']) => thins.filter((each) => each.pool === name && each.kind === kind).length
  const described: Pool = {
    ...{ name, deviceName: pool.dmName, metadataDevice: pool.metadataDevice, dataDevice: pool.dataDevice },
    ...{ blockBytes, lowWaterBytes: lowWaterBlocks * blockBytes, transactionId },
    whenFull: pool.features.split(' ').includes('error_if_no_space') ? 'error' : 'queue',
    state: 'unknown',
    problem: '',
    volumes: count('volume'),
    snapshots: count('snapshot'),
    underWay: intents.find((each) => each.pool === name)?.kind ?? '',
    createdAtMs: pool.createdAt
  }
  try {
    const active = new ActivePool(deviceMapper, pool)
    if (!(await active.isActive())) return { ...described, state: 'inactive' }
    return { ...described, ...stateOf(await active.target.status(), blockBytes) }
  } catch (error) {
    return { ...described, problem: asDeltamapperError(error).line }
  }
}

/** Those of one kind in a pool. */
export async function describeThins(
  deviceMapper: DeviceMapper,
  pool: OwnedPool,
  { thins }: CatalogView,
  wanted: (thin: OwnedThin) => boolean
): Promise<Volume[]> {
  const inKernel = await new ActivePool(deviceMapper, pool)
    .thins({ deadlineMs: LOOK_DEADLINE_MS })
    .catch(() => undefined)
  const described: Volume[] = []
  for (const thin of thins) {
    if (thin.pool !== pool.name || !wanted(thin)) continue
    const nameOf = (id: string | undefined) => thins.find((each) => each.id === id)?.name ?? ''
    const info = await deviceMapper.info({ uuid: thinUuid(thin) }).catch(() => undefined)
    const mappedBlocks = inKernel?.get(thin.thinId)?.mappedBlocks
    const { name, kind, id, thinId, sizeBytes, creationTime, transactionId } = thin
    described.push({
      ...{ pool: pool.name, name, kind, id, thinId, sizeBytes, creationTime, transactionId },
      volume: nameOf(thin.volume),
      volumeId: thin.volume,
      origin: nameOf(thin.origin),
      createdAtMs: thin.createdAt,
      ...(info?.hasLiveTable && {
        device: { path: `/dev/mapper/${nodeName(info.name)}`, readOnly: info.readOnly, openCount: info.openCount }
      }),
      ...(mappedBlocks !== undefined && { mappedBytes: mappedBlocks * pool.dataBlockSectors * SECTOR_BYTES })
    })
  }
  return described
}

export function describeFinding({ kind, pool, thinId, what, remedy }: Finding): ReconcileFinding {
  return { kind, pool, what, remedy, ...(thinId !== undefined && { thinId }) }
}

function stateOf(status: PoolStatus, blockBytes: number): Pick<Pool, 'state' | 'problem' | 'usage'> {
  if (status.state === 'unknown') return { state: 'unknown', problem: 'the kernel could not tell its state' }
  if (status.state === 'failed') {
    return { state: 'failed', problem: 'its metadata cannot be used: see the kernel log, thin_check and thin_repair' }
  }
  const { mode, needsCheck = false, heldRoot } = status
  const problems = {
    'read-write': '',
    'out-of-data-space': 'writes that need a new block fail or wait: enlarge its data device, and grow it',
    'read-only': needsCheck
      ? 'its metadata needs a check: deactivate it, thin_check --clear-needs-check-flag, activate it'
      : 'out of metadata space, or its metadata could not be written: enlarge its metadata device and grow it; see the kernel log'
  }
  return {
    state: mode,
    problem: problems[mode],
    usage: {
      dataUsedBytes: status.usedDataBlocks * blockBytes,
      dataTotalBytes: status.totalDataBlocks * blockBytes,
      metadataUsedBytes: status.usedMetadataBlocks * METADATA_BLOCK_BYTES,
      metadataTotalBytes: status.totalMetadataBlocks * METADATA_BLOCK_BYTES,
      transactionId: status.transactionId,
      needsCheck,
      ...(heldRoot !== undefined && { heldMetadataSnapshot: heldRoot })
    }
  }
}
