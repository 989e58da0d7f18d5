/**
 * What a classic snapshot says of its state: snapshot_status in drivers/md/dm-snap.c.
 *
 *   snapshot  ALLOCATED/TOTAL METADATA | Invalid | Overflow | Merge failed | Unknown
 *
 * Sectors of 512 bytes of its store: given out (for old contents, areas and header), all there are, and those of areas
 * and header alone.
 */
import { TargetWords } from '../target-words.ts'
import { ENTRY_BYTES } from './areas.ts'
import type { CowHeader } from './header.ts'

export interface CowNumbers {
  readonly state: 'working'
  readonly allocatedSectors: number
  readonly totalSectors: number
  readonly metadataSectors: number
}

/**
 * `invalid`: the kernel has given it up, and its store says so. `overflow`: the same for want of space. `merge failed`:
 * entries may be missing. `unknown`: the kernel does not say, or the store is not kept on disk.
 */
export type CowStatus = CowNumbers | { readonly state: 'invalid' | 'overflow' | 'merge failed' | 'unknown' }

const otherStates = {
  Invalid: 'invalid',
  Overflow: 'overflow',
  'Merge failed': 'merge failed',
  Unknown: 'unknown'
} as const

/** Reads the status of a `snapshot` or `snapshot-merge` target. Throws DM_STATUS_UNKNOWN. */
export function parseCowStatus(line: string): CowStatus {
  const state = Object.entries(otherStates).find(([said]) => said === line.trim())?.[1]
  if (state) return { state }
  const words = new TargetWords(line, 'the status of a snapshot')
  const { used, total } = words.fraction()
  const metadataSectors = words.number()
  words.end()
  return { state: 'working', allocatedSectors: used, totalSectors: total, metadataSectors }
}

/**
 * How many entries have been given a chunk, those not yet written included. Chunks are given out in turn, and areas lie
 * among them at known places (areas.ts), so the next free one says how many. The kernel's own count of areas
 * (persistent_usage in drivers/md/dm-snap-persistent.c) is one less while an area's last entry waits to be written.
 */
export function countedEntries({ allocatedSectors }: CowNumbers, { chunkBytes, chunkSectors }: CowHeader): number {
  const nextFree = Math.floor(allocatedSectors / chunkSectors)
  const perArea = chunkBytes / ENTRY_BYTES
  const areas = Math.floor((nextFree - 2) / (perArea + 1)) + 1
  return Math.max(nextFree - 1 - areas, 0)
}
