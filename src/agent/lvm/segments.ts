/**
 * What a logical volume consists of, as LVM's metadata has it, in the units of device-mapper's tables:
 *
 *     segment1 { start_extent = 0  extent_count = 4  type = "striped"  stripe_count = 1  stripes = ["pv0", 12] }
 *
 * Extents have one size in a group; on a disk, they begin at its `pe_start` (lib/format_text in LVM's sources).
 */
import { isSection, notUnderstood, numberOf, type Section, sectionOf, textOf, type Value } from './metadata-text.ts'

/** Sectors of 512 bytes, as all here. */
export interface Segment {
  readonly startSector: number
  readonly lengthSectors: number
  /** LVM's word, without flags: striped (which linear ones are, too), raid1, thin, cache, … */
  readonly type: string
  /**
   * Of what the kernel has as linear or striped: sectors of a stripe, 0 where there is only one, and where each begins.
   */
  readonly stripeSectors: number
  readonly stripes: readonly Place[]
  /** Of a thin one: the id of its pool's volume, its number in there, and the id of what shows through, if anything. */
  readonly thin: { readonly pool: string; readonly deviceId: number; readonly externalOrigin?: string } | undefined
}

/** On a disk or in another volume, by LVM's id. */
export interface Place {
  readonly disk?: string
  readonly volume?: string
  readonly sector: number
}

/** @throws DM_LVM_FAILED when it is not understood */
export function segmentsOf(group: Section, volume: string): Segment[] {
  const section = sectionOf(sectionOf(group, 'logical_volumes'), volume)
  const extent = numberOf(group['extent_size'])
  return Object.entries(section).flatMap(([name, segment]): Segment[] => {
    if (!/^segment\d+$/.test(name) || !isSection(segment)) return []
    const type = withoutFlags(textOf(segment['type'], `the type of ${volume}`))
    const stripes = stripesOf(group, type, segment)
    return [
      {
        startSector: numberOf(segment['start_extent']) * extent,
        lengthSectors: numberOf(segment['extent_count']) * extent,
        ...{ type, stripes, stripeSectors: stripes.length > 1 ? numberOf(segment['stripe_size']) : 0 },
        thin: type === 'thin' ? thinOf(group, segment) : undefined
      }
    ]
  })
}

/** LVM writes flags behind a type that older versions must not take for theirs: `cache+CACHE_USES_CACHEVOL`. */
function withoutFlags(type: string): string {
  return type.replace(/\+.*$/, '')
}

/**
 * Striped ones; a volume of a VDO pool, which begins behind the pool's header; and a mirror that is being made or
 * taken apart, while it has one leg.
 */
function stripesOf(group: Section, type: string, segment: Section): Place[] {
  const extent = numberOf(group['extent_size'])
  if (type === 'striped') return placesOf(group, segment['stripes'], extent)
  if (type === 'mirror' && numberOf(segment['mirror_count']) === 1) return placesOf(group, segment['mirrors'], extent)
  if (type !== 'vdo') return []
  const name = textOf(segment['vdo_pool'], 'the pool of a VDO volume')
  const pool = sectionOf(sectionOf(group, 'logical_volumes'), name)
  const sector = numberOf(sectionOf(pool, 'segment1')['header_size']) + numberOf(segment['vdo_offset']) * extent
  return [{ volume: textOf(pool['id'], `the id of ${name}`), sector }]
}

/** A list of names, each with the extent at which its part begins. */
function placesOf(group: Section, list: Value | undefined, extent: number): Place[] {
  if (!Array.isArray(list) || list.length === 0 || list.length % 2 !== 0) throw notUnderstood('a volume is on no disk')
  const [disks, volumes] = [sectionOf(group, 'physical_volumes'), sectionOf(group, 'logical_volumes')]
  const places: Place[] = []
  for (let i = 0; i < list.length; i += 2) {
    const [name, at] = [list[i] as string, numberOf(list[i + 1] as string) * extent]
    const [disk, volume] = [disks[name], volumes[name]]
    if (disk !== undefined && isSection(disk)) {
      places.push({ disk: textOf(disk['id'], `the id of ${name}`), sector: numberOf(disk['pe_start']) + at })
    } else if (volume !== undefined && isSection(volume)) {
      places.push({ volume: textOf(volume['id'], `the id of ${name}`), sector: at })
    } else throw notUnderstood(`a volume is on ${name}, which is not there`)
  }
  return places
}

function thinOf(group: Section, segment: Section): Segment['thin'] {
  const name = textOf(segment['thin_pool'], 'the pool of a thin volume')
  const volumes = sectionOf(group, 'logical_volumes')
  const idOf = (each: string) => textOf(sectionOf(volumes, each)['id'], `the id of ${each}`)
  const thin = { pool: idOf(name), deviceId: numberOf(segment['device_id']) }
  const external = segment['external_origin']
  return external === undefined ? thin : { ...thin, externalOrigin: idOf(textOf(external, 'an external origin')) }
}
