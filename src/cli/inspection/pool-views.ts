/**
 * The two views of a pool's metadata: the live one, and the metadata snapshot, if one is held. A question is answered
 * from one of them, and the user is told which, and how far apart they are.
 */
import { openPoolMetadata, type PoolMetadata } from '../../devicemapper/thin/pool-metadata.ts'
import type { ThinSuperblock } from '../../devicemapper/thin/superblock.ts'
import { counted } from '../command-line/quantities.ts'

export interface PoolViews {
  /** The view that answers: the metadata snapshot if one is held, unless the live root was requested. */
  metadata: PoolMetadata
  live: ThinSuperblock
  /** The metadata snapshot, if one is held and was examined. */
  held: ThinSuperblock | undefined
  close(): Promise<void>
}

/** @param liveRoot the metadata snapshot is not even examined then. @throws what `openPoolMetadata` throws */
export async function openViews(path: string, liveRoot: boolean): Promise<PoolViews> {
  const live = await openPoolMetadata(path, { liveRoot: true, reads: 'auto' })
  let held: PoolMetadata | undefined
  try {
    if (live.heldRoot !== 0 && !liveRoot) held = await openPoolMetadata(path, { reads: 'auto' })
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

/**
 * The age of a metadata snapshot. Metadata has no wall clock: it counts the snapshots taken, and the transactions of
 * the pool's owner.
 */
export function describeAge(live: ThinSuperblock, held: ThinSuperblock): string {
  const state = `pool time ${held.time}, transaction ${held.transactionId}`
  const snapshots = counted(live.time - held.time, 'snapshot')
  const transactions = counted(live.transactionId - held.transactionId, 'transaction')
  return `${state}: ${snapshots} and ${transactions} behind the live pool (${live.time}, ${live.transactionId})`
}
