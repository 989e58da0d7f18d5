/**
 * A life of the world of tracked volumes: an agent that takes snapshots of a volume and answers about them, and everybody who writes past
 * it, exchanges its tables, sends its device messages, brings back older metadata, or dies. After it, each pair of snapshots is held against
 * what they hold.
 */
import { Random } from '../../support/random.ts'
import { catalogCalls, runCall } from '../../../src/agent/catalog/calls.ts'
import { Catalog } from '../../../src/agent/catalog/catalog.ts'
import type { CatalogDatabase } from '../../../src/agent/catalog/database.ts'
import type { EraSnapshot } from '../../../src/agent/catalog/era-snapshots.ts'
import { eraSource, trackedAnswers } from '../../../src/agent/answers/tracked-volume.ts'
import { readEraSlot } from '../../../src/agent/leases/era-slot-content.ts'
import { historyExtents } from '../../../src/agent/walks/history-extents.ts'
import type { HistoryWalkRequest, NextPage } from '../../../src/agent/walks/history-walk.ts'
import { DeltamapperError } from '../../../src/errors.ts'
import { type EraAgent, kernelCall, type LowerContents, openerOf, startEraAgent, Watchdogs } from './era-agent.ts'
import { BLOCK_BYTES, EraMachine, row } from './era-machine.ts'
import { SimulatedKeepers } from './keepers.ts'
import type { Action, Life, LifeResult } from './life.ts'
import { weighted } from './life.ts'
import { goOn } from './going-on.ts'
import { Scheduler } from './scheduler.ts'

/** What anybody may do who minds the rules. */
const calm = { write: 10, snapshot: 8, quiet: 4, reactivate: 1, shutDown: 0.7, ask: 1 } as const

const weights = {
  ...calm,
  mount: 1,
  killAgent: 2,
  startAgent: 4,
  killBoth: 0.7,
  powerCut: 1,
  rescue: 0.7,
  checkpoint: 1,
  resumeBeside: 1,
  bypass: 1.5,
  beneath: 1.5,
  beneathInactive: 1,
  discard: 1,
  staleTable: 1,
  metadataBack: 1,
  foreignSlot: 0.7
} as const

type EraActionKind = keyof typeof weights

type CalmKind = keyof typeof calm
type DyingKind = 'killAgent' | 'startAgent' | 'killBoth' | 'powerCut' | 'rescue'
type BesideKind = Exclude<EraActionKind, CalmKind | DyingKind>

const isCalmKind = (kind: EraActionKind): kind is CalmKind => kind in calm
const isDying = (kind: EraActionKind): kind is DyingKind =>
  ['killAgent', 'startAgent', 'killBoth', 'powerCut', 'rescue'].includes(kind)
const wild = (Object.keys(weights) as EraActionKind[]).filter((kind) => !isCalmKind(kind))

const BLOCKS = 100
const MOST_TURNS = 30_000

export function eraLifeOf(seed: number): Life {
  const random = new Random(seed)
  const isCalm = random.chance(0.2)
  // Much that happens hides something else that could have: most lives are about one thing.
  const about = random.chance(0.7) ? random.pick(wild) : undefined
  const chosen = isCalm ? calm : about ? { ...calm, startAgent: 2, [about]: 6 } : weights
  const kinds = Object.entries(chosen) as [EraActionKind, number][]
  const actions = Array.from({ length: random.integer(6, 30) }, () => ({
    kind: weighted(random, kinds),
    numbers: [random.uint32(), random.uint32(), random.uint32(), random.uint32()] as const
  }))
  return { world: 'era', seed, actions, isCalm }
}

export async function liveEra(life: Life, catalog: CatalogDatabase, tells: boolean): Promise<LifeResult> {
  const world = new EraWorld(life, catalog, tells)
  const violation = await world.run()
  world.forget()
  return { violation, story: world.story, turns: world.turns, outcomes: world.outcomes }
}

class EraWorld {
  readonly story: string[] = []
  readonly outcomes = new Map<string, number>()
  readonly #life: Life
  readonly #tells: boolean
  readonly #scheduler: Scheduler
  readonly #machine: EraMachine
  readonly #keepers: SimulatedKeepers
  readonly #watchdogs: Watchdogs
  readonly #taken: LowerContents = new Map()
  readonly #catalog: CatalogDatabase
  /** The same, asked at once. */
  readonly #answers: Catalog
  readonly #volume: string
  readonly #trustRestarts: boolean
  #agent: EraAgent | undefined
  #agents = 0
  #snapshots = 0
  /** Calls of the agent's users that are not answered yet. */
  #open = 0
  /** The unit that deactivates it at shutdown is under way. */
  #isShuttingDown = false
  #violation: string | undefined

  constructor(life: Life, catalog: CatalogDatabase, tells: boolean) {
    this.#life = life
    this.#tells = tells
    this.#catalog = catalog
    const calls = catalogCalls(catalog)
    this.#answers = new Catalog('/simulated/catalog', {
      run: () => ({
        ...{ opening: Promise.resolve(catalog.opening), gone: Promise.resolve(), ended: false, stuck: false },
        call: async (call, args) => (call === 'close' ? undefined : runCall(calls, call, args))
      })
    })
    this.#volume = `v${life.seed}`
    const random = new Random(life.seed ^ 0xe7a)
    this.#trustRestarts = random.chance(0.5)
    this.#scheduler = new Scheduler(random)
    const machine = new EraMachine(this.#scheduler, BLOCKS)
    this.#machine = machine
    this.#watchdogs = new Watchdogs(machine)
    this.#keepers = new SimulatedKeepers({
      kind: 'era',
      scheduler: this.#scheduler,
      send: (owner, text) =>
        kernelCall(machine, owner, async () => {
          const device = machine.volume
          if (device) await machine.message(device, text)
        }),
      look: (owner, { path, device }) => readEraSlot(path, device, openerOf(machine, owner))
    })
  }

  get turns(): number {
    return this.#scheduler.turn
  }

  async run(): Promise<string | undefined> {
    const scheduler = this.#scheduler
    const { random } = scheduler
    try {
      this.#startAgent()
      const attached = this.#call('attach', ({ volumes }) =>
        volumes.attachEra({
          ...{ name: this.#volume, dataDevice: '/dev/mapper/vg-data', metadataDevice: '/dev/mapper/vg-meta' },
          ...{ blockBytes: BLOCK_BYTES, snapshotSize: '', allowLossyKernel: true }
        })
      )
      await this.#quiet()
      if (!(await attached)) return this.#violation ?? 'the volume cannot be attached'
      for (let next = 0; scheduler.turn < MOST_TURNS; await scheduler.settle()) {
        if (this.#violation !== undefined) return this.#violation
        const action = this.#life.actions.at(next)
        if (!action && scheduler.isIdle && this.#open === 0) break
        const mayAct = action && (action.kind !== 'quiet' || this.#isQuiet)
        if (mayAct && (this.#isQuiet || random.chance(0.06))) {
          next++
          this.#perform(action)
        } else if (!(await this.#goOn())) break
      }
      return await this.#end()
    } catch (error) {
      return `the world broke: ${(error as Error).stack}`
    }
  }

  /** One more snapshot, if there can be one, and then every pair. */
  async #end(): Promise<string | undefined> {
    this.#startAgent()
    await this.#quiet()
    for (const each of ['reactivate', 'snapshot', 'snapshot'] as const) {
      this.#perform({ kind: each, numbers: [0, 0, 0, 0] })
      await this.#quiet()
    }
    if (this.#machine.volume?.isSuspended) return 'the volume is left suspended'
    return this.#violation ?? (await this.#checkAll())
  }

  get #isQuiet(): boolean {
    return this.#scheduler.isIdle && this.#open === 0
  }

  async #quiet(): Promise<void> {
    const scheduler = this.#scheduler
    for (; scheduler.turn < 2 * MOST_TURNS; await scheduler.settle()) {
      if (!(await this.#goOn())) return
    }
  }

  /** @returns false where the life does not go on */
  async #goOn(): Promise<boolean> {
    const how = await goOn(this.#scheduler, () => this.#open)
    if (how === 'stuck') this.#violation ??= 'somebody waits for ever'
    return how === 'on'
  }

  #perform({ kind, numbers }: Action): void {
    const [a, b] = numbers
    const machine = this.#machine
    const told = (what: string) => {
      if (this.#tells) this.story.push(`${String(this.#scheduler.turn).padStart(6)}  ${what}`)
    }
    const blocks = Array.from({ length: 1 + (a % 4) }, (_, i) => (b + i * 7) % BLOCKS)
    const chosen = kind as EraActionKind
    if (isDying(chosen)) return this.#performDeath(chosen, blocks, told)
    if (!isCalmKind(chosen)) return this.#performBeside(chosen, blocks, told)
    switch (chosen) {
      case 'write':
        told(`blocks ${blocks.join(', ')} are written`)
        return blocks.forEach((block) => {
          machine.write(block)
        })
      case 'snapshot': {
        const name = `s${++this.#snapshots}`
        if (!this.#agent || !machine.volume) return
        told(`snapshot ${name} is asked for`)
        return void this.#call('snapshot', ({ volumes }) =>
          volumes.createEraSnapshot({ volume: this.#volume, name, deadlineMs: 0 })
        )
      }
      case 'ask':
        return void this.#checkAll().then((violation) => (this.#violation ??= violation))
      case 'quiet':
        return
      case 'reactivate':
        if (!this.#agent) return
        told('the volume is deactivated, and activated')
        return void this.#reactivate(false)
      case 'shutDown':
        if (!this.#agent) return
        told('the machine is shut down in order, and started')
        return void this.#reactivate(true)
    }
  }

  /** Who dies, and comes back. */
  #performDeath(kind: DyingKind, blocks: readonly number[], told: (what: string) => void): void {
    const machine = this.#machine
    switch (kind) {
      case 'killAgent':
        told('the agent is killed')
        return this.#killAgent()
      case 'startAgent':
        if (!this.#agent) told('an agent is started')
        return this.#startAgent()
      case 'killBoth':
        told('the agent and its helpers are killed')
        this.#watchdogs.killAll()
        this.#keepers.killAll()
        return this.#killAgent()
      case 'powerCut':
      case 'rescue':
        told('the power goes')
        this.#powerCut()
        // Another system is booted: the operator may say that this does not happen.
        if (kind === 'rescue' && !this.#trustRestarts) {
          told(`another system writes blocks ${blocks.join(', ')}`)
          for (const block of blocks) machine.writeUncounted(block)
        }
        this.#startAgent()
        return void this.#activate()
    }
  }

  /** What somebody else does to the volume, or beside it. */
  #performBeside(kind: BesideKind, blocks: readonly number[], told: (what: string) => void): void {
    const machine = this.#machine
    switch (kind) {
      case 'mount':
        if (machine.volume && !machine.volume.isSuspended) {
          told('the volume is unmounted for a moment')
          void machine.unmount().then(() => {
            machine.isClosing = false
          })
        }
        return
      case 'checkpoint':
        told('somebody sends checkpoint')
        return this.#foreign(async () => {
          if (machine.volume) await machine.message(machine.volume, 'checkpoint')
        })
      case 'resumeBeside':
        told('somebody suspends and resumes the volume')
        return this.#foreign(async () => {
          const { volume } = machine
          if (!volume) return
          await machine.suspend(volume)
          await machine.resume(volume)
        })
      case 'bypass':
        told(`blocks ${blocks.join(', ')} are written under another table`)
        return this.#foreign(() => this.#bypass(blocks))
      case 'staleTable':
        told(`a table is loaded, blocks ${blocks.join(', ')} are written, and the table is put in place`)
        return this.#foreign(() => this.#staleTable(blocks))
      case 'beneath':
        told(`blocks ${blocks.join(', ')} of the data device are written beneath the volume`)
        return blocks.forEach((block) => {
          machine.writeBeneath(block)
        })
      case 'beneathInactive':
        if (!this.#agent) return
        told(`blocks ${blocks.join(', ')} are written while the volume is not active`)
        return void this.#whileInactive(() => {
          for (const block of blocks) machine.writeBeneath(block)
        })
      case 'metadataBack':
        if (!this.#agent) return
        told(`blocks ${blocks.join(', ')} are written, and metadata is what it was before`)
        return void this.#metadataBack(blocks)
      case 'discard':
        told(`block ${blocks[0]} and more are discarded, which is let through for a moment`)
        for (const each of [machine.volume, machine.guard]) if (each) each.discardLimit = 2 ** 32
        machine.discard(blocks[0], 5)
        return this.#foreign(async () => {
          for (const each of [machine.volume, machine.guard]) if (each) each.discardLimit = 0
        })
      case 'foreignSlot':
        told('somebody takes or drops the metadata snapshot')
        return this.#foreign(async () => {
          const { volume } = machine
          if (!volume) return
          const [, , , held] = (await machine.status(volume)).split(' ')
          await machine.message(volume, held === '-' ? 'take_metadata_snap' : 'drop_metadata_snap')
        })
    }
  }

  /** Another table for a while, under which nothing is tracked. */
  async #bypass(blocks: readonly number[]): Promise<void> {
    const machine = this.#machine
    const { volume, guard } = machine
    const tracked = volume?.live?.row
    if (!volume || !guard || tracked?.targetType !== 'era') return
    const { major, minor } = guard.number
    await machine.suspend(volume)
    machine.load(volume, row(tracked.lengthSectors, 'linear', `${major}:${minor} 0`))
    await machine.resume(volume)
    for (const block of blocks) machine.write(block)
    await machine.suspend(volume)
    machine.load(volume, tracked)
    await machine.resume(volume)
  }

  /** In the wrong order: what is marked between load and resume is lost. */
  async #staleTable(blocks: readonly number[]): Promise<void> {
    const machine = this.#machine
    const { volume } = machine
    const tracked = volume?.live?.row
    if (!volume || tracked?.targetType !== 'era' || volume.loaded) return
    machine.load(volume, tracked)
    for (const block of blocks) machine.write(block)
    await this.#scheduler.io(machine.kernel, () => undefined)
    await machine.suspend(volume)
    await machine.resume(volume)
  }

  #foreign(act: () => Promise<void>): void {
    kernelCall(this.#machine, 'foreign', act).catch(() => undefined)
  }

  #powerCut(): void {
    this.#watchdogs.killAll()
    this.#keepers.killAll()
    this.#killAgent()
    this.#keepers.notes.powerCut(() => this.#scheduler.random.chance(0.5))
    this.#machine.powerCut()
  }

  /** Nobody has it mounted by then, nor mounts it before it is activated again. */
  async #deactivate(atShutdown: boolean): Promise<boolean> {
    await this.#machine.unmount()
    return this.#call('deactivate', ({ volumes }) => volumes.deactivateEra({ volume: this.#volume, atShutdown }))
  }

  async #activate(): Promise<void> {
    this.#machine.isClosing = false
    await this.#call('activate', ({ volumes }) => volumes.activateEra({ volume: this.#volume, startOver: false }))
  }

  async #reactivate(atShutdown: boolean): Promise<void> {
    if (atShutdown) this.#isShuttingDown = true
    const isDone = await this.#deactivate(atShutdown)
    if (isDone && atShutdown) {
      this.#powerCut()
      this.#startAgent()
    }
    if (atShutdown) this.#isShuttingDown = false
    await this.#activate()
  }

  async #whileInactive(act: () => void): Promise<void> {
    const isDone = await this.#deactivate(false)
    // (Nobody can notice what comes after the last look of a boot: docs/guarantees.md.)
    if (isDone && !this.#machine.volume && !this.#isShuttingDown) act()
    await this.#activate()
  }

  /** A copy of the metadata is made, the volume goes on, and the copy comes back: at a restart, where no counter shows it. */
  async #metadataBack(blocks: readonly number[]): Promise<void> {
    const machine = this.#machine
    if (!(await this.#deactivate(false)) || machine.volume) return this.#activate()
    const image = machine.metadata.image()
    await this.#activate()
    for (const block of blocks) machine.write(block)
    if (!(await this.#deactivate(true)) || machine.volume) return
    this.#powerCut()
    machine.metadata.restore(image)
    this.#startAgent()
    await this.#activate()
  }

  #startAgent(): void {
    if (this.#agent) return
    const helpers = { keepers: this.#keepers, watchdogs: this.#watchdogs, taken: this.#taken }
    this.#agent = startEraAgent(`agent ${++this.#agents}`, this.#machine, this.#catalog, {
      ...helpers,
      trustRestarts: this.#trustRestarts
    })
  }

  #killAgent(): void {
    if (!this.#agent) return
    const { owner } = this.#agent
    this.#agent = undefined
    this.#isShuttingDown = false
    this.#scheduler.kill(owner)
    this.#keepers.agentDied(owner)
    this.#watchdogs.agentDied(owner)
    // Nobody answers them any more.
    this.#open = 0
  }

  /** Asks the agent, if there is one. @returns whether that was answered well */
  async #call(what: string, ask: (agent: EraAgent) => Promise<unknown>): Promise<boolean> {
    const agent = this.#agent
    if (!agent) return false
    this.#open++
    try {
      await ask(agent)
      this.#count(what)
      return true
    } catch (error) {
      const code = error instanceof DeltamapperError ? error.code : 'a defect'
      this.#count(`${what} ${code}`)
      if (this.#tells) this.story.push(`        ${what}: ${(error as Error).message}`)
      if (!(error instanceof DeltamapperError) || code === 'DM_INTERNAL')
        this.#violation ??= `${what} broke: ${(error as Error).stack}`
      else if (this.#life.isCalm && code !== 'DM_ERA_INACTIVE') this.#violation ??= `${what} was refused with ${code}`
      return false
    } finally {
      if (agent === this.#agent) this.#open--
    }
  }

  /** Every pair of snapshots that is on record. @returns what is missed */
  async #checkAll(): Promise<string | undefined> {
    const calls = catalogCalls(this.#catalog)
    const snapshots = calls.eraSnapshots.list(this.#volume)
    for (const target of snapshots) {
      for (const base of snapshots) {
        const missed = await this.#check(base, target)
        if (missed !== undefined) return missed
      }
    }
    return undefined
  }

  async #check(base: EraSnapshot, target: EraSnapshot): Promise<string | undefined> {
    const [before, after] = [this.#taken.get(base.name), this.#taken.get(target.name)]
    if (!before || !after) return `snapshot ${base.name} or ${target.name} is on record, and its data are gone`
    const reported = await this.#answer(base, target)
    if (reported === undefined) return undefined
    const missed = after.findIndex((version, block) => version !== before[block] && !reported.has(block))
    if (missed < 0) return undefined
    return (
      `a missed block: the answer about ${target.name} since ${base.name} was complete, ` +
      `but block ${missed} holds ${after[missed]}, the backup ${before[missed]}`
    )
  }

  /** Blocks of the product's answer; undefined where it refuses. */
  async #answer(base: EraSnapshot, target: EraSnapshot): Promise<ReadonlySet<number> | undefined> {
    try {
      const source = await eraSource(this.#volume, this.#answers)
      const [from, to] = await Promise.all([source!.snapshot(base.name), source!.snapshot(target.name)])
      const { task, asides } = await trackedAnswers().plan({
        ...{ base: from, target: to!, startingOffset: 0n, maxResults: 0 }
      } as never)
      const { question } = task.request as HistoryWalkRequest
      const nextPage = asides?.['page'] as NextPage | undefined
      async function* chunks() {
        let after = { chunk: 0, seq: 0 }
        for (let last = nextPage === undefined; !last;) {
          const page = await nextPage!(after)
          for (const each of page.chunks) {
            yield each
            after = each
          }
          last = page.last
        }
      }
      const blocks = new Set<number>()
      for await (const { count, offsets, sizes } of historyExtents(question, chunks())) {
        for (let i = 0; i < count; i++) {
          for (let at = offsets[i]; at < offsets[i] + sizes[i]; at += BLOCK_BYTES) blocks.add(at / BLOCK_BYTES)
        }
      }
      this.#count('well')
      return blocks
    } catch (error) {
      if (!(error instanceof DeltamapperError) || error.code === 'DM_INTERNAL') throw error
      this.#count(error.code)
      if (this.#life.isCalm && error.code !== 'DM_ORDER_REVERSED')
        this.#violation ??= `an answer was refused with ${error.code}`
      return undefined
    }
  }

  /** What this life has left in the catalog. */
  forget(): void {
    this.#killAgent()
    const { eraVolumes, leases } = catalogCalls(this.#catalog)
    for (const { device } of leases.list()) leases.clear(device)
    const { intents } = eraVolumes.view()
    for (const { volume, kind } of intents) if (kind !== 'detach') eraVolumes.rollBack(volume)
    for (const { name } of eraVolumes.view().volumes) {
      if (!intents.some(({ volume, kind }) => volume === name && kind === 'detach'))
        eraVolumes.begin({ kind: 'detach', volume: name }, 0)
      eraVolumes.complete(name)
    }
  }

  #count(what: string): void {
    this.outcomes.set(what, (this.outcomes.get(what) ?? 0) + 1)
  }
}
