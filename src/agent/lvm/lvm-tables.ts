/**
 * Whether a volume's table is what LVM's metadata says of it: somebody may have given it another with dmsetup, and what
 * was written by way of that is in nobody's store.
 *
 *     LVM     segment  0 … 8192  striped  on disk X at sector 2048
 *     kernel  0 8192 linear 8:16 2048
 *
 * Linear and striped segments are held against it place by place, and those of VDO, which are linear to the kernel;
 * thin ones by pool and number. Of the others (raid, mirror, cache) LVM's words are not the kernel's: the target has to
 * be that of the type, and whatever it stands on of the group.
 */
import type { DeviceMapper, TableRow } from '../../../native/device-mapper.ts'
import { GroupDisks, type KnownDisks } from './group-disks.ts'
import type { Place, Segment } from './segments.ts'

/** What is known of the group that the volume is of. */
export interface GroupParts extends KnownDisks {
  /** LVM's id. */
  readonly vgUuid: string
}

/**
 * Types of segments that stand on other volumes, and in them the name of the kernel's target (`add_target_line` of
 * LVM's lib/raid, lib/mirror, lib/cache_segtype, lib/writecache, lib/integrity).
 */
const standingOnParts = /^(raid(?=\d)|(?:mirror|cache|writecache|integrity)$)/
/** Types that stand on nothing (lib/zero, lib/error); their target has the same name. */
const standingOnNothing: readonly string[] = ['zero', 'error']

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
    const said = `it has ${row.startSector} ${row.lengthSectors} ${row.targetType} ${row.params}`
    const missing = segment.stripes.some(({ disk }) => disk !== undefined && !group.disks.has(disk))
    return `${said} where LVM's segment is another${missing ? ', or is on a disk that LVM misses: bring it back' : ''}`
  }
  return undefined
}

class Parts {
  readonly #deviceMapper: Pick<DeviceMapper, 'info'>
  readonly #group: GroupParts
  readonly #disks: GroupDisks

  constructor(deviceMapper: Pick<DeviceMapper, 'info'>, group: GroupParts) {
    this.#deviceMapper = deviceMapper
    this.#group = group
    this.#disks = GroupDisks.of(group)
  }

  async matches({ targetType, params }: TableRow, { type, stripes, stripeSectors, thin }: Segment): Promise<boolean> {
    const words = params.trim().split(/\s+/).filter(Boolean)
    if (stripes.length > 0) return this.#areAt(targetType, words, { stripes, stripeSectors })
    if (thin) {
      const { pool, deviceId, externalOrigin } = thin
      if (targetType !== 'thin' || words[1] !== String(deviceId)) return false
      if (words.length !== (externalOrigin === undefined ? 2 : 3)) return false
      return (await this.#isOf(words[0], pool)) && (words.length === 2 || (await this.#isOf(words[2], externalOrigin)))
    }
    if (standingOnNothing.includes(type)) return targetType === type && words.length === 0
    if (targetType !== standingOnParts.exec(type)?.[1]) return false
    const devices = words.filter((word) => /^\d+:\d+$/.test(word))
    for (const device of devices) if (!(await this.#isOfGroup(device))) return false
    return devices.length > 0
  }

  /** One place is a linear target, or a striped one with a single stripe (`use_linear_target` in lvm.conf). */
  async #areAt(
    targetType: string,
    words: readonly string[],
    { stripes, stripeSectors }: Pick<Segment, 'stripes' | 'stripeSectors'>
  ): Promise<boolean> {
    const head = targetType === 'linear' ? [] : words.slice(0, 2)
    if (targetType === 'linear' ? stripes.length > 1 : targetType !== 'striped') return false
    if (head.length > 0 && head[0] !== String(stripes.length)) return false
    if (stripes.length > 1 && head[1] !== String(stripeSectors)) return false
    const places = words.slice(head.length)
    if (places.length !== 2 * stripes.length) return false
    for (const [i, place] of stripes.entries()) {
      if (!(await this.#isAt(place, places[2 * i], places[2 * i + 1]))) return false
    }
    return true
  }

  /** Where LVM misses the disk, it has made an error target in its place, or left the device that the disk was. */
  async #isAt({ disk = '', volume, sector }: Place, device: string, offset: string): Promise<boolean> {
    if (volume !== undefined) return offset === String(sector) && this.#isOf(device, volume)
    if (offset === String(sector) && (await this.#disks.isAt(disk, device))) return true
    return !this.#group.disks.has(disk) && /-missing_\d+_\d+$/.test(await this.#uuidInGroup(device))
  }

  /** Of a volume of the group by its id, or one that LVM has made for it. */
  async #isOf(device: string, volume = ''): Promise<boolean> {
    return volume !== '' && (await this.#uuidInGroup(device)).startsWith(volume.replaceAll('-', ''))
  }

  async #isOfGroup(device: string): Promise<boolean> {
    return (await this.#disks.has(device)) || (await this.#uuidInGroup(device)) !== ''
  }

  /** A device's UUID without that of the group; empty where it is of no volume of the group. */
  async #uuidInGroup(device: string): Promise<string> {
    if (!/^\d+:\d+$/.test(device)) return ''
    const [major, minor] = device.split(':').map(Number)
    const group = `LVM-${this.#group.vgUuid.replaceAll('-', '')}`
    const uuid = (await this.#deviceMapper.info({ major, minor }))?.uuid ?? ''
    return uuid.startsWith(group) ? uuid.slice(group.length) : ''
  }
}
