/**
 * The ratio of reported bytes to bytes that really changed, over all histories. Measured, not judged.
 * Source: practice of clients
 */
import { pass, skip, type Rule } from '../rule.ts'

export const rule: Rule = {
  number: 23,
  level: 'note',
  title: 'how much more is reported than changed',
  source: 'practice of clients',
  judge: (run) => {
    const deltas = run.contents.filter(({ base, failure }) => base !== null && failure === null)
    const [reported, changed] = [
      deltas.map(({ reportedBytes }) => reportedBytes),
      deltas.map(({ changedBytes }) => changedBytes)
    ].map((bytes) => bytes.reduce((sum, each) => sum + each, 0))
    if (changed === undefined || changed === 0 || reported === undefined)
      return skip('nothing was written: see --hooks and --content')
    return pass(`${reported} bytes reported, ${changed} changed: ${(reported / changed).toFixed(2)} times`)
  }
}
