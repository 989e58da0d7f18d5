/**
 * Snapshots of an owned pool: `POOL/NAME`, with size, volume and identity from the catalog. So a snapshot may be
 * inactive; only its pool must be active.
 */
import { DeltamapperError } from '../../errors.ts'
import type { Catalog } from '../catalog/catalog.ts'
import { dataUuidOf, type DeviceMapperPort, findPoolDevice } from '../node/pool-device.ts'
import { poolIdentity } from '../node/pool-identity.ts'
import type { Snapshot, SnapshotSource } from '../walks/snapshot.ts'
import { poolUuid, thinUuid } from '../node/naming.ts'
import { SECTOR_BYTES } from '../../units.ts'

/**
 * Answers for the volumes and snapshots of a pool.
 *
 * `snapshot()` throws DM_POOL_INACTIVE; DM_CATALOG_DISAGREES when a device has another size than the catalog says; and
 * what the catalog and device-mapper calls throw.
 */
export function ownedPoolSource(
  pool: string,
  catalog: { readonly ownedPools: Pick<Catalog['ownedPools'], 'findThin' | 'findThinByName'> },
  deviceMapper: DeviceMapperPort
): SnapshotSource {
  return {
    async snapshot(name) {
      const thin = await catalog.ownedPools.findThinByName(pool, name)
      if (!thin) return undefined
      const device = await findPoolDevice(deviceMapper, { uuid: poolUuid({ name: pool }) })
      if (!device) {
        throw new DeltamapperError(
          'DM_POOL_INACTIVE',
          `pool ${pool} is not active`,
          `activate it: \`deltamapper pool activate ${pool}\``
        )
      }
      const writable = await refuseOtherSize(deviceMapper, `${pool}/${name}`, thinUuid(thin), thin.sizeBytes)
      const { thinId, sizeBytes, transactionId } = thin
      return {
        kind: 'thin',
        handle: `${pool}/${name}`,
        identity: thin.id,
        writable,
        // Its snapshots are active read-only, unless somebody asks for a writable one.
        madeReadOnly: thin.kind === 'snapshot' && !writable,
        // A volume is not a snapshot of itself.
        ...(thin.kind === 'snapshot' && { volume: thin.volume, volumeName: await volumeName(thin.volume) }),
        ...{ thinId, sizeBytes, transactionId },
        metadataPath: device.metadataPath,
        metadataDevice: device.metadataDevice,
        dataUuid: await dataUuidOf(deviceMapper, device),
        poolIdentity: await poolIdentity(deviceMapper, device),
        live: true,
        pool: { uuid: poolUuid({ name: pool }) },
        poolDevice: { major: device.major, minor: device.minor }
      } satisfies Snapshot
    }
  }

  async function volumeName(id: string): Promise<string> {
    const volume = await catalog.ownedPools.findThin(id)
    return volume ? `${pool}/${volume.name}` : `a volume of ${pool} that was deleted (${id})`
  }
}

/** Blocks beyond the catalog's size would be missing from the answer. @returns whether it has a writable device */
async function refuseOtherSize(
  deviceMapper: DeviceMapperPort,
  handle: string,
  uuid: string,
  sizeBytes: number
): Promise<boolean> {
  const info = await deviceMapper.info({ uuid })
  if (!info?.hasLiveTable) return false
  const [row] = await deviceMapper.table({ uuid })
  const activeBytes = (row?.lengthSectors ?? 0) * SECTOR_BYTES
  if (activeBytes === sizeBytes) return !info.readOnly
  throw new DeltamapperError(
    'DM_CATALOG_DISAGREES',
    `${handle} has ${sizeBytes} bytes in the catalog, and its device ${info.name} has ${activeBytes}`,
    '`deltamapper volume grow` to the larger size sets both, `deltamapper volume deactivate` takes the device away'
  )
}
