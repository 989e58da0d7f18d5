/**
 * The walk of each target (targets.ts), for walker threads: they load this and nothing else of a target, because every
 * thread loads its own copy.
 */
import { classicWalk } from './classic-walk.ts'
import { historyWalk } from './history-walk.ts'
import type { Walk } from './plan.ts'
import { thinWalk } from './thin-walk.ts'

const walks = { thin: thinWalk, tracked: historyWalk, classic: classicWalk }

/** A target, as plans and snapshots name it. */
export type TargetName = keyof typeof walks

/** @throws Error when there is no such target */
export function walkOf(target: string): Walk<unknown> {
  if (!Object.hasOwn(walks, target)) throw new Error(`there is no target ${target}`)
  // The target that planned the walk has made its request.
  return walks[target as TargetName] as Walk<unknown>
}
