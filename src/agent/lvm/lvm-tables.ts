/**
 * Whether a volume's table is what LVM's metadata says of it: somebody may have given it another with dmsetup, and what
 * was written by way of that is in nobody's store.
 *
 *     LVM     segment  0 … 8192  striped  on disk X at sector 2048
 *     kernel  0 8192 linear 8:16 2048
 *
 * Linear and striped segments are held against it place by place, thin ones by pool and number. Of the others (raid,
 * cache, VDO) LVM's words are not the kernel's: whatever they stand on has to be of the group.
 */
import { stat } from 'node:fs/promises'
import { decodeDeviceNumber } from '../../../native/device.ts'
import type { DeviceMapper, DeviceNumber, TableRow } from '../../../native/device-mapper.ts'
import type { Place, Segment } from './segments.ts'

/** What is known of the group that the volume is of. */
export interface GroupParts {
  /** LVM's id. */
  readonly vgUuid: string
  /** Device nodes of its disks, by LVM's id; some may be missing, and some not be seen from here. */
  readonly disks: ReadonlyMap<string, string>
}

/** @returns what is unlike, as a clause; undefined where nothing is */
export async function unlikeLvm(
  deviceMapper: Pick<DeviceMapper, 'info'>,
  table: readonly TableRow[],
  segments: readonly Segment[],
  group: GroupParts
): Promise<string | undefined> {
  const parts = new Parts(deviceMapper, group)
  const inOrder = segments.toSorted((one, other) => one.startSector - other.startSector)
  if (inOrder.length !== table.length) return `it has ${table.length} targets, and ${inOrder.length} segments to LVM`
  for (const [i, segment] of inOrder.entries()) {
    const row = table[i]
    const isPlaced = row.startSector === segment.startSector && row.lengthSectors === segment.lengthSectors
    if (isPlaced && (await parts.matches(row, segment))) continue
    return `it has ${row.startSector} ${row.lengthSectors} ${row.targetType} ${row.params} where LVM's segment is another`
  }
  return undefined
}

class Parts {
  readonly #deviceMapper: Pick<DeviceMapper, 'info'>
  readonly #group: GroupParts

  constructor(deviceMapper: Pick<DeviceMapper, 'info'>, group: GroupParts) {
    this.#deviceMapper = deviceMapper
    this.#group = group
  }

  async matches({ targetType, params }: TableRow, segment: Segment): Promise<boolean> {
    const words = params.trim().split(/\s+/)
    const { type, stripes, stripeSectors, thin } = segment
    if (type === 'striped') {
      const head = stripes.length === 1 ? [] : [stripes.length, stripeSectors].map(String)
      if (targetType !== (stripes.length === 1 ? 'linear' : 'striped')) return false
      if (words.length !== head.length + 2 * stripes.length || head.some((word, i) => words[i] !== word)) return false
      const places = words.slice(head.length)
      for (const [i, place] of stripes.entries()) {
        if (!(await this.#isAt(place, places[2 * i], places[2 * i + 1]))) return false
      }
      return true
    }
    if (thin) return targetType === 'thin' && words[1] === String(thin.deviceId) && this.#isOf(words[0], thin.pool)
    for (const word of words) if (/^\d+:\d+$/.test(word) && !(await this.#isOfGroup(word))) return false
    return true
  }

  /** A disk that is missing has something else in its place: nothing is kept there. */
  async #isAt({ disk, volume, sector }: Place, device: string, offset: string): Promise<boolean> {
    if (volume !== undefined) return offset === String(sector) && this.#isOf(device, volume)
    const path = this.#group.disks.get(disk ?? '')
    const known = path === undefined ? undefined : await numberOf(path)
    if (known === undefined) return path === undefined || offset === String(sector)
    return device === known && offset === String(sector)
  }

  /** Of a volume of the group by its id, or one that LVM has made for it. */
  async #isOf(device: string, volume = ''): Promise<boolean> {
    const [major, minor] = device.split(':').map(Number)
    const uuid = `LVM-${(this.#group.vgUuid + volume).replaceAll('-', '')}`
    return (await this.#deviceMapper.info({ major, minor }))?.uuid.startsWith(uuid) ?? false
  }

  async #isOfGroup(device: string): Promise<boolean> {
    const disks = await Promise.all([...this.#group.disks.values()].map(numberOf))
    return disks.some((disk) => disk === device || disk === undefined) || (await this.#isOf(device))
  }
}

/** Of a device node, as tables have it; undefined where it cannot be seen from here. */
async function numberOf(path: string): Promise<string | undefined> {
  const facts = await stat(path).catch(() => undefined)
  if (!facts?.isBlockDevice()) return undefined
  const { major, minor }: DeviceNumber = decodeDeviceNumber(facts.rdev)
  return `${major}:${minor}`
}
