/**
 * Which snapshots are known never to have been written to since they were taken.
 *
 * A snapshot gets every block from its origin, and the first write to a block gives it one of its own, which moves the root of its tree:
 * its fingerprint changes. The second write to that block goes into it in place, and nothing changes. So a fingerprint vouches for the
 * content only of a snapshot that had no block of its own, of which no mapping is as young as itself. To see that takes reading the whole
 * tree; it is done once, and what was found is kept here, for as long as the fingerprint is the same.
 */
import type { Fingerprint } from '../../devicemapper/thin/pool-metadata.ts'
import type { CatalogDatabase } from './database.ts'
import type { ServedTarget } from './fingerprint.ts'
import { Table } from './table.ts'

export const pristineTable = new Table(
  'pristine',
  {
    identity: 'text',
    creationTime: 'count',
    root: 'count',
    rootChecksum: 'count',
    mappedBlocks: 'count',
    foundAt: 'count'
  } as const,
  ['identity']
)

/** The snapshots known longest are forgotten beyond this number: their trees would have to be read once more. */
const MOST_KNOWN = 100_000

/** Records that a snapshot, as it is now, was never written to. */
export function markPristine(database: CatalogDatabase, snapshot: ServedTarget, at = Date.now()): void {
  const { identity, creationTime, root, rootChecksum, mappedBlocks } = snapshot
  const found = { creationTime, root, rootChecksum, mappedBlocks }
  database.write(() => {
    const [known] = pristineTable.find(database, { identity })
    if (!known) pristineTable.insert(database, { identity, ...found, foundAt: at })
    else if (!isSame(known, snapshot)) pristineTable.update(database, known, { ...found, foundAt: at })
    pristineTable.delete(
      database,
      pristineTable.select(database, 'ORDER BY found_at DESC LIMIT -1 OFFSET ?', MOST_KNOWN)
    )
  })
}

/** Whether a snapshot, as it is now, is known never to have been written to. */
export function isPristine(database: CatalogDatabase, snapshot: ServedTarget): boolean {
  return pristineTable.find(database, { identity: snapshot.identity }).some((known) => isSame(known, snapshot))
}

function isSame(known: Fingerprint, now: Fingerprint): boolean {
  return (
    known.creationTime === now.creationTime &&
    known.root === now.root &&
    known.rootChecksum === now.rootChecksum &&
    known.mappedBlocks === now.mappedBlocks
  )
}
