/**
 * Every device-mapper device of the node, at one look, for whoever has to tell ours from others'.
 */
import type { DeviceInfo, DeviceMapper, TableRow } from '../../../native/device-mapper.ts'
import { DeltamapperError } from '../../errors.ts'

export type SurveyPort = Pick<DeviceMapper, 'list' | 'info' | 'table' | 'status'>

/**
 * A device-mapper device, with the one row that thin pools and thin devices have; undefined if there is no table, or a
 * longer one.
 */
export interface SurveyedDevice {
  readonly info: DeviceInfo
  readonly row: TableRow | undefined
}

/**
 * Every device-mapper device of the node. Devices that disappear meanwhile are left out. They are asked about by
 * number: one that is renamed meanwhile keeps it, and is in use as before.
 */
export async function surveyDevices(deviceMapper: SurveyPort): Promise<SurveyedDevice[]> {
  const devices: SurveyedDevice[] = []
  for (const { major, minor } of await deviceMapper.list()) {
    const number = { major, minor }
    const info = await deviceMapper.info(number)
    if (!info) continue
    const rows = info.hasLiveTable ? await deviceMapper.table(number).catch(noneIfGone) : []
    devices.push({ info, row: rows.length === 1 ? rows[0] : undefined })
  }
  return devices
}

export function isLvm({ uuid }: Pick<DeviceInfo, 'uuid'>): boolean {
  return uuid.startsWith('LVM-')
}

function noneIfGone(error: unknown): readonly TableRow[] {
  if (error instanceof DeltamapperError && error.code === 'DM_NO_SUCH_DEVICE') return []
  throw error
}
