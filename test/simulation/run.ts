/** Many lives in one process, what came of them, and the story of one that failed. */
import { execFile } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { availableParallelism, tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { type CatalogDatabase, openDatabase } from '../../src/agent/catalog/database.ts'
import { type Mutant, mutants } from './mutants.ts'
import { leaseLifeOf, liveLeases } from './world/lease-life.ts'
import { type Life, type LifeResult, liveThin, thinLifeOf, type World } from './world/life.ts'

/** So many lives share a catalog, none of whose names another uses. */
const LIVES_A_CATALOG = 500

const worlds = {
  thin: { lifeOf: thinLifeOf, live: liveThin },
  leases: { lifeOf: leaseLifeOf, live: liveLeases }
} satisfies Record<World, unknown>

export const worldNames = Object.keys(worlds) as readonly World[]

export function isWorld(word: string): word is World {
  return Object.hasOwn(worlds, word)
}

/** Lives a life to its end. @param catalog that of the agent, which other lives may have used before; a life's names are its own */
export async function live(life: Life, catalog: CatalogDatabase, tells = false): Promise<LifeResult> {
  return worlds[life.world].live(life, catalog, tells)
}

export class Catalogs {
  readonly #folder = mkdtempSync(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'simulation-'))
  #database: CatalogDatabase | undefined
  #used = 0

  /** One that no life of this seed has used. */
  next(): CatalogDatabase {
    if (this.#used++ % LIVES_A_CATALOG === 0) {
      this.#database?.close()
      this.#database = openDatabase(join(this.#folder, `catalog-${this.#used}`))
    }
    return this.#database!
  }

  fresh(): CatalogDatabase {
    this.#used = 0
    this.#database?.close()
    rmSync(this.#folder, { recursive: true, force: true })
    return this.next()
  }

  [Symbol.dispose](): void {
    this.#database?.close()
    rmSync(this.#folder, { recursive: true, force: true })
  }
}

export interface Totals {
  lives: number
  turns: number
  outcomes: Map<string, number>
  failed: { life: Life; result: LifeResult } | undefined
}

/** Lives from a seed on, up to the first that fails. */
export async function liveOn(world: World, seed: number, lives: number, catalogs: Catalogs): Promise<Totals> {
  const totals: Totals = { lives: 0, turns: 0, outcomes: new Map(), failed: undefined }
  for (let i = 0; i < lives; i++) {
    const life = worlds[world].lifeOf(seed + i)
    const result = await live(life, catalogs.next())
    totals.lives++
    totals.turns += result.turns
    for (const [what, count] of result.outcomes) totals.outcomes.set(what, (totals.outcomes.get(what) ?? 0) + count)
    if (result.violation !== undefined) return { ...totals, failed: { life, result } }
  }
  return totals
}

/** Leaves out whatever can be left out of a life with the same kind of end. */
export async function shrink(life: Life, catalogs: Catalogs): Promise<Life> {
  let smallest = life
  for (let size = Math.ceil(life.actions.length / 2); size >= 1; size = size === 1 ? 0 : Math.ceil(size / 2)) {
    for (let from = 0; from < smallest.actions.length;) {
      const actions = smallest.actions.filter((_, i) => i < from || i >= from + size)
      const candidate = { ...smallest, actions }
      if ((await live(candidate, catalogs.fresh())).violation !== undefined) smallest = candidate
      else from += size
    }
  }
  return smallest
}

export interface RunOptions {
  world: World
  seed: number
  lives: number
  story: boolean
}

/** Lives that one process goes through before it says how it went. */
const LIVES_A_PROCESS = 1000
/** How often progress is told, at most. Milliseconds. */
const TELL_MS = 10_000

/** Lives on all processors. @returns the exit status */
export async function runLives({ world, seed, lives, story }: RunOptions): Promise<number> {
  using catalogs = new Catalogs()
  if (story) {
    const { story: told, violation } = await live(worlds[world].lifeOf(seed), catalogs.next(), true)
    console.log([...told, violation ?? 'all is well'].join('\n'))
    return violation === undefined ? 0 : 1
  }
  const began = performance.now()
  const { failed, ...totals } = await liveOnAll(world, seed, lives)
  const seconds = (performance.now() - began) / 1000
  const outcomes = [...totals.outcomes].sort(([, a], [, b]) => b - a).map(([what, count]) => `${what} ${count}`)
  console.log(
    `${world}: ${totals.lives} lives from seed ${seed} on, ${totals.turns} turns, ${seconds.toFixed(1)} s, ` +
      `${(totals.lives / seconds).toFixed(0)} lives a second (${(totals.lives / totals.cpuSeconds).toFixed(0)} of processor time); ` +
      `answers: ${outcomes.join(', ')}`
  )
  if (failed === undefined) return 0
  const { violation } = await live(worlds[world].lifeOf(failed), catalogs.next())
  console.log(`seed ${failed} failed: ${violation}`)
  const small = await shrink(worlds[world].lifeOf(failed), catalogs)
  const told = await live(small, catalogs.fresh(), true)
  console.log(['', ...told.story, `        ${told.violation}`, '', JSON.stringify(small)].join('\n'))
  return 1
}

/** The same by processes, one for each processor. `failed` is the lowest seed that did, of those that were lived. */
async function liveOnAll(world: World, seed: number, lives: number) {
  const all = { lives: 0, turns: 0, cpuSeconds: 0, outcomes: new Map<string, number>() }
  let failed: number | undefined
  let next = seed
  let toldAt = performance.now()
  const work = async () => {
    while (next < seed + lives && failed === undefined) {
      const from = next
      next = Math.min(seed + lives, next + LIVES_A_PROCESS)
      const part = await liveApart(world, from, next - from)
      for (const count of ['lives', 'turns', 'cpuSeconds'] as const) all[count] += part[count]
      for (const [what, count] of part.outcomes) all.outcomes.set(what, (all.outcomes.get(what) ?? 0) + count)
      if (part.seed !== undefined) failed = Math.min(failed ?? Infinity, part.seed)
      if (performance.now() - toldAt < TELL_MS) continue
      toldAt = performance.now()
      console.error(`${world}: ${all.lives} of ${lives} lives`)
    }
  }
  await Promise.all(Array.from({ length: availableParallelism() }, work))
  return { ...all, failed }
}

/** What a process that has lived (lives-process.ts) prints. */
export interface ProcessTotals {
  readonly lives: number
  readonly turns: number
  readonly cpuSeconds: number
  readonly outcomes: readonly (readonly [what: string, count: number])[]
  /** Of the life that failed. */
  readonly seed?: number
  readonly violation?: string | undefined
}

/** Lives from a seed on in a process of their own, up to the first that fails. @param mutant a guard that is taken away */
async function liveApart(world: World, seed: number, lives: number, mutant?: string): Promise<ProcessTotals> {
  const here = (file: string) => fileURLToPath(new URL(file, import.meta.url))
  const { stdout } = await promisify(execFile)(
    process.execPath,
    ['--import', here('mutate.ts'), here('lives-process.ts'), world, String(seed), String(lives)],
    { env: { ...process.env, ...(mutant !== undefined && { DELTAMAPPER_MUTANT: mutant }) } }
  )
  return JSON.parse(stdout) as ProcessTotals
}

/** @returns the exit status: whether each guard was found to be needed, or is known not to be seen here */
export async function runMutants({
  seed,
  lives,
  only
}: {
  seed: number
  lives: number
  only: string | undefined
}): Promise<number> {
  const waiting = mutants.filter(({ name }) => only === undefined || only.split(',').includes(name))
  const rows = new Map<string, ProcessTotals>()
  const work = async () => {
    for (let mutant = waiting.shift(); mutant; mutant = waiting.shift()) {
      const run = await liveApart(mutant.world ?? 'thin', seed, lives, mutant.name)
      rows.set(mutant.name, run)
      const found =
        run.violation === undefined ? 'NOT FOUND' : `found by seed ${run.seed}: ${run.violation.split('\n')[0]}`
      console.log(`${mutant.name}: ${run.lives} lives, ${found}`)
      writeRow(mutant, run)
    }
  }
  await Promise.all([work(), work()])
  const missed = mutants.filter(
    ({ name, unseen }) => rows.get(name)?.violation === undefined && rows.has(name) && unseen === undefined
  )
  console.log(
    `${rows.size} guards, ${[...rows.values()].filter(({ violation }) => violation !== undefined).length} found`
  )
  return missed.length === 0 ? 0 : 1
}

const PAGE = fileURLToPath(new URL('../../docs/simulation.md', import.meta.url))

/** Puts what came of a mutant into the table of docs/simulation.md, in the order in which mutants are listed. */
function writeRow(mutant: Mutant, { lives, violation }: ProcessTotals): void {
  const page = readFileSync(PAGE, 'utf8')
  const [before, table, after] = page.split(/<!-- guards(?: end)? -->\n/)
  const rows = new Map(table.split('\n').map((row) => [row.split('`')[1], row]))
  const [what] = (violation ?? '').replaceAll(/vg\d+/g, 'vg').split(/[\n:]/)
  const outcome = violation === undefined ? `not found in ${lives} lives` : `found in life ${lives}: ${what}`
  rows.set(
    mutant.name,
    `| \`${mutant.name}\` | ${mutant.guard} | ${mutant.world ?? 'thin'} | ${mutant.unseen ?? outcome} |`
  )
  const listed = mutants.flatMap(({ name }) => rows.get(name) ?? [])
  const head = ['| Guard | What it is | World | What comes of its absence |', '|---|---|---|---|']
  const written = [...head, ...listed, ''].join('\n')
  writeFileSync(PAGE, `${before}<!-- guards -->\n${written}<!-- guards end -->\n${after}`)
}
