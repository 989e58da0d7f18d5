/** The guards that the simulation takes away: each is where its mutant looks for it, and the table of docs/simulation.md has them all. */
import { readFileSync } from 'node:fs'
import test from 'ava'
import { mutants } from './mutants.ts'

const text = (path: string) => readFileSync(new URL(`../../${path}`, import.meta.url), 'utf8')

test('each guard is where its mutant looks for it, once', (t) => {
  for (const { name, file, from } of mutants) t.is(text(file).split(from).length, 2, name)
  t.is(new Set(mutants.map(({ name }) => name)).size, mutants.length)
})
