/**
 * Snapshots of a plain pool, made with dmsetup: `POOL/NAME`, both device-mapper names, read from tables alone.
 *
 *   POOL   0 131072 thin-pool 254:0 254:1 128 0 0        → the metadata device, 254:0
 *   NAME   0 32768 thin 254:2 7                          → pool 254:2, device id 7, 32768 sectors
 *
 * An inactive device has no table, and thin metadata holds no sizes. So for `thin-ID` (a bare device id), only its
 * maker knows the name, the size and the origin.
 */
import { MAX_DEVICES } from '../../devicemapper/thin/device-details.ts'
import type { DeviceNumber } from '../../devicemapper/target-words.ts'
import { parseThinTable, type ThinTable } from '../../devicemapper/thin/table.ts'
import { DeltamapperError } from '../../errors.ts'
import { type DeviceMapperPort, findPoolDevice, liveTable } from '../node/pool-device.ts'
import { poolIdentity } from '../node/pool-identity.ts'
import type { Snapshot, SnapshotSource } from '../walks/snapshot.ts'
import { SECTOR_BYTES } from '../../units.ts'

/**
 * Answers for the thin devices of a pool.
 *
 * `snapshot()` throws DM_POOL_INACTIVE; DM_NOT_TRACKED for devices that are not thin, or over an external origin, and
 * for ids whose size nobody knows; and what device-mapper calls throw.
 *
 * @param pool device-mapper name of the device that has the thin-pool target
 */
export function deviceMapperSource(pool: string, deviceMapper: DeviceMapperPort): SnapshotSource {
  return {
    async snapshot(name) {
      const poolDevice = await findPoolDevice(deviceMapper, pool)
      if (!poolDevice) {
        throw new DeltamapperError(
          'DM_POOL_INACTIVE',
          `there is no active thin pool ${pool} here`,
          'create it (`dmsetup create`) with its metadata and data devices, or check the handle'
        )
      }
      const handle = `${pool}/${name}`
      const device = await findThinDevice(deviceMapper, handle, name)
      const namedId = thinIdOf(name)
      if (!device) {
        if (namedId === undefined) return undefined
        throw sizeUnknown(handle, namedId)
      }
      const { deviceId, sizeBytes, writable } = device
      if (device.poolDevice.major !== poolDevice.major || device.poolDevice.minor !== poolDevice.minor) return undefined
      if (namedId !== undefined && namedId !== deviceId) throw ambiguous(handle, name, namedId, deviceId)
      if (device.externalOrigin) throw overExternalOrigin(handle, device.externalOrigin)
      return {
        kind: 'thin',
        handle,
        thinId: deviceId,
        sizeBytes,
        writable,
        metadataPath: poolDevice.metadataPath,
        metadataDevice: poolDevice.metadataDevice,
        poolIdentity: await poolIdentity(deviceMapper, poolDevice),
        live: true,
        pool
      } satisfies Snapshot
    }
  }
}

/** The active device of this name; undefined when there is none. */
async function findThinDevice(
  deviceMapper: DeviceMapperPort,
  handle: string,
  name: string
): Promise<(ThinTable & { sizeBytes: number; writable: boolean }) | undefined> {
  const info = await deviceMapper.info(name)
  if (!info?.hasLiveTable) return undefined
  const [row, ...more] = await liveTable(deviceMapper, info)
  // It is just being made or removed: its table is not live (DM_TABLE_STATUS reports no target then).
  if (!row) return undefined
  if (row.targetType !== 'thin' || more.length > 0) {
    throw new DeltamapperError(
      'DM_NOT_TRACKED',
      `${handle}: device-mapper device ${name} is not thin (its table is of ${row.targetType})`,
      'take a full backup; only thin devices of the pool can be tracked'
    )
  }
  const table = parseThinTable(row.params)
  if (!table) {
    throw new DeltamapperError(
      'DM_POOL_FAILED',
      `${handle} is in a pool that has failed`,
      'find out why in the kernel log, deactivate the pool, and repair it (`thin_check`, `thin_repair`)'
    )
  }
  const sizeBytes = row.lengthSectors * SECTOR_BYTES
  if (!Number.isSafeInteger(sizeBytes)) {
    throw new DeltamapperError(
      'DM_NOT_TRACKED',
      `${handle} has ${row.lengthSectors} sectors, more than can be told exactly in bytes`,
      'take a full backup'
    )
  }
  return { ...table, sizeBytes, writable: !info.readOnly }
}

/** The id in a name of the form `thin-ID`. */
function thinIdOf(name: string): number | undefined {
  const id = /^thin-(0|[1-9]\d{0,7})$/.exec(name)?.[1]
  return id !== undefined && Number(id) < MAX_DEVICES ? Number(id) : undefined
}

function sizeUnknown(handle: string, thinId: number): DeltamapperError {
  return new DeltamapperError(
    'DM_NOT_TRACKED',
    `${handle}: no device of this name is active, and the size of thin device ${thinId} is known nowhere else`,
    'activate it (`dmsetup create NAME --readonly --table "0 SECTORS thin POOL ID"`) and ask for it by name, ' +
      'or let the agent own the pool: its catalog keeps sizes'
  )
}

/**
 * `dmsetup create thin-3` can make a device of any id. Then the name means two things, and one of them would be a wrong
 * backup.
 */
function ambiguous(handle: string, name: string, namedId: number, thinId: number): DeltamapperError {
  return new DeltamapperError(
    'DM_NOT_TRACKED',
    `${handle} could be thin device ${namedId}, or the active device ${name}, which is thin device ${thinId}`,
    `give that device another name (dmsetup rename ${name} …)`
  )
}

/**
 * A table can name another external origin each time that it is loaded, and nothing protects the origin from writes.
 * LVM takes care of both for its own.
 */
function overExternalOrigin(handle: string, { major, minor }: DeviceNumber): DeltamapperError {
  return new DeltamapperError(
    'DM_NOT_TRACKED',
    `the external origin ${major}:${minor} shows where ${handle} maps nothing, and nothing tells whether it is the same, with the same content, as ever`,
    'back up every block, or copy what is outside of the pool into a thin volume'
  )
}
