/**
 * A life of the thin world: a script of what users, LVM and backup software set out to do, and the scheduler that decides what comes of it.
 * Script and scheduler have a seed each, so that a life can be made shorter and is still the same world.
 */
import { DeltamapperError } from '../../../src/errors.ts'
import type { CatalogDatabase } from '../../../src/agent/catalog/database.ts'
import { catalogCalls } from '../../../src/agent/catalog/calls.ts'
import { Random } from '../../support/random.ts'
import { type SimulatedAgent, startAgent } from './agent.ts'
import { Client, Violation } from './client.ts'
import type { DeviceContent } from './content.ts'
import type { Volume } from './group.ts'
import { BLOCK_BYTES, Machine, type SpaceOf, type Steps } from './machine.ts'
import { type Manner, type Numbers, Plots, type Stage } from './plots.ts'
import { Scheduler } from './scheduler.ts'
import { type Theme, themeOf } from './themes.ts'

/** What is set out to be done: which, and numbers that choose of what there is by then. */
export interface Action {
  readonly kind: string
  readonly numbers: Numbers
}

/** How often each is set out to be done, beside the others. */
const weights = {
  write: 10,
  trim: 3,
  snapshot: 8,
  backup: 18,
  resume: 6,
  remove: 2,
  writeSnapshot: 4,
  trimSnapshot: 3,
  activate: 3,
  deactivate: 2,
  permission: 2,
  rename: 1,
  trade: 1,
  tradePools: 0.5,
  swapPools: 1,
  resize: 3,
  merge: 1,
  slot: 1,
  reload: 1.5,
  powerCut: 1,
  copyDisks: 1,
  putBackDisks: 1.5,
  killAgent: 1,
  commit: 4,
  plot: 6,
  storm: 1,
  harmPlot: 1,
  goOnPlot: 0.5,
  sizesPlot: 0.5,
  mergePlot: 0.3,
  treesPlot: 0.3,
  inUsePlot: 0.5,
  reusePlot: 0.5,
  twinsPlot: 0.5,
  wentBackPlot: 1,
  lostCatalogPlot: 0.3,
  spoiledPlot: 0
} as const

type ActionKind = keyof typeof weights

/** What there is much of in a life that is about something; of the rest there is a tenth. */
const much: Record<Theme, Partial<Record<ActionKind, number>>> = {
  twins: { twinsPlot: 40, write: 1 },
  reuse: { reusePlot: 30, storm: 2, slot: 2, write: 4 },
  bases: { harmPlot: 30, goOnPlot: 20, plot: 10, write: 4 },
  sizes: { sizesPlot: 40, mergePlot: 10, resize: 4 },
  back: { wentBackPlot: 30, snapshot: 4, write: 4 },
  volumes: { inUsePlot: 40, mergePlot: 10, write: 10, snapshot: 4, backup: 8 },
  trees: { treesPlot: 40, trim: 6, write: 6 },
  catalog: { lostCatalogPlot: 30, write: 6 },
  disks: { spoiledPlot: 40, write: 4 }
}
type ThinAction = Action & { readonly kind: ActionKind }

/** What harms no snapshot: then every answer about one has to be given. */
const calm = ['write', 'trim', 'snapshot', 'backup', 'commit', 'reload', 'killAgent'] as const satisfies ActionKind[]

/** What can be done to a base or target. */
const harmful: ReadonlySet<ActionKind> = new Set<ActionKind>([
  ...(['remove', 'writeSnapshot', 'trimSnapshot', 'permission', 'rename', 'trade', 'tradePools', 'swapPools'] as const),
  ...(['resize', 'merge', 'reload', 'putBackDisks'] as const)
])

/** What does not wait for LVM to be done. */
const atAnyTime: ReadonlySet<ActionKind> = new Set<ActionKind>(['backup', 'resume', 'killAgent', 'powerCut'])

export type World = 'thin' | 'leases' | 'era' | 'owned'

export interface Life {
  readonly world: World
  readonly seed: number
  readonly actions: readonly Action[]
  readonly isCalm: boolean
}

export interface LifeResult {
  /** What must never be, and was. */
  readonly violation: string | undefined
  readonly story: readonly string[]
  readonly turns: number
  /** How answers ended: `well`, `left`, or an error's code. */
  readonly outcomes: ReadonlyMap<string, number>
}

const MOST_TURNS = 30_000
const CAPACITY_BLOCKS = 600

/** Errors that say that the product, or its world, is not as it should be. */
const neverSaid: ReadonlySet<string> = new Set([
  ...(['DM_INTERNAL', 'DM_METADATA_DAMAGED', 'DM_METADATA_FOREIGN', 'DM_METADATA_UNSUPPORTED'] as const),
  ...(['DM_CATALOG_DAMAGED', 'DM_CATALOG_UNAVAILABLE', 'DM_LVM_FAILED', 'DM_STATUS_UNKNOWN'] as const)
])

export function thinLifeOf(seed: number): Life {
  const random = new Random(seed)
  const theme = themeOf(seed)
  const isCalm = theme === undefined && random.chance(0.3)
  const weight = (kind: ActionKind) => (theme ? (much[theme][kind] ?? weights[kind] / 10) : weights[kind])
  const kinds = (isCalm ? calm : (Object.keys(weights) as ActionKind[])).map((kind) => [kind, weight(kind)] as const)
  // A plot is as long as many other things.
  const length = theme ? random.integer(3, 14) : random.integer(10, 60)
  const actions = Array.from({ length }, (): Action => {
    const numbers = [random.uint32(), random.uint32(), random.uint32(), random.uint32()] as const
    return { kind: weighted(random, kinds), numbers }
  })
  return { world: 'thin', seed, actions, isCalm }
}

/** Lives a life to its end. @param catalog that of the agent, which other lives may have used before; a life's names are its own */
export async function liveThin(life: Life, catalog: CatalogDatabase, tells: boolean): Promise<LifeResult> {
  const world = new ThinWorld(life, catalog, tells)
  const violation = await world.run()
  // What it has left in the catalog is nobody's.
  catalogCalls(catalog).served.forget(0)
  return { violation, story: world.story, turns: world.turns, outcomes: world.outcomes }
}

class ThinWorld {
  readonly story: string[] = []
  readonly outcomes = new Map<string, number>()
  readonly #life: Life
  readonly #scheduler: Scheduler
  readonly #machine: Machine
  readonly #client: Client
  readonly #catalog: CatalogDatabase
  readonly #tells: boolean
  readonly #strictBases: boolean
  readonly #theme: Theme | undefined
  #agent: SimulatedAgent
  #agents = 0
  #isAgentUp = false
  #command: Steps | undefined
  #questions = 0
  readonly #plots: Plots
  /** What was put back, and the agent has not looked at its pool since. */
  readonly #unnoticed = new Map<DeviceContent, SpaceOf>()
  /** Reads have gone wrong. */
  #isSpoiled = false
  /** What is on record began anew. */
  #isCatalogLost = false
  /** What something was done to last. */
  #harmed: DeviceContent | undefined
  #violation: string | undefined
  /** The newest clock of each pool that the agent has told its catalog of. */
  readonly #seenClocks = new Map<string, { time: number; transactionId: bigint }>()
  #names = 0
  /** How eager each is to have its turn. */
  readonly #weather: { script: number; kernel: number }

  constructor(life: Life, catalog: CatalogDatabase, tells: boolean) {
    this.#life = life
    this.#catalog = catalog
    this.#tells = tells
    const random = new Random(life.seed ^ 0x5eed)
    this.#scheduler = new Scheduler(random)
    this.#weather = { script: random.pick([0.02, 0.1, 0.3]), kernel: random.pick([0.05, 0.2, 0.5]) }
    this.#strictBases = random.chance(0.2)
    const theme = themeOf(life.seed)
    const pools = theme === 'twins' ? 2 : random.pick([1, 1, 2])
    this.#theme = theme
    if (theme === 'reuse') this.#scheduler.slowness = random.pick([0.01, 0.05])
    const say = (what: () => string) => {
      this.#say(what)
    }
    this.#machine = new Machine(
      this.#scheduler,
      { life: life.seed, pools, metadataBlocks: theme === 'reuse' ? 260 : random.pick([260, 512]), dataBlocks: 6000 },
      say
    )
    this.#machine.onLost = (content) => {
      this.#client.forget(content)
    }
    this.#client = new Client(this.#machine)
    this.#plots = new Plots(this.#stage())
    this.#agent = this.#startAgent()
  }

  #stage(): Stage {
    const waiting = () => this.#questions
    return {
      machine: this.#machine,
      client: this.#client,
      newName: (prefix) => this.#newName(prefix),
      ask: ({ name }, base, manner = {}) => {
        const handle = `${this.#machine.group.name}/${name}`
        this.#ask({ handle, base, unfinished: manner.unfinished }, 0, { leavesAfter: Infinity, ...manner })
      },
      get waiting() {
        return waiting()
      },
      loseCatalog: (but) => {
        this.#killAgent()
        this.#client.forgetAllBut(but)
        this.#isCatalogLost = true
        catalogCalls(this.#catalog).served.forget(0)
        this.#agent = this.#startAgent()
      },
      catalogIsKnown: () => {
        this.#client.forgetAllBut()
        this.#isCatalogLost = false
      },
      readsGoWrong: () => {
        this.#isSpoiled = true
      },
      putBack: (asksAtOnce) => this.#putBack(asksAtOnce),
      forgetUnnoticed: () => {
        this.#forgetUnnoticed()
      }
    }
  }

  get turns(): number {
    return this.#scheduler.turn
  }

  async run(): Promise<string | undefined> {
    const scheduler = this.#scheduler
    const { script, kernel } = this.#weather
    const { random } = scheduler
    let next = 0
    try {
      this.#command = this.#begin()
      for (; scheduler.turn < MOST_TURNS && this.#violation === undefined; await scheduler.settle()) {
        const { pools } = this.#machine
        const busy = pools.filter(({ pool }) => pool?.isDirty)
        const hasMore = this.#command !== undefined || next < this.#life.actions.length
        if (scheduler.isIdle && !hasMore) break
        this.#client.look()
        if (busy.length > 0 && random.chance(kernel * 0.2)) {
          const space = random.pick(busy)
          if (random.chance(0.5)) space.pool?.writeBack(random)
          else if (!space.pool?.isCommitting && !this.#command) this.#command = this.#machine.commit(space)
        } else if (hasMore && (scheduler.isStalled || random.chance(this.#command ? kernel : script))) {
          const action = this.#life.actions.at(next)
          const isNow = action && (!this.#command || (atAnyTime.has(action.kind as ActionKind) && random.chance(0.3)))
          if (isNow) {
            next++
            this.#command = this.#perform(action as ThinAction) ?? this.#command
          } else this.#goOn()
        } else if (!scheduler.isIdle) scheduler.step()
      }
      if (scheduler.turn >= MOST_TURNS) return 'it does not end'
      if (this.#violation === undefined && this.#life.seed % 16 === 0) {
        const wrong = this.#machine.checkContents()
        if (wrong !== undefined) return `the model is wrong: ${wrong}`
      }
      return this.#violation
    } catch (error) {
      return `the world broke: ${(error as Error).stack}`
    }
  }

  #goOn(): void {
    if (this.#command?.next().done) this.#command = undefined
  }

  *#begin(): Steps {
    const { random } = this.#scheduler
    const alikeVolumes = random.integer(1, 2)
    for (const space of this.#machine.pools) {
      const volumes = this.#theme === 'twins' ? alikeVolumes : random.integer(1, 2)
      const whole = CAPACITY_BLOCKS * BLOCK_BYTES
      const size = this.#theme === undefined || random.chance(0.1) ? this.#size(random.uint32()) : whole
      for (let i = 0; i < volumes; i++) {
        yield* this.#machine.createVolume(this.#newName('v'), CAPACITY_BLOCKS, size, space)
      }
    }
    // Pools that went the same way are easily mistaken for one another.
    const alike = this.#theme === 'twins' || random.chance(0.5) ? [random.uint32(), random.uint32()] : undefined
    for (const volume of this.#machine.volumes) {
      const [a, b] = alike ?? [random.uint32(), random.uint32()]
      yield* this.#writeTo(volume, a, b, false)
    }
  }

  #perform({ kind, numbers: [a, b, c, d] }: ThinAction): Steps | undefined {
    const machine = this.#machine
    const { volumes } = machine
    const snapshots = volumes.filter(({ originUuid, name }) => originUuid !== undefined || name.startsWith('s'))
    const plain = volumes.filter(({ name }) => name.startsWith('v'))
    // What was backed up is what can be done harm to.
    const kept = volumes.filter((each) => this.#client.keeps(each.content))
    const isAimed = kept.length > 0 && d % 4 > 0
    const snapshot = of(isAimed ? kept : snapshots, a)
    const [volume, any] = [of(plain, a), (isAimed && snapshot) || of(volumes, a)]
    if (harmful.has(kind)) {
      this.#harmed = snapshot?.content ?? this.#harmed
      // Somebody may ask while it is being done.
      if (c % 3 === 0) this.#backup(a >>> 3, b >>> 3, c >>> 3, d >>> 3)
    }
    const told = (what: string, steps: Steps | undefined) => {
      this.#say(() => what)
      return steps
    }
    switch (kind) {
      case 'write':
        return volume && told(`write to ${volume.name}`, this.#writeTo(volume, b, c, false))
      case 'trim':
        return volume && told(`trim ${volume.name}`, this.#writeTo(volume, b, c, true))
      case 'writeSnapshot':
        return snapshot && told(`write to ${snapshot.name}`, this.#writeTo(snapshot, b, c, false, true))
      case 'trimSnapshot':
        return snapshot && told(`trim ${snapshot.name}`, this.#writeTo(snapshot, b, c, true, true))
      case 'snapshot': {
        const of_ = d % 5 === 0 && !this.#life.isCalm ? any : volume
        // A name that was used before may be used again.
        const name = b % 6 === 0 && this.#names > 0 && !this.#life.isCalm ? `s${c % this.#names}` : this.#newName('s')
        if (!of_ || volumes.length >= 12) return undefined
        return told(`snapshot ${name} of ${of_.name}`, machine.snapshot(of_, name, c % 3 > 0))
      }
      case 'backup':
        return this.#backup(a, b, c, d)
      case 'resume':
        return this.#resume(a, b)
      case 'remove':
        return snapshot && told(`remove ${snapshot.name}`, machine.remove(snapshot))
      case 'rename':
        return any && told(`rename ${any.name}`, machine.rename(any, this.#newName(any.name[0])))
      case 'trade': {
        const other = of(snapshots, b)
        if (!snapshot || !other || other === snapshot) return undefined
        return told(`${snapshot.name} and ${other.name} trade names`, machine.trade(snapshot, other))
      }
      case 'tradePools': {
        const [one, other] = machine.pools
        return other && told('the pools trade names', machine.trade(one, other))
      }
      case 'swapPools':
        return told(
          'the pools are deactivated, trade names, and are activated',
          this.#plots.swap(this.#scheduler.random.shuffle(machine.pools))
        )
      case 'resize':
        return any && told(`resize ${any.name}`, machine.resize(any, this.#size(b)))
      case 'merge':
        return snapshot && told(`merge ${snapshot.name}`, machine.merge(snapshot))
      case 'activate':
        if (any) machine.activate(any)
        return told(`activate ${any?.name}`, undefined)
      case 'deactivate':
        if (any) machine.deactivate(any)
        return told(`deactivate ${any?.name}`, undefined)
      case 'permission':
        if (snapshot) machine.setReadOnly(snapshot, !snapshot.readOnly)
        return told(`${snapshot?.name} is read-only: ${snapshot?.readOnly}`, undefined)
      case 'slot':
        return told('somebody else uses the metadata snapshot', this.#slot(of(machine.pools, a)))
      case 'reload':
        return told('the pool is deactivated and activated', this.#reload(of(machine.pools, a)))
      case 'commit':
        return machine.commit(of(machine.pools, a)!)
      case 'powerCut':
        this.#killAgent()
        return told('the power goes', this.#afterwards(machine.powerCut()))
      case 'copyDisks':
        return told('the disks are copied', machine.copyDisks())
      case 'putBackDisks':
        return told('the disks are put back', this.#putBack())
      case 'plot':
        return told('a base is harmed, and asked for', this.#plot(a, b, c, d))
      case 'harmPlot':
        return told('a base is changed that has as many blocks as before', this.#plots.harm([a, b, c, d]))
      case 'goOnPlot':
        return told('an answer ends early, and is gone on with', this.#plots.goOn([a, b, c, d]))
      case 'sizesPlot':
        return told('a base is smaller', this.#plots.sizes([a, b, c, d]))
      case 'mergePlot':
        return told('a smaller snapshot is merged into a volume in use', this.#plots.merge([a, b, c, d]))
      case 'treesPlot':
        return told('a tree changes its height', this.#plots.trees([a, b, c, d]))
      case 'inUsePlot':
        return told('a volume in use is asked about', this.#plots.inUse([a, b, c, d]))
      case 'reusePlot':
        return told('metadata blocks are used again', this.#plots.reuse([a, b, c, d]))
      case 'twinsPlot':
        return told('two pools go alike', this.#plots.twins([a, b, c, d]))
      case 'wentBackPlot':
        return told('a pool is put back after a base was backed up', this.#plots.wentBack([a, b, c, d]))
      case 'lostCatalogPlot':
        return told('the catalog is lost', this.#plots.lostCatalog([a, b, c, d]))
      case 'spoiledPlot':
        return told('reads go wrong', this.#plots.spoiled([a, b, c, d]))
      case 'storm':
        return volume && told(`many small writes to ${volume.name}`, this.#storm(volume, b))
      case 'killAgent':
        this.#killAgent()
        this.#agent = this.#startAgent()
        return told('the agent is killed, and started', undefined)
    }
  }

  // What is done

  #writeTo(volume: Volume, a: number, b: number, discard: boolean, awake = false): Steps {
    const machine = this.#machine
    const blocks = Math.max(1, Math.floor(volume.sizeBytes / BLOCK_BYTES))
    const length = [1, 2, 5, 30, 300][b % 5]
    const stride = [1, 1, 5][(b >>> 8) % 3]
    const first = a % blocks
    const at = Array.from({ length }, (_, i) => (first + i * stride) % blocks)
    if (awake) {
      // A snapshot that is written to was made writable and active for it.
      machine.setReadOnly(volume, false)
      machine.activate(volume)
    }
    return machine.write(volume, at, discard)
  }

  *#slot(space: SpaceOf | undefined): Steps {
    while (space?.pool?.isCommitting) yield
    if (!space?.pool) return
    if (space.pool.heldRoot === 0) space.pool.reserve()
    else space.pool.release()
    yield* this.#machine.commit(space)
  }

  *#reload(space: SpaceOf | undefined): Steps {
    if (!space || !(yield* this.#machine.deactivatePool(space))) return
    yield* this.#machine.activatePool(space)
    for (const volume of this.#machine.volumes) if (volume.name.startsWith('v')) this.#machine.activate(volume)
  }

  *#afterwards(steps: Steps): Steps {
    yield* steps
    this.#agent = this.#startAgent()
    for (const volume of this.#machine.volumes) if (volume.name.startsWith('v')) this.#machine.activate(volume)
  }

  /**
   * Who asks before anything else happens learns that the pool went back, if the agent has seen it farther on. What nobody can notice
   * (docs/guarantees.md) is no backup any more.
   */
  *#putBack(asksAtOnce = false): Steps {
    yield* this.#machine.putBackDisks((content, { time, transactionId }) => {
      const space = this.#machine.pools.find(({ contents }) => [...contents.values()].includes(content))
      const seen = space && this.#seenClocks.get(space.uuid)
      const canBeNoticed = seen && (seen.time > time || seen.transactionId > BigInt(transactionId))
      if (asksAtOnce && canBeNoticed) this.#unnoticed.set(content, space)
      else this.#client.forget(content)
    })
  }

  #forgetUnnoticed(): void {
    for (const content of this.#unnoticed.keys()) this.#client.forget(content)
    this.#unnoticed.clear()
  }

  /** A base that was backed up is changed in a way that leaves little behind, and something that may hide it is asked about since. */
  *#plot(a: number, b: number, c: number, d: number): Steps {
    const machine = this.#machine
    const kept = machine.volumes.filter(({ content, pool }) => this.#client.keeps(content) && pool.pool)
    const base = of(kept, a)
    if (!base?.content) return
    const origin = machine.volumes.find(({ uuid }) => uuid === base.originUuid)
    const { content } = base
    const mapped = blocksOf(content, (version) => version !== 0)
    const [some, empty] = [
      of(mapped, b) ?? 0,
      of(
        blocksOf(content, (version) => version === 0),
        c
      ) ?? 1
    ]
    const isWatched = d % 3 === 0
    if (isWatched) this.#backup(a, b, c, d)
    machine.setReadOnly(base, false)
    machine.activate(base)
    const harm = b % 4
    if (harm === 0) yield* machine.write(base, [some], false)
    if (harm === 1 || harm === 2) yield* machine.write(base, [some], true)
    if (harm === 2) yield* machine.write(base, [empty], false)
    yield* machine.commit(base.pool)
    if (!machine.volumes.includes(base)) return
    machine.deactivate(base)
    if (origin && harm > 0 && c % 2 === 0) {
      machine.activate(origin)
      yield* machine.write(origin, [some], true)
    }
    if (c % 5 === 0) yield* machine.resize(origin ?? base, this.#size(d))
    const name = this.#newName('s')
    yield* machine.snapshot(origin && c % 3 > 0 ? origin : base, name, true)
    this.#harmed = content
    const unfinished = [...this.#client.unfinished.values()].find((each) => each.content === content)
    if (unfinished && d % 2 === 0) return void this.#ask({ ...unfinished, unfinished }, b)
    const known = [...this.#client.backups.values()].find((each) => each.content === content)
    if (known) this.#ask({ handle: `${machine.group.name}/${name}`, base: known, unfinished: undefined }, b)
  }

  /** As many commits as use the metadata's blocks over and over. */
  *#storm(volume: Volume, a: number): Steps {
    const { pool: space } = volume
    this.#machine.activate(volume)
    for (let i = 0; i < 40; i++) {
      yield* this.#machine.write(volume, [(a + i * 37) % CAPACITY_BLOCKS], i % 5 === 4)
      yield* this.#machine.commit(space)
      if (!space.pool) return
    }
  }

  // Questions

  #backup(a: number, b: number, c: number, d: number): undefined {
    if (this.#questions >= 3) return
    // (What is in use is refused: asked for now and then.)
    const isAnyAsked = !this.#life.isCalm && d % 11 === 0
    const targets = this.#machine.volumes.filter(({ name }) => isAnyAsked || name.startsWith('s'))
    const target = of(targets, a)
    if (!target) return
    const asked = this.#life.isCalm ? 'calm' : 'any'
    const prefix = b % 7 === 0 && asked === 'any' ? '*' : this.#machine.group.name
    const handle = `${prefix}/${target.name}`
    const known = [...this.#client.backups.values()]
    const present = known.filter((each) => this.#machine.volumes.some(({ content }) => content === each.content))
    const backups = (a % 8 === 0 ? known : present).filter(
      (each) => asked === 'any' || this.#precedes(each.content, target)
    )
    const harmed = backups.filter(({ content }) => content === this.#harmed)
    const isAimed = harmed.length > 0 && a % 5 > 1
    const base = d % 4 === 0 && !isAimed ? undefined : of(isAimed ? harmed : backups, c)
    this.#ask({ handle, base, unfinished: undefined }, b)
  }

  #resume(a: number, b: number): undefined {
    const unfinished = of([...this.#client.unfinished.values()], a)
    if (unfinished && this.#questions < 3) this.#ask({ ...unfinished, unfinished }, b)
  }

  /** Whether it is an older snapshot of the same volume, which is there still. */
  #precedes(content: Volume['content'], target: Volume): boolean {
    const base = this.#machine.volumes.find((each) => each.content === content)
    return base !== undefined && base.originUuid === target.originUuid && base.thinId < target.thinId
  }

  #ask(
    what: Pick<Parameters<Client['ask']>[1], 'handle' | 'base' | 'unfinished'>,
    b: number,
    manner: Omit<Manner, 'unfinished'> = {}
  ): void {
    // Nobody answers while the machine comes up.
    if (!this.#isAgentUp) return
    const maxResults = [0, 1, 2, 3][(b >>> 4) % 4]
    const leavesAfter = (b >>> 8) % 3 === 0 && !this.#life.isCalm ? 1 + ((b >>> 12) % 3) : Infinity
    this.#questions++
    const about = `${what.handle}${what.base ? ` since ${what.base.handle}` : ''}`
    const from = what.unfinished ? ` from ${what.unfinished.offset} on` : ''
    this.#say(() => `ask about ${about}${from}`)
    const agent = this.#agent
    this.#client.ask(agent, { ...what, maxResults, leavesAfter, ...manner }).then(
      (outcome) => {
        this.#questions--
        if (outcome.ended === 'badly') this.#judge(about, outcome.error)
        else this.#count(outcome.ended)
        this.#say(
          () => `  the answer about ${about} ends ${outcome.ended === 'badly' ? String(outcome.error) : outcome.ended}`
        )
      },
      (error: unknown) => {
        this.#violation ??= error instanceof Violation ? error.message : String((error as Error).stack)
      }
    )
  }

  #judge(about: string, error: unknown): void {
    if (!(error instanceof DeltamapperError)) {
      this.#violation ??= error instanceof Violation ? error.message : String((error as Error).stack)
      return
    }
    this.#count(error.code)
    if (neverSaid.has(error.code) && !(this.#isSpoiled && error.code.startsWith('DM_METADATA_')))
      this.#violation ??= `the answer about ${about} ended with ${error.code}: ${error.message}`
    if (!this.#life.isCalm) return
    // The pool may be away, or the agent's descriptor of it.
    const isAllowed = ['DM_POOL_INACTIVE', 'DM_SNAPSHOT_NOT_FOUND', 'DM_READ_FAILED', 'DM_SNAPSHOT_CHANGED'].includes(
      error.code
    )
    const unrecorded = this.#strictBases && error.code === 'DM_BASE_UNRECORDED'
    if (!isAllowed && !unrecorded)
      this.#violation ??= `nothing was wrong, but the answer about ${about} ended with ${error.code}: ${error.message}`
  }

  #count(what: string): void {
    this.outcomes.set(what, (this.outcomes.get(what) ?? 0) + 1)
  }

  // The agent

  #startAgent(): SimulatedAgent {
    this.#isAgentUp = true
    return startAgent(`agent ${++this.#agents}`, this.#machine, this.#catalog, {
      strictBases: this.#strictBases,
      onClock: ({ pool, time, transactionId }) => {
        this.#seenClocks.set(pool, { time, transactionId })
        for (const [content, { uuid }] of this.#unnoticed) if (uuid === pool) this.#unnoticed.delete(content)
      }
    })
  }

  /** Whoever waits for it waits in vain; what it had open is closed. */
  #killAgent(): void {
    this.#forgetUnnoticed()
    // Nothing is on record of what it has copied.
    if (this.#isCatalogLost) this.#client.forgetAllBut()
    this.#isCatalogLost = false
    this.#scheduler.kill(this.#agent.owner)
    this.#isAgentUp = false
    this.#questions = 0
    for (const { devices } of this.#machine.pools) for (const device of devices) device.openCount = 0
    this.#client.abandon()
  }

  #newName(prefix: string): string {
    return `${prefix}${this.#names++}`
  }

  #size(number: number): number {
    const blocks = [8, 40, 260, 320, CAPACITY_BLOCKS][number % 5] - ((number >>> 8) % 4)
    return blocks * BLOCK_BYTES - ((number >>> 12) % 3 === 0 ? BLOCK_BYTES / 2 : 0)
  }

  #say(what: () => string): void {
    if (this.#tells) this.story.push(`${String(this.#scheduler.turn).padStart(6)}  ${what()}`)
  }
}

function blocksOf(content: DeviceContent, wanted: (version: number) => boolean): number[] {
  return Array.from({ length: content.blocks }, (_, block) => block).filter((block) => wanted(content.now(block)))
}

function of<T>(items: readonly T[], number: number): T | undefined {
  return items.length === 0 ? undefined : items[number % items.length]
}

export function weighted<T>(random: Random, items: readonly (readonly [T, number])[]): T {
  let left = random.fraction() * items.reduce((sum, [, weight]) => sum + weight, 0)
  for (const [item, weight] of items) if ((left -= weight) < 0) return item
  return items[0][0]
}
