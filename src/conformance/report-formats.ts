/**
 * A report as people and machines read it: a table, JSON, JUnit's XML, or TAP (Test Anything Protocol 14).
 */
import { type Judgement, type Report } from './conformance.ts'

export const formats = ['table', 'json', 'junit', 'tap'] as const
export type Format = (typeof formats)[number]

const writers: Readonly<Record<Format, (report: Report) => string>> = {
  table,
  json: (report) => `${JSON.stringify(report, undefined, 2)}\n`,
  junit,
  tap
}

export function formatted(report: Report, format: Format): string {
  return writers[format](report)
}

/** Control characters come from the driver, and may do anything to a terminal or a document. */
function clean(text: string): string {
  // eslint-disable-next-line no-control-regex -- to remove them is the point
  return text.replaceAll(/[\u0000-\u001f\u007f-\u009f\u2028\u2029\ufffe\uffff]+/g, ' ').toWellFormed()
}

const name = ({ number, title }: Judgement) => `${number} ${title}`

function table({ driver, rules, summary }: Report): string {
  const lines = rules.map(({ outcome, number, level, title, seen, known }) => {
    const word = known ? 'known' : outcome
    return `${word.padEnd(5)}  ${String(number).padStart(2)}  ${level.padEnd(6)}  ${title}\n                   ${clean(seen)}`
  })
  const counts = Object.entries(summary).map(([outcome, count]) => `${count} ${outcome}`)
  const who = driver.name === '' ? 'a driver that does not say its name' : `${driver.name} ${driver.version}`
  return `${[...lines, '', `${clean(who)}: ${counts.join(', ')}`].join('\n')}\n`
}

function junit({ driver, rules, summary }: Report): string {
  const escape = (text: string) => clean(text).replaceAll(/[<>&"']/g, (character) => `&#${character.codePointAt(0)};`)
  const cases = rules.map((rule) => {
    const { outcome, level, seen, source, known } = rule
    const body =
      outcome === 'skip' || known
        ? `<skipped message="${escape(known ? `known: ${seen}` : seen)}"/>`
        : outcome === 'fail'
          ? `<failure message="${escape(seen)}" type="${level}">${escape(`${seen} (${source})`)}</failure>`
          : `<system-out>${escape(`${outcome}: ${seen}`)}</system-out>`
    return `    <testcase classname="csi.v1.SnapshotMetadata.${level}" name="${escape(name(rule))}">${body}</testcase>`
  })
  const known = summary.known ?? 0
  const counts = `tests="${rules.length}" failures="${summary.fail - known}" errors="0" skipped="${summary.skip + known}"`
  return [
    '<?xml version="1.0" encoding="UTF-8"?>',
    `<testsuites ${counts}>`,
    `  <testsuite name="${escape(driver.name || 'driver')}" ${counts}>`,
    ...cases,
    '  </testsuite>',
    '</testsuites>',
    ''
  ].join('\n')
}

function tap({ rules }: Report): string {
  const escape = (text: string) => clean(text).replaceAll('\\', '\\\\').replaceAll('#', '\\#')
  const lines = rules.map((rule) => {
    const { outcome, seen, known } = rule
    const ok = outcome === 'fail' ? 'not ok' : 'ok'
    const directive = outcome === 'skip' ? ` # SKIP ${escape(seen)}` : known ? ' # TODO known' : ''
    const about = outcome === 'skip' ? '' : `\n  # ${outcome}: ${clean(seen)}`
    return `${ok} ${rule.number} - ${escape(rule.title)}${directive}${about}`
  })
  return `TAP version 14\n1..${rules.at(-1)?.number ?? 0}\n${lines.join('\n')}\n`
}
