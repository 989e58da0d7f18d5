/**
 * The lease records. Each call is on disk when it returns. Only then send the message that it announces (or, after a
 * release, take the next lease):
 *
 *     beginLease ─▶ reserve_metadata_snap ─▶ confirmLease ─▶ … ─▶ beginRelease ─▶ release_metadata_snap ─▶ clearLease
 *
 * If the kernel refuses to reserve, `clearLease` removes the record; if it refuses to release, `keepLease` restores it.
 * If it is unknown whether the kernel carried out the message, the record stays, and `leaseVerdict` decides.
 */
import { defect, DeltamapperError } from '../../errors.ts'
import type { LeaseRecord } from './lease.ts'
import { type RowOf, Table, type Writable } from './store/table.ts'

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
 * Records that a metadata snapshot is about to be reserved.
 *
 * @throws DM_DEVICE_BUSY when this device already has a record
 */
export function beginLease(
  database: Writable,
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

/** Records the block and content of the metadata snapshot, by which it is recognised from now on. */
export function confirmLease(database: Writable, device: string, held: { heldRoot: number; factsHeld: string }): void {
  move(database, device, 'reserving', { state: 'held', heldRoot: held.heldRoot, factsHeld: held.factsHeld })
}

/** Records that the metadata snapshot is about to be released. */
export function beginRelease(database: Writable, device: string): void {
  move(database, device, 'held', { state: 'releasing' })
}

/** Records that the kernel refused to release it: it is held as before. */
export function keepLease(database: Writable, device: string): void {
  move(database, device, 'releasing', { state: 'held' })
}

/** Forgets the lease: it was released, never began, or turned out to be foreign. */
export function clearLease(database: Writable, device: string): void {
  database.write(() => {
    leasesTable.delete(database, leasesTable.find(database, { device }))
  })
}

export function findLease(database: Writable, device: string): LeaseRecord | undefined {
  const row = leasesTable.get(database, { device })
  return row && record(row)
}

export function listLeases(database: Writable): LeaseRecord[] {
  return leasesTable.find(database, {}).map(record)
}

function move(
  database: Writable,
  device: string,
  from: LeaseRecord['state'],
  changes: Partial<RowOf<typeof leasesTable>>
): void {
  database.write(() => {
    const row = leasesTable.get(database, { device })
    if (row?.state !== from) {
      throw defect(`the lease of ${device} is ${row?.state ?? 'not recorded'}, not ${from}`)
    }
    leasesTable.update(database, row, changes)
  })
}

function record(row: RowOf<typeof leasesTable>): LeaseRecord {
  // The column's CHECK allows only these.
  return { ...row, state: row.state as LeaseRecord['state'] }
}
