/**
 * What a keeper leaves for the next agent: that it is about to release, on its own, the metadata snapshot of this lease.
 *
 * The record of the lease is in the catalog and says `held`; the keeper cannot change it, another agent may have the catalog already.
 * Without the note, that record would go on claiming whatever is found in the same block with the same content, which by then may be
 * somebody else's. With it, the record counts as `releasing` (see catalog/lease.ts). It lies beside the catalog, and is on disk before the message
 * is sent.
 */
import { createHash } from 'node:crypto'
import { open, readFile, rename, rm } from 'node:fs/promises'
import { dirname } from 'node:path'
import type { LeaseRecord } from '../catalog/lease.ts'

/** Where the note about a device is. */
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
  const folder = await open(dirname(path), 'r')
  try {
    await folder.sync()
  } finally {
    await folder.close()
  }
}

/** Takes a note back: the release was refused, or the record it is about is gone. */
export async function removeNote(path: string): Promise<void> {
  await rm(path, { force: true })
}

/** A record, as it is to be understood with what a keeper has noted. */
export async function withNote(record: LeaseRecord, catalogPath: string): Promise<LeaseRecord> {
  if (record.state !== 'held') return record
  const note = await readFile(notePath(catalogPath, record.device), 'utf8').catch((error: unknown) => {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error
  })
  return note?.trim() === String(record.takenAt) ? { ...record, state: 'releasing' } : record
}
