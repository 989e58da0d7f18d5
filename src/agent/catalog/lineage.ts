/**
 * Whether two snapshots are of one volume, and which came first, as far as is known.
 *
 * A delta of any two thin devices in one pool is exact, so this check protects the caller: the changes of one volume
 * laid over a backup of another are useless. If the relation is not known for sure, it is `unknown`, and the delta is
 * answered.
 */

/** The snapshot to relate. */
export interface LineageMember {
  /** Its identity, which is also the volume key of snapshots that were taken of it. */
  readonly identity: string
  /** The clock of its pool when it was taken. */
  readonly creationTime: number
}

/** The record of one snapshot. */
export interface LineageFacts extends LineageMember {
  readonly pool: string
  /** Key of the volume it is a snapshot of; undefined if that was not known. */
  readonly volume: string | undefined
}

export type Lineage =
  /** Both of one volume (or one is the other's volume), and the first was taken before the second. */
  | 'before'
  | 'after'
  /** Of one volume, in unknown order. */
  | 'same-volume'
  | 'different-volumes'
  | 'unknown'

/**
 * Relates two snapshots.
 *
 * @param one all records of the first, in any order; records that contradict each other count as none
 */
export function compareLineage(one: readonly LineageFacts[], other: readonly LineageFacts[]): Lineage {
  const [first, second] = [agreed(one), agreed(other)]
  if (first?.volume === undefined || second?.volume === undefined) return 'unknown'
  // A snapshot of a snapshot has that snapshot as its volume, which in turn belongs to a volume of its own.
  const related = first.volume === second.volume || first.volume === second.identity || second.volume === first.identity
  if (!related) return 'different-volumes'
  // Clocks of different pools cannot be compared.
  if (first.pool !== second.pool || first.creationTime === second.creationTime) return 'same-volume'
  return first.creationTime < second.creationTime ? 'before' : 'after'
}

/** The volume on which all records that know one agree; undefined otherwise. */
function agreed(facts: readonly LineageFacts[]): LineageFacts | undefined {
  const known = facts.filter(({ volume }) => volume !== undefined)
  const [first] = known
  const same = known.every(
    (each) => each.volume === first.volume && each.pool === first.pool && each.creationTime === first.creationTime
  )
  return same ? first : undefined
}
