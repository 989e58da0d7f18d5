/**
 * The suite is proven by drivers that break a rule each: docs/conformance.md says which rules notice which, and this
 * holds it to that, for some of them; CONFORMANCE_SEED picks others. (A whole run against each is what
 * scripts/conformance-table.ts does, and `npm run soak -- --section conformance` with --check.)
 */
import { readFileSync } from 'node:fs'
import test from 'ava'
import { loadRules } from '../../src/conformance/rule.ts'
import { Random } from '../../src/random.ts'
import { turns } from '../support/turns.ts'
import { askMock, drivers, numbers } from '../../scripts/conformance-table.ts'

const page = readFileSync(new URL('../../docs/conformance.md', import.meta.url), 'utf8')
const table = new Map(
  [...page.matchAll(/^\| `([a-z-]+)` +\| (honest|liar|mutant) +\| .*\| ([\d, –]+?) +\| ([\d, –]+?) +\|$/gm)].map(
    ([, name, kind, fails, warnings]) => [name, { kind, fails, warnings }]
  )
)
const inTurn = turns(2)
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

/** The honest ones that differ most from ours, and of the others as many as a few seconds allow. */
function asked() {
  const random = new Random(Number(process.env['CONFORMANCE_SEED'] ?? 1))
  const others = random.shuffle(drivers().filter(({ kind }) => kind !== 'honest'))
  return [...drivers().filter(({ name }) => name === 'no-message' || name === 'fixed-length'), ...others.slice(0, 8)]
}

for (const { name, kind } of asked()) {
  const row = table.get(name)
  if (row === undefined) continue
  const rules = [...numbersIn(row.fails), ...numbersIn(row.warnings)]
  test(`${name} is caught as the table says`, async (t) => {
    t.timeout(900_000)
    // One that hangs costs patience with every rule, and what is wedged is so once a rule has cancelled: two of
    // them tell enough.
    const some = name === 'hangs' ? [4, 31] : name.startsWith('wedged') ? [27, 28] : rules
    const report = await inTurn(() => askMock(name, kind === 'honest' ? undefined : some))
    const found = [...numbersIn(numbers(report, 'fail')), ...numbersIn(numbers(report, 'warn'))]
    if (kind === 'honest' || rules.length === 1) {
      t.deepEqual(found, rules)
      return
    }
    // A rule that judges all streams may need those that another rule has asked for.
    t.true(found.length > 0)
    t.deepEqual(
      found.filter((number) => !rules.includes(number)),
      []
    )
  })
}
