/**
 * Never a wrong answer that ends OK.
 * Source: CSI specification; requireBaseSnapshotForDelta of external-snapshot-metadata
 */
import { CONTENT, judgeContents } from '../content.ts'
import { refusals, skip, type Rule } from '../rule.ts'
import { isOk } from '../run.ts'

export const rule: Rule = {
  number: 30,
  level: 'must',
  title: 'with its base deleted, a delta is right or refused with NOT_FOUND or FAILED_PRECONDITION',
  source: 'CSI specification; requireBaseSnapshotForDelta of external-snapshot-metadata',
  judge: (run) => {
    const calls = run.streamsOf(CONTENT, 'base deleted')
    if (calls.length === 0) return skip('no base was deleted: see --hooks and --content')
    const refused = calls.filter(({ end }) => !isOk(end))
    if (refused.length > 0) return refusals(refused, ['NOT_FOUND', 'FAILED_PRECONDITION'])
    return judgeContents(run, ({ history }) => history === 'base-deleted')
  }
}
