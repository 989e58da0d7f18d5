/**
 * Whose is the metadata snapshot that a pool (or an era device) holds?
 *
 * There is one slot, anybody with access can fill and empty it, and nothing in it says who did. So a lease is recorded, durably, around
 * each of the two messages:
 *
 *     record 'reserving' ─▶ reserve_metadata_snap ─▶ record 'held' ─▶ … ─▶ record 'releasing' ─▶ release_metadata_snap ─▶ no record
 *
 * After a crash the record and the kernel are compared:
 *
 *     record      slot empty         slot filled
 *     none        nothing to do      foreign
 *     reserving   never happened     ambiguous: ours, or somebody's who came between our record and now
 *     held        somebody emptied   ours, if it is in the block, and has the content, that ours had; else foreign
 *                 it for us
 *     releasing   it was released    ambiguous: ours still, or somebody's who came after the release
 *
 * Ambiguous means foreign, and foreign is never released: another tool may be reading through it. In a pool that nobody has written to
 * since, somebody else's metadata snapshot lies in the same block with the same content, so nothing but the record can tell; the
 * price is that a crash within the moments of the two messages leaves a lease for a person to release.
 */

/** What the record of a lease says. */
export interface LeaseRecord {
  /** Key of the pool or era device, made by the source. */
  readonly device: string
  readonly state: 'reserving' | 'held' | 'releasing'
  /** For whom it was taken; for people. */
  readonly purpose: string
  /** The superblock before the slot was asked for: see `poolFacts`. */
  readonly factsBefore: string
  /** Block of the metadata snapshot; undefined while reserving. */
  readonly heldRoot: number | undefined
  /** The superblock's copy that the metadata snapshot is; undefined while reserving. */
  readonly factsHeld: string | undefined
  /** Milliseconds since 1970. */
  readonly takenAt: number
}

/** What the kernel and the metadata device show. */
export interface HeldSlot {
  /** Block of the metadata snapshot as the status line gives it; 0 when none is held. */
  readonly heldRoot: number
  /** `poolFacts` of the copy in that block; undefined when none is held or it cannot be read. */
  readonly facts: string | undefined
}

export interface LeaseVerdict {
  readonly whose: 'none' | 'ours' | 'foreign'
  /** Foreign, but may be ours all the same: `doctor` says so when it offers to release it. */
  readonly ambiguous: boolean
  /** What is to become of the record: one that says nothing any more would stand in the way of the next lease. */
  readonly record: 'keep' | 'clear'
  /** For the log. */
  readonly because: string
}

/** What identifies a state of a thin pool's metadata, as text that is compared and never taken apart. */
export function poolFacts(superblock: {
  time: number
  transactionId: bigint
  mappingRoot: number
  detailsRoot: number
}): string {
  const { time, transactionId, mappingRoot, detailsRoot } = superblock
  return `thin-pool time ${time} transaction ${transactionId} mappings ${mappingRoot} details ${detailsRoot}`
}

/** Decides whose a held metadata snapshot is, from the record and what is there. */
export function leaseVerdict(record: LeaseRecord | undefined, { heldRoot, facts }: HeldSlot): LeaseVerdict {
  if (heldRoot === 0) {
    return verdict(
      'none',
      record === undefined ? 'none is held' : `none is held; the record (${record.state}) is out of date`
    )
  }
  if (record === undefined) return verdict('foreign', 'there is no record of it')
  switch (record.state) {
    case 'reserving':
      return ambiguous('a crash came while it was being reserved, or somebody else took it then')
    case 'releasing':
      if (!matches(record, { heldRoot, facts })) return verdict('foreign', 'it is not the one that was being released')
      return ambiguous('a crash came while it was being released, or somebody else took it afterwards')
    case 'held':
      if (!matches(record, { heldRoot, facts }))
        return verdict('foreign', 'it is not the one that the record describes')
      if (facts === undefined) return ambiguous('it is where ours was, but its content cannot be read')
      return { whose: 'ours', ambiguous: false, record: 'keep', because: 'block and content are those of the record' }
  }
}

/** Unreadable content speaks neither for nor against it. */
function matches(record: LeaseRecord, { heldRoot, facts }: HeldSlot): boolean {
  return record.heldRoot === heldRoot && (facts === undefined || record.factsHeld === facts)
}

function verdict(whose: 'none' | 'foreign', because: string): LeaseVerdict {
  return { whose, ambiguous: false, record: 'clear', because }
}

function ambiguous(because: string): LeaseVerdict {
  return { whose: 'foreign', ambiguous: true, record: 'keep', because }
}
