/**
 * The classic snapshots of a data device, which could be merged into it. `lvconvert --merge` writes a snapshot's
 * content into its origin from below, and no counter of the origin shows that. But the snapshot is gone afterwards. A
 * merge into a thin volume gives it another thin device of its pool.
 *
 * This asks device-mapper, not LVM: a classic snapshot is active whenever its origin is.
 */
import { readdir, readFile } from 'node:fs/promises'
import type { DeviceMapper } from '../../../../native/device-mapper.ts'
import type { TableRow } from '../../../../native/device.ts'
import { parseThinTable } from '../../../devicemapper/thin/table.ts'
import { type DeviceNumber, TargetWords } from '../../../devicemapper/target-words.ts'

/**
 * The most snapshots that are listed. Each slows down every write to the origin, so nobody has as many; and the catalog
 * has room for them.
 */
const MOST = 64

/** @returns a lasting identity of each; none for a device that is not device-mapper's */
export async function mergeable(
  deviceMapper: Pick<DeviceMapper, 'info' | 'table'>,
  data: DeviceNumber
): Promise<string[]> {
  if (!(await deviceMapper.info(data))) return []
  const [row] = await deviceMapper.table(data)
  if (row?.targetType !== 'snapshot-origin' && row?.targetType !== 'snapshot-merge') return thinDevice(row)
  // Its data are in a device of their own then, and the snapshots stand on that as well.
  const real = new TargetWords(row.params, 'the table of an origin').device()
  const [realRow] = await deviceMapper.table(real)
  const found = thinDevice(realRow)
  const folder = `/sys/dev/block/${real.major}:${real.minor}/holders`
  for (const holder of await readdir(folder)) {
    // It may disappear in between.
    const [major, minor] = (await readFile(`${folder}/${holder}/dev`, 'utf8').catch(() => '')).split(':').map(Number)
    if (major === undefined || minor === undefined) continue
    const info = await deviceMapper.info({ major, minor })
    const [holderRow] = info ? await deviceMapper.table({ major, minor }) : []
    // (Not by name, which can change. LVM's UUIDs begin with the group's.)
    if (info && holderRow?.targetType === 'snapshot') found.push(`snapshot ${(info.uuid || info.name).slice(-32)}`)
  }
  return found.sort().slice(0, MOST)
}

function thinDevice(row: TableRow | undefined): string[] {
  const table = row?.targetType === 'thin' ? parseThinTable(row.params) : undefined
  return table ? [`thin device ${table.deviceId}`] : []
}
