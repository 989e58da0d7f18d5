/** What `doctor` prints for people. */
import { readFileSync } from 'node:fs'
import test from 'ava'
import { examinationText } from '../../../src/cli/output/examination-text.ts'
import { examinationOf } from '../../support/examination.ts'

const migrations = new URL('../../../src/agent/catalog/store/migrations.ts', import.meta.url)

function catalogLine(rows: { table: string; rows: number }[]): string {
  const { catalog } = examinationOf()
  const examination = examinationOf({ catalog: { ...catalog, rows } })
  const text = examinationText({ endpoint: undefined, examination }, { width: 1000, colour: false })
  return /^catalog .*$/m.exec(text)?.[0] ?? ''
}

test('what is in the catalog is said in words, not by the names of its tables', (t) => {
  const [one, many] = [1, 3].map((rows) =>
    catalogLine([
      { table: 'served', rows },
      { table: 'pools', rows: 0 },
      { table: 'era_volumes', rows: 1 },
      { table: 'era_writes', rows }
    ])
  )
  t.regex(one ?? '', /: 1 thin snapshot served, 1 tracked volume$/)
  t.regex(many ?? '', /: 3 thin snapshots served, 1 tracked volume$/)
  t.regex(catalogLine([]), /: empty$/)
})

test('whatever table there is, its name is not printed', (t) => {
  const tables = [...readFileSync(migrations, 'utf8').matchAll(/CREATE TABLE (\w+)/g)].map(([, name = '']) => name)
  t.true(tables.length > 10)
  t.notRegex(catalogLine(tables.map((table) => ({ table, rows: 2 }))), /_[a-z]|pristine|thins/)
})
