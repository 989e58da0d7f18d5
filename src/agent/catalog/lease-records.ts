/**
 * The records that a lease verdict rests on. Each is on disk when the call returns, and only then may the message that it speaks of be
 * sent (or, after a release, the next lease be taken):
 *
 *     beginLease ─▶ reserve_metadata_snap ─▶ confirmLease ─▶ … ─▶ beginRelease ─▶ release_metadata_snap ─▶ clearLease
 *
 * When the kernel refuses to reserve, `clearLease` takes the record back; when it refuses to release, `keepLease`. When it is unknown
 * whether the message was carried out, the record stays, and `leaseVerdict` decides.
 */
import { DeltamapperError } from '../../errors.ts'
import type { CatalogDatabase } from './database.ts'
import type { LeaseRecord } from './lease.ts'
import { type RowOf, Table } from './store/table.ts'

export const leasesTable = new Table(
  'leases',
  {
    device: 'text',
    state: 'text',
    purpose: 'text',
    factsBefore: 'text',
    heldRoot: 'count?',
    factsHeld: 'text?',
    takenAt: 'count'
  } as const,
  ['device']
)

/**
 * Records that the slot is about to be asked for.
 *
 * @throws DM_DEVICE_BUSY when there already is a record for this device
 */
export function beginLease(
  database: CatalogDatabase,
  lease: { device: string; purpose: string; factsBefore: string },
  at: number
): void {
  database.write(() => {
    const existing = leasesTable.get(database, { device: lease.device })
    if (existing !== undefined) {
      throw new DeltamapperError(
        'DM_DEVICE_BUSY',
        `the metadata snapshot of ${lease.device} is already leased (${existing.state}, for ${existing.purpose})`,
        'wait until it is released; `deltamapper doctor` shows it'
      )
    }
    const { device, purpose, factsBefore } = lease
    const unknown = { heldRoot: undefined, factsHeld: undefined }
    leasesTable.insert(database, { device, state: 'reserving', purpose, factsBefore, ...unknown, takenAt: at })
  })
}

/** Records where the metadata snapshot lies and what it holds. From now on it can be told to be ours. */
export function confirmLease(
  database: CatalogDatabase,
  device: string,
  held: { heldRoot: number; factsHeld: string }
): void {
  move(database, device, 'reserving', { state: 'held', heldRoot: held.heldRoot, factsHeld: held.factsHeld })
}

/** Records that the metadata snapshot is about to be released. */
export function beginRelease(database: CatalogDatabase, device: string): void {
  move(database, device, 'held', { state: 'releasing' })
}

/** Records that the kernel refused to release it: it is held as before. */
export function keepLease(database: CatalogDatabase, device: string): void {
  move(database, device, 'releasing', { state: 'held' })
}

/** Forgets the lease: it was released, never came to be, or turned out to be somebody else's. */
export function clearLease(database: CatalogDatabase, device: string): void {
  database.write(() => {
    leasesTable.delete(database, leasesTable.find(database, { device }))
  })
}

export function findLease(database: CatalogDatabase, device: string): LeaseRecord | undefined {
  const row = leasesTable.get(database, { device })
  return row && record(row)
}

export function listLeases(database: CatalogDatabase): LeaseRecord[] {
  return leasesTable.find(database, {}).map(record)
}

function move(
  database: CatalogDatabase,
  device: string,
  from: LeaseRecord['state'],
  changes: Partial<RowOf<typeof leasesTable>>
): void {
  database.write(() => {
    const row = leasesTable.get(database, { device })
    if (row?.state !== from) {
      throw new DeltamapperError(
        'DM_INTERNAL',
        `the lease of ${device} is ${row?.state ?? 'not recorded'}, not ${from}`,
        'report it with the log lines around it'
      )
    }
    leasesTable.update(database, row, changes)
  })
}

function record(row: RowOf<typeof leasesTable>): LeaseRecord {
  // What the column's CHECK allows.
  return { ...row, state: row.state as LeaseRecord['state'] }
}
