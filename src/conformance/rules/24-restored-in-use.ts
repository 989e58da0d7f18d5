/**
 * Read and written while the answer comes.
 * Source: KEP-3314
 */
import { judgeContents } from '../content.ts'
import type { Rule } from '../rule.ts'

export const rule: Rule = {
  number: 24,
  level: 'must',
  title: 'it is served while a volume made from the snapshot is in use',
  source: 'KEP-3314',
  judge: (run) => judgeContents(run, ({ history }) => history === 'restored-in-use')
}
