/**
 * For every history that docs/conformance.md lists.
 * Source: CSI specification, GetMetadataDelta; the upstream verifier
 */
import { beside, judgeContents } from '../content.ts'
import type { Rule } from '../rule.ts'

export const rule: Rule = {
  number: 22,
  level: 'must',
  title: 'a delta applied to the base is the target, byte for byte',
  source: 'CSI specification, GetMetadataDelta; the upstream verifier',
  judge: (run) => judgeContents(run, ({ base, history }) => base !== null && !beside.includes(history))
}
