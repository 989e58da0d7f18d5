/**
 * What LVM's metadata says of classic snapshots beyond what its reports do: each is tied to its origin by a hidden
 * volume, `snapshotN`.
 *
 *     snapshot0 { id = "BDkLfR-…"  creation_time = 1795981557
 *                 segment1 { type = "snapshot"  chunk_size = 16  origin = "o"  cow_store = "s1" } }
 *
 * Split off and joined again (lvconvert --splitsnapshot, --type snapshot), a snapshot has all that it had before, and
 * lacks what was written meanwhile; only this id is another, and its time. No report shows it, so the metadata's text
 * is read (pvck --dump metadata; format: lib/format_text in LVM's sources). A snapshot that is being merged has
 * `merging_store` in place of `cow_store`.
 */
import { SECTOR_BYTES } from '../../units.ts'
import type { KnownDisks } from './group-disks.ts'
import { groupSection, isSection, notUnderstood, numberOf, type Section, sectionOf, textOf } from './metadata-text.ts'
import { type Segment, segmentsOf } from './segments.ts'

export interface SnapshotLink {
  /** The hidden volume's UUID. */
  readonly id: string
  /**
   * When it was tied to its origin, and when its own volume was made: seconds since 1970, by this machine's clock then.
   */
  readonly linkedAt: number
  readonly createdAt: number
  /** How much of the origin it is of. */
  readonly sizeBytes: number
  /** Names of the origin and of the snapshot. */
  readonly origin: string
  readonly snapshot: string
  readonly merging: boolean
  /** Its place among the group's volumes: LVM puts new ones behind those there are. */
  readonly place: number
}

/** The links of a group, and which state of it they are of. */
export interface SnapshotLinks extends KnownDisks {
  readonly vgUuid: string
  readonly sequenceNumber: bigint
  readonly links: readonly SnapshotLink[]
  /** What each of the group's volumes consists of, by its name. */
  readonly segments: (volume: string) => readonly Segment[]
}

/**
 * Reads a group's metadata.
 *
 * @param text with the group's section somewhere in it; what stands before and behind is of no interest
 * @param disks those of the group's that are here, by LVM's id
 * @throws DM_LVM_FAILED when it is not understood
 */
export function parseSnapshotLinks(
  text: string,
  volumeGroup: string,
  disks: ReadonlyMap<string, string> = new Map()
): SnapshotLinks {
  const group = groupSection(text, volumeGroup)
  const volumes = sectionOf(group, 'logical_volumes')
  const named = Object.entries(volumes)
  const extentBytes = numberOf(group['extent_size']) * SECTOR_BYTES
  const links = named.flatMap(([name, volume], place): SnapshotLink[] => {
    if (!isSection(volume)) throw notUnderstood(`${name} is no section`)
    const segment = volume['segment1']
    if (segment === undefined || !isSection(segment) || segment['type'] !== 'snapshot') return []
    const store = segment['merging_store'] ?? segment['cow_store']
    const origin = textOf(segment['origin'], `the origin of ${name}`)
    const snapshot = textOf(store, `the store of ${name}`)
    const own = volumes[snapshot]
    if (own === undefined || !isSection(own)) throw notUnderstood(`${name} is of ${snapshot}, which is not there`)
    return [
      {
        id: textOf(volume['id'], `the id of ${name}`),
        linkedAt: numberOf(volume['creation_time']),
        createdAt: numberOf(own['creation_time']),
        sizeBytes: numberOf(segment['extent_count']) * extentBytes,
        ...{ origin, snapshot, merging: segment['merging_store'] !== undefined, place }
      }
    ]
  })
  const sequenceNumber = BigInt(numberOf(group['seqno']))
  const segments = (volume: string) => segmentsOf(group, volume)
  const vgUuid = textOf(group['id'], 'its id')
  return { vgUuid, sequenceNumber, links, segments, disks, lastSeen: lastSeen(sectionOf(group, 'physical_volumes')) }
}

/** Device nodes by LVM's id. (Its metadata call them hints.) */
function lastSeen(disks: Section): Map<string, string> {
  const all = Object.values(disks).filter(isSection)
  return new Map(
    all.flatMap(({ id, device }) => (typeof id === 'string' && typeof device === 'string' ? [[id, device]] : []))
  )
}
