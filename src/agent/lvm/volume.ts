/**
 * What a logical volume is to a backup: a thin volume or snapshot, whose mappings can be compared, or something else,
 * which is refused with the reason and a remedy.
 *
 * Segment types and the rows that a volume refers to decide. `lv_attr` and `lv_role` only help: a thin volume that is
 * the origin of a classic snapshot has an `o` where others have a `V`, and a thin volume over an external origin has
 * the role of a snapshot.
 */
import { DeltamapperError } from '../../errors.ts'
import type { LogicalVolume } from './parse.ts'

export type VolumeKind =
  | 'thin volume'
  | 'thin snapshot'
  | 'merging snapshot'
  | 'thin pool'
  | 'copy-on-write snapshot'
  | 'thick volume'
  | 'part of another volume'

/** A thin volume or snapshot, with the rows it refers to. */
export interface ThinVolume {
  lv: LogicalVolume
  thinId: number
  transactionId: bigint
  pool: LogicalVolume
  /**
   * The thin volume of the same pool that it is a snapshot of. Undefined when there is none, or no longer: LVM forgets
   * it.
   */
  origin: LogicalVolume | undefined
  /**
   * The read-only volume outside of this pool that shows through where neither it nor any of its origins maps anything.
   */
  externalOrigin: LogicalVolume | undefined
}

/** The volumes of one group by name. A group's names are unique, hidden ones included. */
export type VolumesByName = ReadonlyMap<string, LogicalVolume>

export function byName(volumes: readonly LogicalVolume[]): VolumesByName {
  return new Map(volumes.map((lv) => [lv.name, lv]))
}

/** @throws DM_LVM_FAILED when the report contradicts itself */
export function volumeKind(lv: LogicalVolume, volumes: VolumesByName): VolumeKind {
  if (isThin(lv)) {
    if (lv.merging) return 'merging snapshot'
    return origins(lv, volumes).origin ? 'thin snapshot' : 'thin volume'
  }
  if (lv.segmentTypes.includes('thin-pool')) return 'thin pool'
  const { volumeType, state } = lv.attributes
  if (lv.role.includes('thicksnapshot') || volumeType === 'snapshot' || volumeType === 'merging snapshot') {
    return 'copy-on-write snapshot'
  }
  if (lv.hidden || state === 'historical') return 'part of another volume'
  // Such as a mirror's images, if lvm.conf turns brackets off. A pool of another sort is one as well.
  return lv.role.includes('private') ? 'part of another volume' : 'thick volume'
}

/**
 * A volume whose changed blocks can be told.
 *
 * @throws DM_NOT_TRACKED with the reason and a remedy; DM_LVM_FAILED when the report contradicts itself
 */
export function thinVolume(lv: LogicalVolume, volumes: VolumesByName): ThinVolume {
  const kind = volumeKind(lv, volumes)
  const { thinId, transactionId } = lv
  if ((kind === 'thin volume' || kind === 'thin snapshot') && thinId !== undefined && transactionId !== undefined) {
    return { lv, thinId, transactionId, pool: poolOf(lv, volumes), ...origins(lv, volumes) }
  }
  const [why, remedy] = refusal(kind, lv)
  throw new DeltamapperError('DM_NOT_TRACKED', `${fullName(lv)} ${why}`, remedy)
}

/** `VG/LV`, as LVM's commands take it. */
export function fullName({ vgName, name }: LogicalVolume): string {
  return `${vgName}/${name}`
}

function refusal(kind: VolumeKind, lv: LogicalVolume): [why: string, remedy: string] {
  const full = 'take a full backup'
  switch (kind) {
    case 'merging snapshot':
      return [
        `is being merged back into ${lv.vgName}/${lv.origin ?? 'its origin'}, and will be that volume when it is activated next`,
        `${full} of a new snapshot once the merge is done (lvchange -an, then -ay)`
      ]
    case 'thin pool':
      return ['is a thin pool, not a volume', 'name a thin volume or snapshot in it']
    case 'copy-on-write snapshot':
      return ['is a classic snapshot, and this name is of a thin pool', 'ask for it as VG/LV']
    case 'part of another volume':
      return ['is a part of another volume, or is kept for one', 'name the volume itself']
    case 'thick volume':
    case 'thin volume':
    case 'thin snapshot':
      return [
        `is a ${lv.segmentTypes.join(' and ')} volume, outside of any thin pool`,
        `take a snapshot of it (lvcreate -s -L SIZE ${lv.vgName}/${lv.name}), and ask for that: from the second one on, backups are incremental`
      ]
  }
}

export function isThin({ segmentTypes }: Pick<LogicalVolume, 'segmentTypes'>): boolean {
  return segmentTypes.length === 1 && segmentTypes[0] === 'thin'
}

function poolOf(lv: LogicalVolume, volumes: VolumesByName): LogicalVolume {
  const pool = lv.poolLv === undefined ? undefined : volumes.get(lv.poolLv)
  if (!pool?.segmentTypes.includes('thin-pool')) {
    throw contradiction(`${fullName(lv)} is thin, and its pool ${lv.poolLv ?? '(unnamed)'} is not in the report`)
  }
  return pool
}

/** Follows the chain of origins to its end: snapshots of snapshots, down to a device outside of the pool. */
function origins(lv: LogicalVolume, volumes: VolumesByName): Pick<ThinVolume, 'origin' | 'externalOrigin'> {
  let origin: LogicalVolume | undefined
  const seen = new Set<LogicalVolume>()
  for (let each = lv; each.origin !== undefined;) {
    const next = volumes.get(each.origin)
    if (!next || next.uuid !== each.originUuid) {
      throw contradiction(`the origin of ${fullName(each)}, ${each.origin} (${each.originUuid}), is not in the report`)
    }
    if (!isThin(next) || next.poolLv !== lv.poolLv) return { origin, externalOrigin: next }
    if (seen.has(next)) throw contradiction(`${fullName(next)} is its own origin`)
    seen.add(next)
    origin ??= next
    each = next
  }
  return { origin, externalOrigin: undefined }
}

function contradiction(what: string): DeltamapperError {
  return new DeltamapperError(
    'DM_LVM_FAILED',
    `LVM's report contradicts itself: ${what}`,
    'ask again; if it happens again, `vgck` checks the volume group'
  )
}
