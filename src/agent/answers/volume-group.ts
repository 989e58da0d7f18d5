/**
 * Snapshots of a volume group: `VG/LV`, active or not. Only their pool must be active. Activating it is the operator's
 * decision: this code changes nothing of LVM's.
 *
 * LVM tells what a volume is (its metadata on disk); device-mapper tells where the pool's metadata is. Between those
 * two, and before the metadata is read, the volume can be removed and its thin id given to another. The transaction id
 * tells them apart: LVM and the pool's metadata both hold the one under which the volume was created. A second look
 * tells whether the names still mean the same once the metadata is open (backend.ts).
 */
import { parseThinTable } from '../../devicemapper/thin/table.ts'
import { DeltamapperError } from '../../errors.ts'
import { dataUuidOf, type DeviceMapperPort, findPoolDevice, liveTable, type PoolDevice } from '../node/pool-device.ts'
import { poolIdentity } from '../node/pool-identity.ts'
import type { Snapshot, SnapshotSource } from '../walks/snapshot.ts'
import type { LogicalVolume } from '../lvm/parse.ts'
import { checkVolumeGroupName, type LvmReporter } from '../lvm/report.ts'
import { byName, fullName, thinVolume } from '../lvm/volume.ts'
import { SECTOR_BYTES } from '../../units.ts'

export interface VolumeGroupSourceOptions {
  lvm: Pick<LvmReporter, 'logicalVolumes'>
  deviceMapper: DeviceMapperPort
}

/**
 * Answers for the volumes of a group.
 *
 * `snapshot()` throws DM_NOT_TRACKED for a volume that is not thin, DM_POOL_INACTIVE, DM_LVM_FAILED, and what
 * device-mapper calls throw.
 */
export function volumeGroupSource(
  volumeGroup: string,
  { lvm, deviceMapper }: VolumeGroupSourceOptions
): SnapshotSource {
  checkVolumeGroupName(volumeGroup)
  return {
    async snapshot(name) {
      const volumes = await lvm.logicalVolumes(volumeGroup)
      if (!volumes) {
        throw new DeltamapperError(
          'DM_SNAPSHOT_NOT_FOUND',
          `LVM sees no volume group ${volumeGroup} with volumes here, so no ${volumeGroup}/${name}`,
          'check the handle, and that `vgs` lists the group where the agent runs'
        )
      }
      const named = byName(volumes)
      const lv = named.get(name)
      if (!lv) return undefined
      const { pool, thinId, transactionId, origin, externalOrigin } = thinVolume(lv, named)
      const writable = await checkActiveTable(deviceMapper, lv, thinId)
      const device = await activePool(deviceMapper, pool)
      return {
        kind: 'thin',
        handle: fullName(lv),
        identity: lv.uuid,
        writable,
        madeReadOnly: lv.attributes.permissions === 'read-only',
        ...(origin && { volume: origin.uuid, volumeName: fullName(origin) }),
        thinId,
        sizeBytes: lv.sizeBytes,
        transactionId,
        metadataPath: device.metadataPath,
        metadataDevice: device.metadataDevice,
        dataUuid: await dataUuidOf(deviceMapper, device),
        poolIdentity: await poolIdentity(deviceMapper, device),
        live: true,
        pool: { uuid: thinPoolUuid(pool) },
        poolDevice: { major: device.major, minor: device.minor },
        ...(externalOrigin && {
          externalOrigin: { identity: externalOrigin.uuid, sizeBytes: externalOrigin.sizeBytes }
        })
      } satisfies Snapshot
    }
  }
}

/**
 * Checks that an active volume's device is what LVM says. A merge that had to wait until its origin was closed leaves
 * the origin's old size on the device, until the next activation (seen with 2.03.16). Writes beyond LVM's size would be
 * left out.
 *
 * @returns whether there is a writable device
 */
async function checkActiveTable(deviceMapper: DeviceMapperPort, lv: LogicalVolume, thinId: number): Promise<boolean> {
  // With a classic snapshot over it, the thin device is one below.
  const uuid = volumeUuid(lv)
  const info = (await deviceMapper.info({ uuid: `${uuid}-real` })) ?? (await deviceMapper.info({ uuid }))
  if (!info?.hasLiveTable) return false
  const [row] = await liveTable(deviceMapper, info)
  // Reading tells whether a pool has failed.
  const table = row?.targetType === 'thin' ? parseThinTable(row.params) : undefined
  if (!row || !table) return !info.readOnly
  const sizeBytes = row.lengthSectors * SECTOR_BYTES
  if (table.deviceId === thinId && sizeBytes === lv.sizeBytes) return !info.readOnly
  throw new DeltamapperError(
    'DM_NOT_TRACKED',
    `${fullName(lv)} is thin device ${thinId} of ${lv.sizeBytes} bytes to LVM, and its active device is thin device ` +
      `${table.deviceId} of ${sizeBytes} bytes`,
    `deactivate and activate it (a merge leaves it like that: lvchange -an ${fullName(lv)}, then -ay), or ask again if it was just resized`
  )
}

/** @throws DM_POOL_INACTIVE */
async function activePool(deviceMapper: DeviceMapperPort, pool: LogicalVolume): Promise<PoolDevice> {
  const device = await findPoolDevice(deviceMapper, { uuid: thinPoolUuid(pool) })
  if (!device) {
    throw new DeltamapperError(
      'DM_POOL_INACTIVE',
      `the thin pool ${fullName(pool)} is not active here`,
      `activate it: lvchange -ay -K ${fullName(pool)}`
    )
  }
  return device
}

/**
 * The device-mapper UUID of a pool's thin-pool target (build_dm_uuid, lib/misc/lvm-string.c). It is the same whether
 * the target is a device of its own below one for the volume (VG-POOL-tpool), or the volume's device (VG-POOL), as with
 * pools that LVM has not put a volume into.
 */
export function thinPoolUuid(pool: Pick<LogicalVolume, 'vgUuid' | 'uuid'>): string {
  return `${volumeUuid(pool)}-tpool`
}

/** The device-mapper UUID of a volume's own device; those that it stands on have a word more. */
export function volumeUuid({ vgUuid, uuid }: Pick<LogicalVolume, 'vgUuid' | 'uuid'>): string {
  return `LVM-${vgUuid.replaceAll('-', '')}${uuid.replaceAll('-', '')}`
}
