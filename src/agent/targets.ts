/**
 * The registry of targets: every kind of storage that the agent answers for. A target makes a plan in the main thread
 * (walks/plan.ts), and its walk runs in a walker thread. Nothing else knows which kinds exist; docs/architecture.md
 * says how to add one.
 */
import { classicAnswers } from './answers/classic-snapshot.ts'
import { thinAnswers } from './answers/thin-snapshots.ts'
import { trackedAnswers } from './answers/tracked-volume.ts'
import type { AnswersOf, AnswerServices, Target, TargetAnswers } from './answers/target.ts'
import { classicWalk } from './walks/classic-walk.ts'
import { historyWalk } from './walks/history-walk.ts'
import type { Walk } from './walks/plan.ts'
import { thinWalk } from './walks/thin-walk.ts'

/** By the `kind` of the snapshots that its sources find. */
export const targets = {
  thin: { answers: thinAnswers, walk: thinWalk },
  tracked: { answers: trackedAnswers, walk: historyWalk },
  classic: { answers: classicAnswers, walk: classicWalk }
} satisfies Record<string, Target<never, never>>

/** The target for each kind, with what the agent provides. */
export function answersWith(services: AnswerServices): AnswersOf {
  const made = new Map<string, TargetAnswers<never>>()
  for (const [kind, { answers }] of Object.entries(targets)) made.set(kind, answers(services))
  // A source that finds a snapshot of a kind returns the form that its target takes.
  return (kind) => made.get(kind)
}

/** @throws Error when there is no such target */
export function walkOf(target: string): Walk<unknown> {
  if (!Object.hasOwn(targets, target)) throw new Error(`there is no target ${target}`)
  // The target that planned the walk has made its request.
  return targets[target as keyof typeof targets].walk as Walk<unknown>
}
