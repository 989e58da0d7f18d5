/**
 * The block device that has a snapshot's data: which one it is, whether it is active, and opening it to be watched.
 *
 *   thin and classic snapshots     /dev/SOURCE/NAME, or what --device says
 *   snapshots of tracked volumes   LVM's snapshot below, which is found by its tag
 */
import { access, stat } from 'node:fs/promises'
import type { DeviceMapper, DeviceNumber } from '../../../native/device-mapper.ts'
import { decodeDeviceNumber } from '../../../native/device.ts'
import { classicDevices, entriesCounted } from '../../agent/node/classic-devices.ts'
import { findPoolDevice } from '../../agent/node/pool-device.ts'
import { DeltamapperError } from '../../errors.ts'
import type { AdminClient } from '../../grpc/admin-client.ts'
import type { Handle } from '../../handle.ts'
import { ClassicDeviceData } from '../../nbd/classic-device.ts'
import { ThinDeviceData } from '../../nbd/thin-device.ts'
import type { WatchedDevice } from '../../nbd/watched-device.ts'
import { UsageError } from '../command-line/failure.ts'
import { runLvm } from '../lvm/run-lvm.ts'

type TrackedSnapshot = Awaited<ReturnType<AdminClient['listEraSnapshots']>>['snapshots'][number]

/** Where the data of a snapshot are. */
export interface DevicePlace {
  readonly path: string
  /** Group and volume, or pool and device, as LVM and device-mapper call it. */
  readonly handle: Handle
}

/** The tracked volume's snapshots whose data are there; undefined where the agent tracks no volume of this name. */
export async function trackedSnapshots(admin: AdminClient, volume: string): Promise<TrackedSnapshot[] | undefined> {
  try {
    return (await admin.listEraSnapshots({ volume })).snapshots
  } catch (error) {
    // There is no such volume; or this agent takes no orders, and says of which kind its answers are.
    const isNone = error instanceof DeltamapperError && ['DM_NO_SUCH_DEVICE', 'DM_SERVER_FAILED'].includes(error.code)
    if (isNone) return undefined
    throw error
  }
}

/** @param device what --device says @throws UsageError where nothing says where it is */
export async function placeOf(handle: Handle, device: string | undefined): Promise<DevicePlace> {
  const { source, name } = handle
  if (device !== undefined) return { handle, path: device }
  if (source === '*') throw new UsageError(`*/${name} does not say where its device is`, 'name it with --device')
  const path = `/dev/${source}/${name}`
  // Pools that the agent has made have no folder there.
  const mapped = `/dev/mapper/${[source, name].map((each) => each.replaceAll('-', '--')).join('-')}`
  return { handle, path: (await isMissing(path)) && !(await isMissing(mapped)) ? mapped : path }
}

/**
 * The handle of LVM's snapshot below a snapshot of a tracked volume.
 *
 * @throws DM_NOT_TRACKED where LVM did not take it; DM_NO_SUCH_DEVICE where it is gone; DM_LVM_FAILED
 */
export async function placeBelow({ volume, name, lower, lowerTag }: TrackedSnapshot): Promise<Handle> {
  if (lowerTag === '') {
    throw new DeltamapperError(
      'DM_NOT_TRACKED',
      `LVM did not take ${volume}/${name} (${lower}): nothing would tell whether a device still is what it was`,
      `copy from its device what \`deltamapper delta … -o ranges\` names, and keep it read-only meanwhile`
    )
  }
  const fields = ['--noheadings', '--separator', '/', '-o', 'vg_name,lv_name', '--select', `lv_tags=${lowerTag}`]
  const found = (await runLvm(['lvs', '--readonly', ...fields])).trim().split(/\s+/)
  const [, group, lv] = (found.length === 1 && /^([^/]+)\/([^/]+)$/.exec(found[0])) || []
  if (group === undefined || lv === undefined) {
    throw new DeltamapperError(
      'DM_NO_SUCH_DEVICE',
      `the data of ${volume}/${name} (${lower}) are not there: ${found[0] === '' ? 'no' : 'more than one'} volume has its tag`,
      'take a new snapshot; `deltamapper snapshot delete` takes data away properly'
    )
  }
  return { source: group, name: lv }
}

/**
 * Makes sure that it is active.
 *
 * @returns what undoes it; undefined where nothing was done
 * @throws DM_NO_SUCH_DEVICE; DM_LVM_FAILED
 */
export async function activated(
  { path, handle: { source, name } }: DevicePlace,
  activate: boolean
): Promise<(() => Promise<void>) | undefined> {
  if (!(await isMissing(path))) return undefined
  const volume = `${source}/${name}`
  if (!activate) {
    throw new DeltamapperError(
      'DM_NO_SUCH_DEVICE',
      `there is no ${path}: ${volume} is not active, or has its device elsewhere`,
      `activate it (lvchange -ay -K ${volume}; in a pool of the agent's, deltamapper snapshot activate ${volume}), or say ` +
        '--activate, which has LVM do it and undoes it; or name its device with --device'
    )
  }
  await runLvm(['lvchange', '-ay', '-K', '--', volume])
  return async () => void (await runLvm(['lvchange', '-an', '--', volume]))
}

/**
 * @param untouched what is written to it is recorded nowhere, so that it has to be as it was taken
 * @throws what opening the snapshot's device throws, of whichever kind it is
 */
export async function openDevice(
  { path, handle }: DevicePlace,
  deviceMapper: DeviceMapper,
  { bytesPerSecond, untouched }: { bytesPerSecond: number | undefined; untouched: boolean }
): Promise<WatchedDevice> {
  const { rdev } = await stat(path)
  const [row] = await deviceMapper.table(decodeDeviceNumber(rdev)).catch(() => [])
  if (row?.targetType === 'snapshot') {
    const state = async (uuid: string, originUuid: string) => {
      const reference = { handle: `${handle.source}/${handle.name}`, uuid, originUuid }
      const devices = await classicDevices(deviceMapper, reference)
      await entriesCounted(deviceMapper, reference, devices)
      return devices
    }
    return ClassicDeviceData.open(path, handle, { deviceMapper, state, bytesPerSecond, untouched })
  }
  // Whatever else it is, this says why it cannot be served.
  const findPool = (pool: DeviceNumber) => findPoolDevice(deviceMapper, pool)
  return ThinDeviceData.open(path, { deviceMapper, findPool, handle, bytesPerSecond, untouched })
}

async function isMissing(path: string): Promise<boolean> {
  return access(path).then(
    () => false,
    (error: NodeJS.ErrnoException) => error.code === 'ENOENT'
  )
}
