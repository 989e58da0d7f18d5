/**
 * A backup of one or several volumes, as steps:
 *
 *   all chains locked ─▶ --before ─▶ all snapshots ─▶ --after ─▶ each stored ─▶ snapshots given up ─▶ pruned
 *
 * What one volume fails by is no other's problem. Snapshots that were taken here are given up on every way out; what a
 * killed run left is found by the next one, before it takes its own.
 */
import { allOf } from '../all-of.ts'
import { asDeltamapperError, type DeltamapperError } from '../errors.ts'
import { Chain } from './chain.ts'
import { makePoint, type MadePoint } from './make-point.ts'
import type { Point } from './manifest.ts'
import { finishPrune, prune } from './prune.ts'
import { qemuVersion } from './qemu.ts'
import type { OpenSnapshot } from './served-snapshot.ts'

/** A snapshot to be stored. */
export interface TakenSnapshot {
  readonly handle: string
  readonly takenAt: Date
}

/** Where snapshots come from. */
export interface Snapshots {
  /** Takes away what earlier runs of these chains have left, but for those of their newest points. */
  clear(chains: readonly Chain[]): Promise<void>
  /** Takes one of each, in their order, as close together as can be. Takes none where one cannot be had. */
  take(chains: readonly Chain[], signal: AbortSignal): Promise<TakenSnapshot[]>
  /** After a backup: `stored` is a point by now, or could not be made one. */
  giveUp(chain: Chain, snapshot: TakenSnapshot, stored: boolean): Promise<void>
  /** What went wrong around them, and was no reason not to store them. */
  readonly failure: DeltamapperError | undefined
}

export interface BackupOptions {
  readonly root: string
  readonly volumes: readonly string[]
  readonly snapshots: Snapshots
  readonly open: OpenSnapshot
  readonly full: boolean
  readonly compress: boolean
  /** How many points stay; undefined for all. */
  readonly keep: number | undefined
  /** Of this program. */
  readonly version: string
  readonly signal: AbortSignal
  readonly onProgress: (volume: string, done: number, total: number) => void
  readonly remark: (text: string) => void
}

/** What became of one volume. */
export interface BackedUp {
  readonly volume: string
  readonly made?: MadePoint
  readonly pruned: readonly Point[]
  readonly failure?: DeltamapperError
}

/** @throws what concerns all of them: a chain that is in use, a snapshot that cannot be taken; the signal's reason */
export async function backUp(options: BackupOptions): Promise<BackedUp[]> {
  const { root, volumes, snapshots, signal, version } = options
  const chains: Chain[] = []
  const prepare = async () => {
    for (const volume of volumes) chains.push(await Chain.open(root, volume, 'exclusive'))
    for (const chain of chains) await finishPrune(chain, { signal })
    await snapshots.clear(chains)
  }
  try {
    const [qemu] = await allOf([qemuVersion(), prepare()]).catch(async (error: unknown) => {
      for (const chain of chains) await chain.abandon().catch(() => undefined)
      throw error
    })
    const tools = { deltamapper: version, qemu_img: qemu }
    const taken = await snapshots.take(chains, signal)
    const results: BackedUp[] = []
    for (const [i, chain] of chains.entries()) results.push(await storeOne(chain, taken[i], tools, options))
    signal.throwIfAborted()
    return results
  } finally {
    for (const chain of chains) await chain.close()
  }
}

async function storeOne(
  chain: Chain,
  snapshot: TakenSnapshot,
  tools: Point['tools'],
  options: BackupOptions
): Promise<BackedUp> {
  const { volume } = chain
  const { open, full, compress, keep, signal, remark, onProgress } = options
  let made: MadePoint | undefined
  let pruned: Point[] = []
  const failures: DeltamapperError[] = []
  const attempt = async (work: () => Promise<void>) => {
    await work().catch((error: unknown) => failures.push(asDeltamapperError(error)))
  }
  await attempt(async () => {
    signal.throwIfAborted()
    made = await makePoint({
      ...{ chain, handle: snapshot.handle, created: snapshot.takenAt, open, full, compress, tools, signal },
      onProgress: (done, total) => onProgress(volume, done, total)
    })
  })
  await attempt(() => options.snapshots.giveUp(chain, snapshot, made !== undefined))
  const because = made?.point.full_because
  if (because !== undefined && chain.points.length > 1) remark(`${volume}: a full backup, because ${because}`)
  if (keep !== undefined && made) await attempt(async () => void (pruned = await prune(chain, keep, { signal })))
  return { volume, pruned, ...(made && { made }), ...(failures.length > 0 && { failure: failures[0] }) }
}

/** A snapshot that is there already, and stays. */
export function existingSnapshot(handle: string, takenAt: Date): Snapshots {
  return {
    clear: async () => undefined,
    take: async () => [{ handle, takenAt }],
    giveUp: async () => undefined,
    failure: undefined
  }
}
