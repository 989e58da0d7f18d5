/**
 * The registry of targets: every kind of storage that the agent answers for. A target makes a plan in the main thread
 * (walks/plan.ts), and its walk runs in a walker thread (walks/registry.ts). Nothing else knows which kinds exist;
 * docs/architecture.md says how to add one.
 */
import { classicAnswers } from './answers/classic-snapshot.ts'
import { thinAnswers } from './answers/thin-snapshots.ts'
import { trackedAnswers } from './answers/tracked-volume.ts'
import type { AnswersOf, AnswerServices, Target, TargetAnswers } from './answers/target.ts'
import type { TargetName } from './walks/registry.ts'

/** By the `kind` of the snapshots that its sources find. */
const targets = {
  thin: thinAnswers,
  tracked: trackedAnswers,
  classic: classicAnswers
} satisfies Record<TargetName, Target<never>>

/** The target for each kind, with what the agent provides. */
export function answersWith(services: AnswerServices): AnswersOf {
  const made = new Map<string, TargetAnswers<never>>()
  for (const [kind, answers] of Object.entries(targets)) made.set(kind, answers(services))
  // A source that finds a snapshot of a kind returns the form that its target takes.
  return (kind) => made.get(kind)
}
