/**
 * Owned pools, their volumes and snapshots for display: the catalog's data with the kernel's present state. If the
 * kernel does not answer, its part is left out, and the call still succeeds.
 */
import type { DeviceMapper } from '../../../native/device-mapper.ts'
import { nodeName } from '../../../native/device.ts'
import type { PoolMachine } from '../../devicemapper/thin/pool-machine.ts'
import type { PoolStatus } from '../../devicemapper/thin/status.ts'
import { asDeltamapperError } from '../../errors.ts'
import type { CatalogView, OwnedPool, OwnedThin } from '../catalog/owned-pools.ts'
import type { Finding } from '../catalog/reconcile.ts'
import { ActivePool } from './active-pool.ts'
import { thinUuid } from '../node/naming.ts'
import { METADATA_BLOCK_BYTES, SECTOR_BYTES } from '../../units.ts'

/**
 * How long a metadata device may take to tell what is mapped, in milliseconds. After that, the rest is shown without
 * it.
 */
const LOOK_DEADLINE_MS = 5000

/** A pool. Sizes are in bytes, times in milliseconds since 1970. */
export interface DescribedPool {
  /** What comes before the slash in the handles of its volumes and snapshots. */
  readonly name: string
  /** What device-mapper calls it. */
  readonly deviceName: string
  readonly metadataDevice: string
  readonly dataDevice: string
  readonly blockBytes: number
  readonly lowWaterBytes: number
  readonly whenFull: 'error' | 'queue'
  readonly state: 'inactive' | 'read-write' | 'out-of-data-space' | 'read-only' | 'failed' | 'unknown'
  /** Why the state is unknown, or what it means for its user; empty for nothing. */
  readonly problem: string
  /** The catalog's; 64 bits, as a decimal number. */
  readonly transactionId: string
  /** Left out where the state is not known. */
  readonly usage?: DescribedUsage
  readonly volumes: number
  readonly snapshots: number
  /** What was begun and is not settled; empty for nothing. */
  readonly underWay: string
  readonly createdAtMs: number
}

export interface DescribedUsage {
  readonly dataUsedBytes: number
  readonly dataTotalBytes: number
  readonly metadataUsedBytes: number
  readonly metadataTotalBytes: number
  /** The kernel's; 64 bits, as a decimal number. */
  readonly transactionId: string
  /** Metadata block. */
  readonly heldMetadataSnapshot?: number
  readonly needsCheck: boolean
}

/** A volume or a snapshot. */
export interface DescribedThin {
  readonly pool: string
  readonly name: string
  readonly kind: 'volume' | 'snapshot'
  readonly id: string
  readonly thinId: number
  readonly sizeBytes: number
  /** The volume that a snapshot belongs to; its name is empty once it is deleted. */
  readonly volume: string
  readonly volumeId: string
  /** What a snapshot was taken of. */
  readonly origin: string
  /** The pool's clock and transaction id when it was created. */
  readonly creationTime: number
  readonly transactionId: string
  readonly createdAtMs: number
  /** Left out while it is not active. */
  readonly device?: { readonly path: string; readonly readOnly: boolean; readonly openCount: number }
  /** Left out where the pool's metadata cannot be read. */
  readonly mappedBytes?: number
}

export async function describePool(
  deviceMapper: DeviceMapper,
  pool: OwnedPool,
  { thins, intents }: CatalogView,
  machine: PoolMachine
): Promise<DescribedPool> {
  const { name, dataBlockSectors, lowWaterBlocks, transactionId } = pool
  const blockBytes = dataBlockSectors * SECTOR_BYTES
  const count = (kind: OwnedThin['kind']) => thins.filter((each) => each.pool === name && each.kind === kind).length
  const described: DescribedPool = {
    ...{ name, deviceName: pool.dmName, metadataDevice: pool.metadataDevice, dataDevice: pool.dataDevice },
    ...{ blockBytes, lowWaterBytes: lowWaterBlocks * blockBytes },
    transactionId: String(transactionId),
    whenFull: pool.features.split(' ').includes('error_if_no_space') ? 'error' : 'queue',
    state: 'unknown',
    problem: '',
    volumes: count('volume'),
    snapshots: count('snapshot'),
    underWay: intents.find((each) => each.pool === name)?.kind ?? '',
    createdAtMs: pool.createdAt
  }
  try {
    const active = new ActivePool(deviceMapper, pool, machine)
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
  wanted: (thin: OwnedThin) => boolean,
  machine: PoolMachine
): Promise<DescribedThin[]> {
  const inKernel = await new ActivePool(deviceMapper, pool, machine)
    .thins({ deadlineMs: LOOK_DEADLINE_MS })
    .catch(() => undefined)
  const described: DescribedThin[] = []
  for (const thin of thins) {
    if (thin.pool !== pool.name || !wanted(thin)) continue
    const nameOf = (id: string | undefined) => thins.find((each) => each.id === id)?.name ?? ''
    const info = await deviceMapper.info({ uuid: thinUuid(thin) }).catch(() => undefined)
    const mappedBlocks = inKernel?.get(thin.thinId)?.mappedBlocks
    const { name, kind, id, thinId, sizeBytes, creationTime, transactionId } = thin
    described.push({
      ...{ pool: pool.name, name, kind, id, thinId, sizeBytes, creationTime },
      transactionId: String(transactionId),
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

/** What of the catalog and the kernel disagrees. */
export interface DescribedFinding {
  readonly kind: string
  readonly pool: string
  readonly thinId?: number
  readonly what: string
  readonly remedy: string
}

export function describeFinding({ kind, pool, thinId, what, remedy }: Finding): DescribedFinding {
  return { kind, pool, what, remedy, ...(thinId !== undefined && { thinId }) }
}

function stateOf(status: PoolStatus, blockBytes: number): Pick<DescribedPool, 'state' | 'problem' | 'usage'> {
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
      transactionId: String(status.transactionId),
      needsCheck,
      ...(heldRoot !== undefined && { heldMetadataSnapshot: heldRoot })
    }
  }
}
