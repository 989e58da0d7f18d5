/**
 * The release note, which a keeper leaves for the next agent: it is about to release the metadata snapshot of this
 * lease by itself.
 *
 * The catalog's record of the lease says `held`. The keeper cannot change it, because another agent may have the
 * catalog open already. Without the note, that record would claim any metadata snapshot in the same block with the same
 * content, which may be another process's by then. With the note, the record counts as `releasing` (see
 * catalog/lease.ts). The note is beside the catalog, and on disk before the message is sent.
 */
import { createHash } from 'node:crypto'
import { open, readFile, rename, rm } from 'node:fs/promises'
import { dirname } from 'node:path'
import type { LeaseRecord } from '../catalog/lease.ts'
import { syncFolder } from '../../sync-folder.ts'

/** The path of the note about a device. */
export function notePath(catalogPath: string, device: string): string {
  return `${catalogPath}.keeper-${createHash('sha256').update(device).digest('hex').slice(0, 16)}`
}

/** @param takenAt of the lease's record; it tells leases of the same device apart */
export async function writeNote(path: string, takenAt: number): Promise<void> {
  const draft = `${path}.new`
  const file = await open(draft, 'w', 0o600)
  try {
    await file.writeFile(`${takenAt}\n`)
    await file.sync()
  } finally {
    await file.close()
  }
  await rename(draft, path)
  await syncFolder(dirname(path))
}

/** Removes a note: the release was refused, or its record is gone. */
export async function removeNote(path: string): Promise<void> {
  await rm(path, { force: true })
}

/** A record, as the keeper's note changes its meaning. */
export async function withNote(record: LeaseRecord, catalogPath: string): Promise<LeaseRecord> {
  if (record.state !== 'held') return record
  const note = await readFile(notePath(catalogPath, record.device), 'utf8').catch((error: unknown) => {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error
  })
  return note?.trim() === String(record.takenAt) ? { ...record, state: 'releasing' } : record
}
