/**
 * Names of the snapshots that are taken for backups: by them a chain finds its own, and no two are the same.
 *
 *   mail-backup-0b6c7c1f2a90-20261130T020000123Z      volume, mark of the chain, moment
 */
import { parseHandle } from '../handle.ts'
import type { Chain } from './chain.ts'

/** How names of a chain's snapshots begin. (LVM's names have at most 127 characters, handles 128.) */
export function markOf(chain: Chain, volume: string): string {
  return `${volume.slice(0, 40)}-backup-${chain.mark}-`
}

/** Where the clock was set back, it can be the same moment again: then the next millisecond that no point has. */
export function snapshotName(chain: Chain, takenAt: Date): string {
  const volume = chain.volume.split('/').at(-1) ?? ''
  const name = `${markOf(chain, volume)}${takenAt.toISOString().replaceAll(/[-:.]/g, '')}`
  const isTaken = chain.points.some(({ snapshot }) => parseHandle(snapshot.handle).name === name)
  return isTaken ? snapshotName(chain, new Date(takenAt.getTime() + 1)) : name
}

/** Whether a handle is of such a snapshot, of whichever chain. */
export function isOurName(handle: string): boolean {
  return /-backup-[0-9a-f]{12}-\d{8}T\d{9}Z$/.test(parseHandle(handle).name)
}
