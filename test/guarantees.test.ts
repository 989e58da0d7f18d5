/** `docs/guarantees.md` promises only what a test holds: every row of "Always noticed" names one that exists. */
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'

const projectFolder = join(import.meta.dirname, '..')
const page = readFileSync(join(projectFolder, 'docs/guarantees.md'), 'utf8')
const [noticed = ''] = page.split('\n## Cannot be noticed')

/** The cells of every row below a table's head, without the table's own lines. */
function rows(text: string): string[][] {
  return text
    .split('\n')
    .filter((line) => /^\| /.test(line) && !line.startsWith('| What happens |'))
    .map((line) => line.split('|').slice(1, -1))
}

test('each row has three cells', (t) => {
  for (const row of rows(page)) t.is(row.length, 3, row.join('|'))
})

test('each event that is always noticed names a test that exists', (t) => {
  for (const row of rows(noticed)) {
    const named = [...(row[2] ?? '').matchAll(/`(test\/[^`]+)`/g)].map((match) => match[1] ?? '')
    t.true(named.length > 0, `no test is named for "${row[0]?.trim()}"`)
    for (const file of named) t.true(existsSync(join(projectFolder, file)), `there is no ${file}`)
  }
})
