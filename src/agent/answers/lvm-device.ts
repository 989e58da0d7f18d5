/**
 * A pool of LVM's, asked for by device-mapper's names: `VG-POOL-tpool/VG-LV`. This must give the volume the same
 * identity as `VG/LV`, or its records would be missed. So the device's table tells the thin id and the pool, and the
 * volume group's source does the rest.
 */
import { parseThinTable } from '../../devicemapper/thin/table.ts'
import { DeltamapperError } from '../../errors.ts'
import { type DeviceMapperPort, liveTable } from '../node/pool-device.ts'
import type { SnapshotSource } from '../walks/snapshot.ts'
import type { LvmReporter } from '../lvm/report.ts'
import { thinPoolUuid, volumeGroupSource } from './volume-group.ts'
import { SECTOR_BYTES } from '../../units.ts'

export interface DeviceNamesOptions {
  lvm: Pick<LvmReporter, 'logicalVolumes' | 'allLogicalVolumes'>
  deviceMapper: DeviceMapperPort
}

/** Whether LVM made this device-mapper UUID (UUID_PREFIX in lib/activate/dev_manager.c). */
export function isLvmUuid(uuid: string): boolean {
  return uuid.startsWith('LVM-')
}

/**
 * Answers for the active devices of a pool.
 *
 * `snapshot()` throws DM_NOT_TRACKED for devices that LVM does not know, or knows with another size, and what the
 * volume group's source throws.
 *
 * @param pool its device-mapper name, and its UUID
 */
export function lvmDeviceSource(
  pool: { name: string; uuid: string },
  { lvm, deviceMapper }: DeviceNamesOptions
): SnapshotSource {
  return {
    async snapshot(name) {
      const [device, poolDevice] = [await deviceMapper.info(name), await deviceMapper.info({ uuid: pool.uuid })]
      if (!device?.hasLiveTable || !poolDevice) return undefined
      const [row] = await liveTable(deviceMapper, device)
      const table = row?.targetType === 'thin' ? parseThinTable(row.params) : undefined
      if (!row || !table) return undefined
      const { major, minor } = table.poolDevice
      if (major !== poolDevice.major || minor !== poolDevice.minor) return undefined

      const volumes = await lvm.allLogicalVolumes()
      const poolVolume = volumes.find(
        (each) => each.segmentTypes.includes('thin-pool') && thinPoolUuid(each) === pool.uuid
      )
      const volume = volumes.find(
        (each) =>
          each.vgUuid === poolVolume?.vgUuid && each.poolLv === poolVolume.name && each.thinId === table.deviceId
      )
      if (!volume) throw unknown(`${pool.name}/${name} is thin device ${table.deviceId}, which LVM knows nothing of`)
      const sizeBytes = row.lengthSectors * SECTOR_BYTES
      if (sizeBytes !== volume.sizeBytes) {
        throw unknown(
          `${pool.name}/${name} has ${sizeBytes} bytes, and is a volume of ${volume.sizeBytes} bytes to LVM`
        )
      }
      const snapshot = await volumeGroupSource(volume.vgName, { lvm, deviceMapper }).snapshot(volume.name)
      if (snapshot === undefined || snapshot.identity !== volume.uuid) return undefined
      return { ...snapshot, handle: `${pool.name}/${name}`, writable: snapshot.writable || !device.readOnly }
    }
  }
}

function unknown(what: string): DeltamapperError {
  return new DeltamapperError('DM_NOT_TRACKED', what, 'ask for volumes of LVM as VG/LV')
}
