/** Many lives in one process, what came of them, and the story of one that failed. */
import { execFile } from 'node:child_process'
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { type CatalogDatabase, openDatabase } from '../../src/agent/catalog/database.ts'
import { type Mutant, mutants } from './mutants.ts'
import { foundIn, lookedAtIn, readTable, writeRow } from './guard-table.ts'
import { eraLifeOf, liveEra } from './world/era-life.ts'
import { leaseLifeOf, liveLeases } from './world/lease-life.ts'
import { liveOwned, ownedLifeOf } from './world/owned-life.ts'
import { type Life, type LifeResult, liveThin, thinLifeOf, type World } from './world/life.ts'
import { seedsOf, type Theme } from './world/themes.ts'

/** So many lives share a catalog, none of whose names another uses. */
const LIVES_A_CATALOG = 500

const worlds = {
  thin: { lifeOf: thinLifeOf, live: liveThin },
  leases: { lifeOf: leaseLifeOf, live: liveLeases },
  era: { lifeOf: eraLifeOf, live: liveEra },
  owned: { lifeOf: ownedLifeOf, live: liveOwned }
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

/** Lives from a seed on, up to the first that fails. @param theme only those that are about it */
export async function liveOn(
  world: World,
  seed: number,
  lives: number,
  catalogs: Catalogs,
  theme?: Theme
): Promise<Totals> {
  const totals: Totals = { lives: 0, turns: 0, outcomes: new Map(), failed: undefined }
  for (const each of seedsOf(theme, seed, lives)) {
    const life = worlds[world].lifeOf(each)
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
  /** How many at once. */
  processes: number
}

/** Lives that one process goes through before it says how it went. */
const LIVES_A_PROCESS = 1000
/** How often progress is told, at most. Milliseconds. */
const TELL_MS = 10_000

/** Lives in processes of their own. @returns the exit status */
export async function runLives({ world, seed, lives, story, processes }: RunOptions): Promise<number> {
  using catalogs = new Catalogs()
  if (story) {
    const { story: told, violation } = await live(worlds[world].lifeOf(seed), catalogs.next(), true)
    console.log([...told, violation ?? 'all is well'].join('\n'))
    return violation === undefined ? 0 : 1
  }
  const began = performance.now()
  const { failed, ...totals } = await liveOnAll(world, seed, lives, processes)
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

/** The same by processes. `failed` is the lowest seed that did, of those that were lived. */
async function liveOnAll(world: World, seed: number, lives: number, processes: number) {
  const all = { lives: 0, turns: 0, cpuSeconds: 0, outcomes: new Map<string, number>() }
  let failed: number | undefined
  let next = seed
  let toldAt = performance.now()
  const work = async () => {
    while (next < seed + lives && failed === undefined) {
      const from = next
      next = Math.min(seed + lives, next + LIVES_A_PROCESS)
      const part = await liveApart({ world, seed: from, lives: next - from })
      for (const count of ['lives', 'turns', 'cpuSeconds'] as const) all[count] += part[count]
      for (const [what, count] of part.outcomes) all.outcomes.set(what, (all.outcomes.get(what) ?? 0) + count)
      if (part.seed !== undefined) failed = Math.min(failed ?? Infinity, part.seed)
      if (performance.now() - toldAt < TELL_MS) continue
      toldAt = performance.now()
      console.error(`${world}: ${all.lives} of ${lives} lives`)
    }
  }
  await Promise.all(Array.from({ length: processes }, work))
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

/** Lives of one process. */
interface Share {
  readonly world: World
  readonly seed: number
  readonly lives: number
  readonly theme?: Theme | undefined
  /** Guards that are taken away. */
  readonly without?: readonly string[]
}

/** Lives from a seed on in a process of their own, up to the first that fails. */
async function liveApart({ world, seed, lives, theme, without = [] }: Share): Promise<ProcessTotals> {
  const here = (file: string) => fileURLToPath(new URL(file, import.meta.url))
  const { stdout } = await promisify(execFile)(
    process.execPath,
    ['--import', here('mutate.ts'), here('lives-process.ts'), world, String(seed), String(lives), theme ?? ''],
    { env: { ...process.env, DELTAMAPPER_MUTANTS: without.join(',') } }
  )
  return JSON.parse(stdout) as ProcessTotals
}

export interface MutantsOptions {
  readonly seed: number
  /** Lives at most for each. */
  readonly lives: number
  /** Names of guards; all where left out. */
  readonly only: readonly string[] | undefined
  /** Those of which the table knows already what comes of their absence are looked at once more. */
  readonly again: boolean
  readonly processes: number
}

/**
 * Takes guards away, one after the other, and writes the table. A run that was ended goes on where it was: the table says what is known.
 *
 * @returns the exit status: whether each guard that was looked at was found to be needed
 */
export async function runMutants({ seed, lives, only, again, processes }: MutantsOptions): Promise<number> {
  const chosen = mutants.filter(({ name }) => only?.includes(name) ?? true)
  if (again) for (const { name } of chosen) writeRow(name, undefined)
  const waiting = chosen.filter(({ name }) => foundIn(readTable().get(name)) === undefined)
  const known = chosen.length - waiting.length
  console.log(`${waiting.length} guards to be taken away; of ${known} more the table says what came of it`)
  const work = async () => {
    for (let mutant = waiting.shift(); mutant; mutant = waiting.shift()) {
      await lookFor(mutant, seed, lives)
      console.log(`${readTable().get(mutant.name)}  (${waiting.length} wait)`)
    }
  }
  await Promise.all(Array.from({ length: processes }, work))
  const table = readTable()
  const missed = chosen.filter(({ name, unseen }) => foundIn(table.get(name)) === undefined && unseen === undefined)
  const found = chosen.filter(({ name }) => foundIn(table.get(name)) !== undefined)
  console.log(`${chosen.length} guards, ${found.length} missed; to be looked into: ${namesOf(missed)}`)
  return missed.length === 0 ? 0 : 1
}

function namesOf(guards: readonly Mutant[]): string {
  return guards.map(({ name }) => name).join(', ') || 'none'
}

/** Lives without a guard, a process's share after the other, up to the first that fails or the last that is allowed. */
async function lookFor(mutant: Mutant, seed: number, lives: number): Promise<void> {
  const { name, world = 'thin', theme, coveredBy = [] } = mutant
  const without = [name, ...coveredBy]
  let lived = lookedAtIn(readTable().get(name))
  while (lived < lives) {
    // Most are found soon, and a process takes as long to start as fifty lives.
    const next = Math.min(lives - lived, Math.max(250, Math.min(lived, LIVES_A_PROCESS)))
    const from = seedsOf(theme, seed, lived + 1).at(-1)!
    const part = await liveApart({ world, seed: from, lives: next, theme, without })
    lived += part.lives
    // What comes of it without the others alone says nothing of this one.
    if (part.seed !== undefined && coveredBy.length > 0) {
      const others = await liveApart({ world, seed: part.seed, lives: 1, without: coveredBy })
      if (others.violation !== undefined) {
        writeRow(name, { lives: lived })
        continue
      }
    }
    writeRow(name, { lives: lived, seed: part.seed, violation: part.violation })
    if (part.violation !== undefined) return
    console.error(`${name}: not found in ${lived} of ${lives} lives`)
  }
}
