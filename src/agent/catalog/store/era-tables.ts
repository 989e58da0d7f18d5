/**
 * The tables of tracked volumes (era-volumes.ts) and of their history (era-snapshots.ts), which refer to each other.
 */
import { DeltamapperError } from '../../../errors.ts'
import { type RowOf, Table, type Statements } from './table.ts'

export const eraVolumesTable = new Table(
  'era_volumes',
  {
    name: 'text',
    id: 'text',
    dmName: 'text',
    dataDevice: 'text',
    dataIdentity: 'text',
    metadataDevice: 'text',
    metadataIdentity: 'text',
    blockSectors: 'count',
    sizeBytes: 'count',
    line: 'text',
    lineBecause: 'text',
    newestEra: 'count',
    seenBlocks: 'count',
    guardCheckedAt: 'count',
    lowerSeen: 'text',
    allowLossyKernel: 'count',
    snapshotBy: 'text',
    // The last boundary of this history, even if its snapshot is forgotten: the first era after it; none before the
    // first.
    boundaryEra: 'count?',
    // Since that boundary: the least size in bytes, and whether everything forgotten since was exact.
    leastBytes: 'count',
    openExact: 'count',
    // The number of the last boundary, of any history.
    lastSeq: 'count',
    createdAt: 'count'
  } as const,
  ['name']
)

export const eraIntentsTable = new Table(
  'era_intents',
  {
    volume: 'text',
    kind: 'text',
    sizeBytes: 'count?',
    snapshot: 'text?',
    token: 'text?',
    startedAt: 'count'
  } as const,
  ['volume']
)

export const eraSnapshotsTable = new Table(
  'era_snapshots',
  {
    id: 'text',
    volume: 'text',
    seq: 'count',
    name: 'text',
    line: 'text',
    lineBecause: 'text',
    boundaryEra: 'count',
    sizeBytes: 'count',
    // The least size since the boundary before, in bytes; for the first of a history, its size.
    leastBytes: 'count',
    exact: 'count',
    takenAt: 'count',
    suspendedMs: 'count',
    lower: 'text',
    removedAt: 'count?'
  } as const,
  ['id']
)

/** Handles whose snapshot was forgotten: a new snapshot of that name is another one. */
export const eraNamesTable = new Table(
  'era_names',
  {
    // VOLUME/SNAPSHOT, by the name that the volume had.
    handle: 'text',
    // When the last one of this name was taken.
    takenAt: 'count'
  } as const,
  ['handle']
)

export const eraWritesTable = new Table(
  'era_writes',
  { volume: 'text', chunk: 'count', seq: 'count', line: 'text', blocks: 'count', bytes: 'bytes' } as const,
  ['volume', 'chunk', 'seq']
)

export type EraVolumeRow = RowOf<typeof eraVolumesTable>

/** @throws DM_NO_SUCH_DEVICE */
export function eraVolumeRow(database: Statements, name: string): EraVolumeRow {
  const row = eraVolumesTable.get(database, { name })
  if (row === undefined) {
    throw new DeltamapperError(
      'DM_NO_SUCH_DEVICE',
      `no tracked volume is called ${name}`,
      'check the name; `deltamapper era status` lists them'
    )
  }
  return row
}
