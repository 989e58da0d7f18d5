/**
 * The two states in which a pool's metadata can be looked at: the live one, and the metadata snapshot that somebody may hold. A question
 * is answered from one of them, and whoever asked is told which, and how far apart they are.
 */
import { openPoolMetadata, type PoolMetadata } from '../../devicemapper/thin/pool-metadata.ts'
import type { ThinSuperblock } from '../../devicemapper/thin/superblock.ts'
import { counted } from './quantities.ts'

export interface PoolViews {
  /** The view that answers: the metadata snapshot where one is held, unless the live root was asked for. */
  metadata: PoolMetadata
  live: ThinSuperblock
  /** The metadata snapshot, where one is held and was looked at. */
  held: ThinSuperblock | undefined
  close(): Promise<void>
}

/** @param liveRoot the metadata snapshot is not even looked at then. @throws what `openPoolMetadata` throws */
export async function openViews(path: string, liveRoot: boolean): Promise<PoolViews> {
  const live = await openPoolMetadata(path, { liveRoot: true })
  let held: PoolMetadata | undefined
  try {
    if (live.heldRoot !== 0 && !liveRoot) held = await openPoolMetadata(path)
  } catch (error) {
    await live.close()
    throw error
  }
  return {
    metadata: held ?? live,
    live: live.superblock,
    held: held?.superblock,
    async close() {
      await live.close()
      await held?.close()
    }
  }
}

/** Which view answers, in words. */
export function describeView({ metadata, live }: PoolViews): string {
  if (metadata.view === 'metadata-snapshot') {
    return `the metadata snapshot, ${describeAge(live, metadata.superblock)}; --live-root reads the live pool`
  }
  const { time, transactionId } = live
  const root = `the live root, pool time ${time}, transaction ${transactionId}`
  return live.heldRoot === 0 ? root : `${root}, and not the metadata snapshot that is held`
}

/** How old a metadata snapshot is. Metadata knows no hours: it counts the snapshots taken, and the transactions of who drives the pool. */
export function describeAge(live: ThinSuperblock, held: ThinSuperblock): string {
  const state = `pool time ${held.time}, transaction ${held.transactionId}`
  const snapshots = counted(live.time - held.time, 'snapshot')
  const transactions = counted(live.transactionId - held.transactionId, 'transaction')
  return `${state}: ${snapshots} and ${transactions} behind the live pool (${live.time}, ${live.transactionId})`
}
