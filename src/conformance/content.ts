/**
 * How comparisons of data are judged.
 */
import type { ContentRecord } from './content-record.ts'
import { rangesOf, shown, totalBytes } from './ranges.ts'
import { fail, pass, skip, type Verdict } from './rule.ts'
import type { Run } from './run.ts'

/** Under what number the calls of content rules are recorded: one comparison serves many of them. */
export const CONTENT = 22

/** Histories that rules of their own judge. */
export const beside: readonly string[] = ['restored-in-use', 'source-in-use', 'base-deleted']

export function judgeContents(run: Run, which: (record: ContentRecord) => boolean): Verdict {
  const records = run.contents.filter(which)
  if (records.length === 0) return skip('nothing was written: see --hooks and --content')
  const what = ({ history, base, target }: ContentRecord) =>
    `${history}: ${base === null ? '' : `${base} to `}${target}`
  const wrong = records.find(({ lost }) => lost.length > 0)
  if (wrong !== undefined) {
    const left = rangesOf({ flat: wrong.lost })
    return fail(`${what(wrong)}: ${totalBytes(left)} bytes differ and were not reported: ${shown(left)}`)
  }
  const failed = records.find(({ failure }) => failure !== null)
  if (failed !== undefined) return fail(`${what(failed)}: ${failed.failure}`)
  const names = [...new Set(records.map(({ history }) => history))].join(', ')
  const skipped = run.skippedContents.filter(which).map(({ history, skipped }) => `; ${history} skipped: ${skipped}`)
  return pass(`${records.length} comparisons: ${names}${skipped.join('')}`)
}
