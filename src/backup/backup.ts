/** A backup of one volume, as steps: the chain is locked ─▶ what was cut off is finished ─▶ stored ─▶ pruned. */
import { Chain } from './chain.ts'
import { makePoint, type MadePoint } from './make-point.ts'
import type { Point } from './manifest.ts'
import { finishPrune, prune } from './prune.ts'
import { qemuVersion } from './qemu.ts'
import type { OpenSnapshot } from './served-snapshot.ts'

export interface BackupOptions {
  readonly root: string
  readonly volume: string
  /** The snapshot, which is there already, and stays. */
  readonly handle: string
  readonly open: OpenSnapshot
  readonly full: boolean
  readonly compress: boolean
  /** How many points stay; undefined for all. */
  readonly keep: number | undefined
  /** Of this program. */
  readonly version: string
  readonly signal: AbortSignal
  /** Told how far the copy is, in bytes. */
  readonly onProgress: (done: number, total: number) => void
  readonly remark: (text: string) => void
}

export interface BackedUp {
  readonly volume: string
  readonly made: MadePoint
  readonly pruned: readonly Point[]
}

/** @throws what opening the chain, storing and pruning throw; the signal's reason */
export async function backUp(options: BackupOptions): Promise<BackedUp> {
  const { root, volume, handle, keep, version, signal, remark, ...how } = options
  const tools = { deltamapper: version, qemu_img: await qemuVersion() }
  const chain = await Chain.open(root, volume, 'exclusive')
  try {
    await finishPrune(chain, { signal })
    const made = await makePoint({ ...how, chain, handle, created: new Date(), tools, signal })
    const because = made.point.full_because
    if (because !== undefined && chain.points.length > 1) remark(`${volume}: a full backup, because ${because}`)
    const pruned = keep === undefined ? [] : await prune(chain, keep, { signal })
    return { volume, made, pruned }
  } finally {
    await chain.close()
  }
}
