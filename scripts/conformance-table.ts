/**
 * Makes the tables of docs/conformance.md: every rule, every mutant, and which rules notice which mutant. Each mutant
 * and each honest dialect is asked by a whole conformance run.
 *
 *     node scripts/conformance-table.ts          writes them into the page
 *     node scripts/conformance-table.ts --check  fails where the page says otherwise
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { type Report, runConformance } from '../src/conformance/conformance.ts'
import { loadRules, type Rule } from '../src/conformance/rule.ts'
import { startMock } from '../src/mock/mock.ts'
import { listScenarios, type Scenario } from '../src/mock/driver/scenario.ts'

const page = new URL('../docs/conformance.md', import.meta.url)

/** Scenarios that only the Kubernetes side shows, and those in which calls fail as any may: no driver's fault. */
const isDriver = ({ kind, refuseDelta }: Scenario) => kind !== 'cut' && refuseDelta === undefined

/** Every driver that the suite is proven on: honest dialects first. */
export function drivers(): Scenario[] {
  const all = [...listScenarios().filter(isDriver), ...listScenarios('mutants')]
  return [...all.filter(({ kind }) => kind === 'honest'), ...all.filter(({ kind }) => kind !== 'honest')]
}

/** A whole run against a mock of that scenario; or of some rules. */
export async function askMock(scenario: string, rules?: readonly number[]): Promise<Report> {
  const mock = await startMock({ scenario })
  try {
    const [{ volume }] = mock.snapshots
    const ids = (own: boolean) => mock.snapshots.filter((each) => (each.volume === volume) === own).map(({ id }) => id)
    const { report } = await runConformance({
      endpoint: mock.endpoint,
      snapshots: ids(true),
      otherSnapshots: ids(false),
      untrackedSnapshots: mock.untracked,
      unreadySnapshot: mock.unready,
      deviceBytes: Object.fromEntries(mock.snapshots.map(({ id, capacityBytes }) => [id, capacityBytes])),
      rules,
      patience: { slowReaderMs: 100, callMs: scenario === 'hangs' ? 2000 : 20_000 }
    })
    return report
  } finally {
    await mock.stop()
  }
}

/** Numbers of the rules with that outcome, as the table shows them. */
export function numbers({ rules }: Report, outcome: 'fail' | 'warn'): string {
  const found = rules.filter((rule) => rule.outcome === outcome).map(({ number }) => number)
  return found.length === 0 ? '–' : found.join(', ')
}

function rulesTable(rules: readonly Rule[], caught: ReadonlyMap<number, readonly string[]>): string {
  const rows = rules.map(({ number, level, title, source }) => {
    const mutants = caught.get(number) ?? []
    return `| ${number} | ${level} | ${title} | ${source} | ${mutants.map((name) => `\`${name}\``).join(', ') || '–'} |`
  })
  return ['| Rule | Level | What | Source | Mutants that break it |', '|---|---|---|---|---|', ...rows].join('\n')
}

function mutantsTable(reports: readonly (readonly [Scenario, Report])[]): string {
  const rows = reports.map(
    ([{ name, kind, summary }, report]) =>
      `| \`${name}\` | ${kind} | ${summary} | ${numbers(report, 'fail')} | ${numbers(report, 'warn')} |`
  )
  return ['| Driver | Kind | What it does | Fails | Warnings |', '|---|---|---|---|---|', ...rows].join('\n')
}

/** Replaces what stands between two marks. */
function between(text: string, mark: string, content: string): string {
  const [begin, end] = [`<!-- ${mark}: made by scripts/conformance-table.ts -->`, `<!-- end of ${mark} -->`]
  const [start, stop] = [text.indexOf(begin), text.indexOf(end)]
  if (start < 0 || stop < 0) throw new Error(`docs/conformance.md has no ${begin}`)
  return `${text.slice(0, start + begin.length)}\n\n${content}\n\n${text.slice(stop)}`
}

/** Without what a formatter does to tables. */
const plain = (text: string) => text.replaceAll(/ +/g, ' ').replaceAll(/-{3,}/g, '---')

async function main(check: boolean): Promise<void> {
  const reports: [Scenario, Report][] = []
  const waiting = drivers()
  const results = new Map<string, Report>()
  await Promise.all(
    Array.from({ length: 4 }, async () => {
      for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) {
        results.set(next.name, await askMock(next.name))
        process.stderr.write('.')
      }
    })
  )
  for (const scenario of drivers()) reports.push([scenario, results.get(scenario.name)!])
  const rules = await loadRules()
  const caught = new Map(
    rules.map(({ number }) => [
      number,
      reports
        .filter(([, report]) =>
          report.rules.some((rule) => rule.number === number && ['fail', 'warn'].includes(rule.outcome))
        )
        .map(([{ name }]) => name)
    ])
  )
  const before = readFileSync(page, 'utf8')
  const after = between(between(before, 'rules', rulesTable(rules, caught)), 'mutants', mutantsTable(reports))
  if (!check) writeFileSync(page, after)
  else if (plain(before) !== plain(after))
    throw new Error('docs/conformance.md says otherwise: run node scripts/conformance-table.ts')
}

if (import.meta.main) await main(process.argv.includes('--check'))
