/**
 * The suite is proven by drivers that break a rule each: docs/conformance.md says which rules notice which, and this holds it to that. (A whole run against
 * each is what scripts/conformance-table.ts does.)
 */
import { readFileSync } from 'node:fs'
import test from 'ava'
import { loadRules } from '../../src/conformance/rule.ts'
import { askMock, drivers, numbers } from '../../scripts/conformance-table.ts'

const page = readFileSync(new URL('../../docs/conformance.md', import.meta.url), 'utf8')
const table = new Map(
  [...page.matchAll(/^\| `([a-z-]+)` +\| (honest|liar|mutant) +\| .*\| ([\d, –]+?) +\| ([\d, –]+?) +\|$/gm)].map(
    ([, name, kind, fails, warnings]) => [name, { kind, fails, warnings }]
  )
)
const numbersIn = (text: string) => (text === '–' ? [] : text.split(', ').map(Number))

test('every driver has a row, and every row a driver', (t) => {
  t.deepEqual(
    [...table.keys()].sort(),
    drivers()
      .map(({ name }) => name)
      .sort()
  )
})

test('every rule has a row, with its level, title and source, and each "must" without writing has a mutant', async (t) => {
  for (const { number, level, title, source } of await loadRules()) {
    const row = page.split('\n').find((line) => line.startsWith(`| ${number} `)) ?? ''
    const cells = row.split('|').map((cell) => cell.trim())
    t.deepEqual(cells.slice(1, 5), [String(number), level, title, source])
    const needsData = [21, 22, 24, 25, 29, 30].includes(number)
    if (level === 'must' && !needsData) t.regex(cells[5], /`/, `no mutant breaks rule ${number}`)
  }
})

test('every mutant and liar is caught', (t) => {
  for (const [name, { kind, fails, warnings }] of table) {
    if (kind === 'honest') t.is(fails, '–', name)
    else t.true(numbersIn(fails).length + numbersIn(warnings).length > 0, name)
  }
})

for (const { name, kind } of drivers()) {
  const row = table.get(name)
  if (row === undefined) continue
  const rules = [...numbersIn(row.fails), ...numbersIn(row.warnings)]
  test(`${name} breaks just what the table says`, async (t) => {
    t.timeout(120_000)
    // One that hangs costs patience with every rule: two of them tell enough.
    const some = name === 'hangs' ? [4, 31] : rules
    const report = await askMock(name, kind === 'honest' ? undefined : some)
    const among = (text: string) => numbersIn(text).filter((number) => kind === 'honest' || some.includes(number))
    t.deepEqual(numbersIn(numbers(report, 'fail')), among(row.fails))
    t.deepEqual(numbersIn(numbers(report, 'warn')), among(row.warnings))
  })
}
