/**
 * Reported which.
 * Source: the specification is silent; vSphere and hostpath differ
 */
import { describe, ended, pass, skip, statusName, warn, type Rule } from '../rule.ts'
import { isOk } from '../run.ts'

export const rule: Rule = {
  number: 38,
  level: 'note',
  title: 'a snapshot compared with itself: INVALID_ARGUMENT, or OK and empty',
  source: 'the specification is silent; vSphere and hostpath differ',
  ask: async (asker) => {
    const [target] = asker.given.snapshots.slice(-1)
    if (target !== undefined) await asker.stream('itself', { base: target, target })
  },
  judge: (run) => {
    const [call] = run.streamsOf(38)
    if (call === undefined) return skip('no snapshot was given')
    const { question, end, answer } = call
    const seen = `${describe(question)}: ${ended(end)}, ${answer.messages} messages, ${answer.tuples} tuples`
    const usual = statusName(end) === 'INVALID_ARGUMENT' || (isOk(end) && answer.tuples === 0)
    return (usual ? pass : warn)(seen)
  }
}
