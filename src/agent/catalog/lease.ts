/**
 * Whose is the metadata snapshot that a pool (or an era device) holds?
 *
 * There is one slot. Anything with access can fill and empty it, and its content does not say who did. So a lease is
 * recorded, durably, around each of the two messages:
 *
 *     record 'reserving' ─▶ reserve_metadata_snap ─▶ record 'held' ─▶ … ─▶ record 'releasing' ─▶ release_metadata_snap ─▶ no record
 *
 * After a crash, record and kernel are compared:
 *
 *     record      slot empty         slot filled
 *     none        nothing to do      foreign
 *     reserving   never happened     ambiguous: ours, or another's that came between our record and now
 *     held        another process    ours, if it is in our block and has our content; otherwise foreign
 *                 released it
 *     releasing   it was released    ambiguous: still ours, or another's that came after the release
 *
 * Ambiguous counts as foreign, and a foreign one is never released: another tool may be reading it. If the pool has not
 * been written to since, another process's metadata snapshot is in the same block with the same content, so only the
 * record can tell. The price: after a crash in the moments of the two messages, a person must release the metadata
 * snapshot.
 */

/** The record of a lease. */
export interface LeaseRecord {
  /** Key of the pool or era device, made by the source. */
  readonly device: string
  readonly state: 'reserving' | 'held' | 'releasing'
  /** What it was taken for, in words for people. */
  readonly purpose: string
  /** The superblock before the reservation: see `poolFacts`. */
  readonly factsBefore: string
  /** Block of the metadata snapshot; undefined while reserving. */
  readonly heldRoot: number | undefined
  /** The superblock copy that is the metadata snapshot; undefined while reserving. */
  readonly factsHeld: string | undefined
  /** Milliseconds since 1970. */
  readonly takenAt: number
}

/** What kernel and metadata device show. */
export interface HeldSlot {
  /** Block of the metadata snapshot in the status line; 0 when none is held. */
  readonly heldRoot: number
  /** `poolFacts` of the copy in that block; undefined when none is held or it cannot be read. */
  readonly facts: string | undefined
}

export interface LeaseVerdict {
  readonly whose: 'none' | 'ours' | 'foreign'
  /** Foreign, but perhaps ours: `doctor` says so when it offers to release it. */
  readonly ambiguous: boolean
  /** What to do with the record. A record without meaning would block the next lease. */
  readonly record: 'keep' | 'clear'
  /** For the log. */
  readonly because: string
}

/** Identifies a state of a thin pool's metadata, as text that is only compared. */
export function poolFacts(superblock: {
  time: number
  transactionId: bigint
  mappingRoot: number
  detailsRoot: number
}): string {
  const { time, transactionId, mappingRoot, detailsRoot } = superblock
  return `thin-pool time ${time} transaction ${transactionId} mappings ${mappingRoot} details ${detailsRoot}`
}

/** Decides whose a held metadata snapshot is, from the record and the present state. */
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
      return ambiguous('a crash came while it was being reserved, or another program took it then')
    case 'releasing':
      if (!matches(record, { heldRoot, facts })) return verdict('foreign', 'it is not the one that was being released')
      return ambiguous('a crash came while it was being released, or another program took it afterwards')
    case 'held':
      if (!matches(record, { heldRoot, facts }))
        return verdict('foreign', 'it is not the one that the record describes')
      if (facts === undefined) return ambiguous('it is where ours was, but its content cannot be read')
      return { whose: 'ours', ambiguous: false, record: 'keep', because: 'block and content are those of the record' }
  }
}

/** Unreadable content proves nothing either way. */
function matches(record: LeaseRecord, { heldRoot, facts }: HeldSlot): boolean {
  return record.heldRoot === heldRoot && (facts === undefined || record.factsHeld === facts)
}

function verdict(whose: 'none' | 'foreign', because: string): LeaseVerdict {
  return { whose, ambiguous: false, record: 'clear', because }
}

function ambiguous(because: string): LeaseVerdict {
  return { whose: 'foreign', ambiguous: true, record: 'keep', because }
}
