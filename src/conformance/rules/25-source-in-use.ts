/**
 * Written all the while.
 * Source: KEP-3314
 */
import { judgeContents } from '../content.ts'
import type { Rule } from '../rule.ts'

export const rule: Rule = {
  number: 25,
  level: 'must',
  title: 'it is served while the source volume is written',
  source: 'KEP-3314',
  judge: (run) => judgeContents(run, ({ history }) => history === 'source-in-use')
}
