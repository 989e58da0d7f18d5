/**
 * What could be merged into a data device: its copy-on-write snapshots. `lvconvert --merge` puts a snapshot's content into its origin from
 * below, which no counter of the origin shows; what does show is that the snapshot is gone when it is done. A thin volume becomes another
 * thin device of its pool in a merge.
 *
 * device-mapper is asked, and not LVM: its snapshots are active whenever their origin is.
 */
import { readdir, readFile } from 'node:fs/promises'
import type { DeviceMapper } from '../../../../native/device-mapper.ts'
import type { TableRow } from '../../../../native/device.ts'
import { parseThinTable } from '../../../devicemapper/thin/table.ts'
import { type DeviceNumber, TargetWords } from '../../../devicemapper/target-words.ts'

/** How many are told: each makes every write to the origin slower, so that nobody has as many; and the catalog has room for them. */
const MOST = 64

/** @returns what each is known by, lastingly; nothing for a device that is none of device-mapper's */
export async function mergeable(
  deviceMapper: Pick<DeviceMapper, 'info' | 'table'>,
  data: DeviceNumber
): Promise<string[]> {
  if (!(await deviceMapper.info(data))) return []
  const [row] = await deviceMapper.table(data)
  if (row?.targetType !== 'snapshot-origin' && row?.targetType !== 'snapshot-merge') return thinDevice(row)
  // Its data are in a device of their own then, and the snapshots stand on that, too.
  const real = new TargetWords(row.params, 'the table of an origin').device()
  const [realRow] = await deviceMapper.table(real)
  const found = thinDevice(realRow)
  const folder = `/sys/dev/block/${real.major}:${real.minor}/holders`
  for (const holder of await readdir(folder)) {
    // It may go in between.
    const [major, minor] = (await readFile(`${folder}/${holder}/dev`, 'utf8').catch(() => '')).split(':').map(Number)
    if (major === undefined || minor === undefined) continue
    const info = await deviceMapper.info({ major, minor })
    const [holderRow] = info ? await deviceMapper.table({ major, minor }) : []
    // (Not by its name: that can be changed. LVM's UUIDs begin with the group's.)
    if (info && holderRow?.targetType === 'snapshot') found.push(`snapshot ${(info.uuid || info.name).slice(-32)}`)
  }
  return found.sort().slice(0, MOST)
}

function thinDevice(row: TableRow | undefined): string[] {
  const table = row?.targetType === 'thin' ? parseThinTable(row.params) : undefined
  return table ? [`thin device ${table.deviceId}`] : []
}
