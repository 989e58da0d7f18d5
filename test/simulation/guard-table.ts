/**
 * The table of guards in docs/simulation.md: what came of the absence of each, written row by row as it is found out, and read to go on
 * where an earlier run ended.
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { type Mutant, mutants } from './mutants.ts'

const PAGE = fileURLToPath(new URL('../../docs/simulation.md', import.meta.url))
const BOUNDS = /<!-- guards(?: end)? -->\n/
const HEAD = ['| Guard | What it is | World | What comes of its absence |', '|---|---|---|---|']

/** What is known of a guard after so many lives without it; `seed` and `violation` are those of the life that failed. */
export interface Looked {
  readonly lives: number
  readonly seed?: number | undefined
  readonly violation?: string | undefined
}

/** Rows by the name of their guard. */
export function readTable(): Map<string, string> {
  const [, table = ''] = readFileSync(PAGE, 'utf8').split(BOUNDS)
  return new Map(table.split('\n').flatMap((row) => (row.startsWith('| `') ? [[row.split('`')[1], row] as const] : [])))
}

/** In which life it was found that the guard is needed; undefined where it was not. */
export function foundIn(row: string | undefined): number | undefined {
  const [, life] = /found in life (\d+)/.exec(row ?? '') ?? []
  return life === undefined ? undefined : Number(life)
}

/** In how many lives nothing was found. */
export function lookedAtIn(row: string | undefined): number {
  return Number(/not found in (\d+) lives/.exec(row ?? '')?.[1] ?? 0)
}

/** @param looked left out: the row goes */
export function writeRow(name: string, looked: Looked | undefined): void {
  const rows = readTable()
  const mutant = mutants.find((each) => each.name === name)
  if (mutant && looked) rows.set(name, rowOf(mutant, looked))
  else rows.delete(name)
  const listed = mutants.flatMap((each) => rows.get(each.name) ?? [])
  const [before, , after] = readFileSync(PAGE, 'utf8').split(BOUNDS)
  const table = [...HEAD, ...listed, ''].join('\n')
  writeFileSync(PAGE, `${before}<!-- guards -->\n${table}<!-- guards end -->\n${after}`)
}

function rowOf(
  { name, guard, world = 'thin', theme, coveredBy = [], unseen }: Mutant,
  { lives, seed, violation }: Looked
): string {
  const [what] = (violation ?? '').replaceAll(/vg\d+/g, 'vg').split(/[\n:]/)
  const found =
    violation === undefined ? `not found in ${lives} lives` : `found in life ${lives} (seed ${seed}): ${what}`
  const others = coveredBy.map((each) => `\`${each}\``).join(' and ')
  const outcome = others === '' ? found : `covered by ${others}; without all of them, ${found}`
  const told = unseen === undefined || violation !== undefined ? outcome : `${found}: ${unseen}`
  return `| \`${name}\` | ${guard} | ${world}${theme === undefined ? '' : `, ${theme}`} | ${told} |`
}
