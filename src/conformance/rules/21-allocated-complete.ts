/**
 * The allocated ranges, copied onto zeroes, are the device, byte for byte.
 * Source: CSI specification, GetMetadataAllocated; the upstream verifier
 */
import { beside, judgeContents } from '../content.ts'
import type { Rule } from '../rule.ts'

export const rule: Rule = {
  number: 21,
  level: 'must',
  title: 'what is allocated is all that was written and not discarded',
  source: 'CSI specification, GetMetadataAllocated; the upstream verifier',
  judge: (run) => judgeContents(run, ({ base, history }) => base === null && !beside.includes(history))
}
