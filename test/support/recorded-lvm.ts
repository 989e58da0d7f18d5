/**
 * What LVM and device-mapper said of real volumes (test/fixtures/record-lvm.ts), for tests that need no kernel.
 */
import { readdirSync, readFileSync } from 'node:fs'
import type { DeviceInfo, DeviceReference, TableRow } from '../../native/device-mapper.ts'
import { type LogicalVolume, parseLogicalVolumes } from '../../src/agent/lvm/parse.ts'
import type { DeviceMapperPort } from '../../src/agent/node/pool-device.ts'

const folder = new URL('../fixtures/lvm/', import.meta.url)

export interface RecordedReport {
  version: string
  dialect: 'json' | 'json_std'
  text: string
}

export type Scene = 'group' | 'volumes' | 'volumes-with-kernel' | 'merging' | 'merged' | 'origins-removed'

/** A scene as each recorded version of LVM reports it, in each of its dialects. */
export function recordedReports(scene: Scene): RecordedReport[] {
  const name = new RegExp(`^${scene}-([\\d.]+)-(json|json_std)\\.json$`)
  const reports = readdirSync(folder).flatMap((file) => {
    const [, version, dialect] = name.exec(file) ?? []
    if (version === undefined) return []
    return [{ version, dialect: dialect as 'json' | 'json_std', text: readFileSync(new URL(file, folder), 'utf8') }]
  })
  if (reports.length === 0) throw new Error(`no recorded report of ${scene}`)
  return reports
}

/** One of them, parsed. */
export function recordedVolumes(scene: Scene): LogicalVolume[] {
  return parseLogicalVolumes(recordedReports(scene)[0].text)
}

/** The devices of the scene `volumes`, for whoever asks device-mapper. `without`: names of devices to leave out. */
export function recordedDevices(without: readonly string[] = []): DeviceMapperPort {
  const text = readFileSync(new URL('volumes-devices.json', folder), 'utf8')
  const devices = (JSON.parse(text) as { info: DeviceInfo; table: TableRow[] }[]).filter(
    ({ info }) => !without.includes(info.name)
  )
  const find = (reference: DeviceReference) =>
    devices.find(({ info }) =>
      typeof reference === 'string'
        ? info.name === reference
        : 'uuid' in reference
          ? info.uuid === reference.uuid
          : info.major === reference.major && info.minor === reference.minor
    )
  return {
    info: async (reference) => find(reference)?.info,
    table: async (reference) => {
      const device = find(reference)
      if (!device) throw new Error(`device-mapper has no device ${JSON.stringify(reference)}`)
      return device.table
    }
  }
}

/** Devices whose numbers went to another one as soon as they were found: tables asked by number are its. */
export function numbersOfAnother(devices: DeviceMapperPort, another: string): DeviceMapperPort {
  return {
    info: devices.info,
    table: async (reference) =>
      devices.table(typeof reference === 'object' && 'major' in reference ? another : reference)
  }
}
