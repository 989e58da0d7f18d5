/** The guards that the simulation takes away: each is where its mutant looks for it, and the table of docs/simulation.md has them all. */
import { readFileSync } from 'node:fs'
import test from 'ava'
import { foundIn, readTable } from './guard-table.ts'
import { mutants } from './mutants.ts'

/** Of lives that a guard is found in at the latest. */
const MOST_LIVES = 10_000

const text = (path: string) => readFileSync(new URL(`../../${path}`, import.meta.url), 'utf8')

test('each guard is where its mutant looks for it, once', (t) => {
  for (const { name, file, from } of mutants) t.is(text(file).split(from).length, 2, name)
  t.is(new Set(mutants.map(({ name }) => name)).size, mutants.length)
})

test('the table says of each guard what came of its absence, or why nothing did', (t) => {
  const table = readTable()
  t.deepEqual(
    [...table.keys()],
    mutants.map(({ name }) => name)
  )
  for (const { name, guard, unseen } of mutants) {
    const row = table.get(name)!
    t.true(row.includes(`| ${guard} |`), name)
    if (unseen === undefined) t.true((foundIn(row) ?? Infinity) <= MOST_LIVES, name)
    else t.true(row.includes(unseen), name)
  }
})

test('guards that stand in for one another are guards themselves', (t) => {
  const names = new Set(mutants.map(({ name }) => name))
  for (const { name, coveredBy = [] } of mutants) {
    for (const other of coveredBy) t.true(names.has(other) && other !== name, name)
  }
})
