/**
 * Of which volume two snapshots are, and which came first, as far as is known.
 *
 * The answer to a delta is exact for any two thin devices of one pool, so this is a check on the caller: a backup of one volume with
 * the changes of another laid over it is of no use to anyone. What is not known for sure is `unknown`, and answered.
 */

/** Of which snapshot something is to be known. */
export interface LineageMember {
  /** What it goes by, and is called as a volume by what was taken of it. */
  readonly identity: string
  /** The clock of its pool when it was taken. */
  readonly creationTime: number
}

/** What is on record of one snapshot. */
export interface LineageFacts extends LineageMember {
  readonly pool: string
  /** Key of the volume it is a snapshot of; undefined where that was not known. */
  readonly volume: string | undefined
}

export type Lineage =
  /** Snapshots of one volume (or it and one of them), and the first was taken before the second. */
  | 'before'
  | 'after'
  /** Of one volume, in an order that is not known. */
  | 'same-volume'
  | 'different-volumes'
  | 'unknown'

/**
 * Relates two snapshots.
 *
 * @param one every record of the first, in any order; records that contradict each other are as good as none
 */
export function compareLineage(one: readonly LineageFacts[], other: readonly LineageFacts[]): Lineage {
  const [first, second] = [agreed(one), agreed(other)]
  if (first?.volume === undefined || second?.volume === undefined) return 'unknown'
  // What was taken of a snapshot belongs to that one, which belongs to a volume of its own.
  const related = first.volume === second.volume || first.volume === second.identity || second.volume === first.identity
  if (!related) return 'different-volumes'
  // Clocks of different pools have nothing to do with each other.
  if (first.pool !== second.pool || first.creationTime === second.creationTime) return 'same-volume'
  return first.creationTime < second.creationTime ? 'before' : 'after'
}

/** What all records that know of a volume say; undefined if they do not say the same. */
function agreed(facts: readonly LineageFacts[]): LineageFacts | undefined {
  const known = facts.filter(({ volume }) => volume !== undefined)
  const [first] = known
  const same = known.every(
    (each) => each.volume === first.volume && each.pool === first.pool && each.creationTime === first.creationTime
  )
  return same ? first : undefined
}
