/**
 * A life of the world of leases: an agent that takes and gives back the metadata snapshot of a pool, somebody else who does the same, and
 * everything that can die.
 */
import pino from 'pino'
import {
  MetadataSnapshotLeases,
  type MetadataSnapshotLease
} from '../../../src/agent/leases/metadata-snapshot-lease.ts'
import { wantedBlocks } from '../../../src/agent/leases/pool-slot.ts'
import { Catalog } from '../../../src/agent/catalog/catalog.ts'
import { catalogCalls } from '../../../src/agent/catalog/calls.ts'
import type { CatalogDatabase } from '../../../src/agent/catalog/database.ts'
import type { Clock } from '../../../src/clock.ts'
import { Random } from '../../support/random.ts'
import { runOn } from './agent.ts'
import { SimulatedKeepers } from './keepers.ts'
import type { Action, Life, LifeResult } from './life.ts'
import { weighted } from './life.ts'
import { finish, Machine, type SpaceOf, type Steps } from './machine.ts'
import { Scheduler } from './scheduler.ts'

const weights = {
  acquire: 10,
  release: 8,
  foreignReserve: 5,
  foreignRelease: 5,
  steal: 1,
  write: 4,
  wait: 6,
  waitLong: 1.5,
  killAgent: 3,
  startAgent: 4,
  killKeeper: 1.5,
  killBoth: 1.5,
  powerCut: 1.5
} as const

type LeaseActionKind = keyof typeof weights

const HOLD_MS = 60_000
const WATCH_MS = 1000
const RETRY_MS = 30_000
/** What is to end has ended after so long, whatever else is going on. Milliseconds. */
const GRACE_MS = 10_000
const MOST_TURNS = 20_000
const headroom = { percent: 25, blocks: 1024 }

export function leaseLifeOf(seed: number): Life {
  const random = new Random(seed)
  const kinds = Object.entries(weights) as [LeaseActionKind, number][]
  const actions = Array.from({ length: random.integer(6, 40) }, () => ({
    kind: weighted(random, kinds),
    numbers: [random.uint32(), random.uint32(), random.uint32(), random.uint32()] as const
  }))
  return { world: 'leases', seed, actions, isCalm: false }
}

export async function liveLeases(life: Life, catalog: CatalogDatabase, tells: boolean): Promise<LifeResult> {
  const world = new LeaseWorld(life, catalog, tells)
  const violation = await world.run()
  const calls = catalogCalls(catalog)
  for (const { device } of calls.leases.list()) calls.leases.clear(device)
  return { violation, story: world.story, turns: world.turns, outcomes: world.outcomes }
}

interface Use {
  readonly lease: MetadataSnapshotLease
  readonly since: number
}

class LeaseWorld {
  readonly story: string[] = []
  readonly outcomes = new Map<string, number>()
  readonly #life: Life
  readonly #tells: boolean
  readonly #scheduler: Scheduler
  readonly #machine: Machine
  readonly #space: SpaceOf
  readonly #keepers: SimulatedKeepers
  readonly #catalog: CatalogDatabase
  #leases: MetadataSnapshotLeases | undefined
  #agents = 0
  #uses: Use[] = []
  #holder: 'nobody' | 'ours' | 'foreign' = 'nobody'
  /** When somebody else released ours. */
  #stolenAt: number | undefined
  #violation: string | undefined

  constructor(life: Life, catalog: CatalogDatabase, tells: boolean) {
    this.#life = life
    this.#tells = tells
    this.#catalog = catalog
    const random = new Random(life.seed ^ 0x1ea5e)
    this.#scheduler = new Scheduler(random)
    const size = { life: life.seed, pools: 1, metadataBlocks: random.pick([64, 400]), dataBlocks: 3000 }
    this.#machine = new Machine(this.#scheduler, size, () => undefined)
    this.#space = this.#machine.pools[0]
    finish(this.#machine.createVolume('v0', 600, 600 * 65536, this.#space))
    this.#keepers = new SimulatedKeepers(this.#machine, (text) => {
      this.#message(text, 'ours')
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
      for (let next = 0; scheduler.turn < MOST_TURNS; await scheduler.settle()) {
        if (this.#violation !== undefined) return this.#violation
        const action = this.#life.actions.at(next)
        if (!action && scheduler.isIdle) break
        if (action && (scheduler.isIdle || random.chance(0.15))) {
          next++
          this.#perform(action)
        } else scheduler.step()
      }
      return this.#violation ?? (await this.#end())
    } catch (error) {
      return `the world broke: ${(error as Error).stack}`
    }
  }

  /** Everybody is done: what is ours is given back, or on record as what nobody can tell. */
  async #end(): Promise<string | undefined> {
    this.#startAgent()
    await this.#pass(0)
    for (const { lease } of this.#uses.splice(0)) void lease.release()
    for (let passed = 0; passed < 2 * RETRY_MS + HOLD_MS; passed += WATCH_MS) await this.#pass(WATCH_MS)
    if (this.#violation !== undefined) return this.#violation
    if (this.#holder !== 'ours') return undefined
    const [record] = catalogCalls(this.#catalog).leases.list()
    if (!record) return 'our metadata snapshot is held, and nothing says that it is ours'
    const isNoted = this.#keepers.notes.read(record.device) === record.takenAt
    if (record.state === 'held' && !isNoted)
      return 'our metadata snapshot is on record as ours, and nobody gives it back'
    return undefined
  }

  #perform({ kind, numbers: [a] }: Action): void {
    const { scheduler } = this.#machine
    const told = (what: string) => {
      if (this.#tells) this.story.push(`${String(scheduler.turn).padStart(6)}  ${what}`)
    }
    switch (kind as LeaseActionKind) {
      case 'acquire':
        told('a lease is asked for')
        return this.#acquire()
      case 'release':
        if (this.#uses.length > 0) told('a lease is given back')
        return void this.#uses.splice(a % Math.max(1, this.#uses.length), 1)[0]?.lease.release()
      case 'foreignReserve':
        if (this.#holder !== 'nobody') return
        told('somebody else reserves')
        return this.#message('reserve_metadata_snap', 'foreign')
      case 'foreignRelease':
        if (this.#holder !== 'foreign') return
        told('somebody else releases what is theirs')
        return this.#message('release_metadata_snap', 'foreign')
      case 'steal':
        // (No look is followed by its message so fast that nobody could come between: that race is the kernel's interface.)
        if (this.#holder !== 'ours' || (this.#keepers.alive.length > 0 && !this.#scheduler.isIdle)) return
        told('somebody else releases ours')
        return this.#message('release_metadata_snap', 'foreign')
      case 'write':
        return finish(this.#write(a))
      case 'wait':
        return void this.#pass(1500)
      case 'waitLong':
        told('a minute goes by')
        return void this.#pass(HOLD_MS + 1000)
      case 'killAgent':
        told('the agent is killed')
        return this.#killAgent()
      case 'startAgent':
        if (!this.#leases) told('an agent is started')
        return this.#startAgent()
      case 'killKeeper': {
        const [keeper] = this.#keepers.alive
        if (keeper) told('the keeper is killed')
        return keeper && this.#keepers.kill(keeper)
      }
      case 'killBoth':
        told('agent and keeper are killed')
        this.#keepers.killAll()
        return this.#killAgent()
      case 'powerCut':
        told('the power goes')
        this.#keepers.killAll()
        this.#killAgent()
        this.#keepers.notes.powerCut(() => this.#scheduler.random.chance(0.5))
        finish(this.#machine.powerCut())
        return
    }
  }

  *#write(a: number): Steps {
    const [volume] = this.#machine.volumes
    this.#machine.activate(volume)
    yield* this.#machine.write(
      volume,
      Array.from({ length: 1 + (a % 60) }, (_, i) => (a + i * 3) % 600),
      false
    )
    yield* this.#machine.commit(this.#space)
  }

  /** A message, which is committed before it is answered. */
  #message(text: string, by: 'ours' | 'foreign'): void {
    const { pool } = this.#space
    if (!pool) throw new Error('there is no pool')
    const isRelease = text === 'release_metadata_snap'
    if (!isRelease && by === 'ours') {
      const total = pool.disk.blocks
      if (pool.freeMetadata < wantedBlocks({ totalMetadataBlocks: total }, headroom) / 2) {
        this.#violation ??= `a metadata snapshot is reserved with ${pool.freeMetadata} of ${total} blocks free`
      }
    }
    if (isRelease) pool.release()
    else pool.reserve()
    pool.commitNow()
    if (isRelease && by === 'ours' && this.#holder === 'foreign') {
      this.#violation ??= "a metadata snapshot was released that is somebody else's"
    }
    if (isRelease && by === 'foreign' && this.#holder === 'ours') this.#stolenAt = this.#scheduler.now
    if (by === 'ours') this.#stolenAt = undefined
    this.#holder = isRelease ? 'nobody' : by
  }

  #acquire(): void {
    const { uuid } = this.#space.devices.at(-1)!
    const leases = this.#leases
    leases?.acquire({ uuid }, { purpose: 'a life', waitMs: 0 }).then(
      (lease) => {
        this.#count('held')
        if (leases !== this.#leases) return
        if (this.#holder !== 'ours' && this.#stolenAt === undefined)
          this.#violation ??= 'a lease was given of what is not held'
        this.#uses.push({ lease, since: this.#scheduler.now })
      },
      (error: unknown) => {
        this.#count(String((error as { code?: string }).code))
      }
    )
  }

  /** Time goes by, and with it whatever waits for it. */
  async #pass(ms: number): Promise<void> {
    const scheduler = this.#scheduler
    const until = scheduler.now + ms
    while (scheduler.nextTimerAt <= until || !scheduler.isIdle) {
      if (!scheduler.isIdle) scheduler.step()
      else scheduler.nextTimer()
      await scheduler.settle()
      if (scheduler.turn > MOST_TURNS) throw new Error('it does not end')
    }
    scheduler.now = Math.max(scheduler.now, until)
    this.#checkUses()
  }

  /** What has a lease has what it is of, or has been told that it has not. */
  #checkUses(): void {
    const { now } = this.#scheduler
    this.#uses = this.#uses.filter(({ lease }) => !lease.signal.aborted)
    for (const { since } of this.#uses) {
      if (now - since > HOLD_MS + GRACE_MS) this.#violation ??= 'a lease is held beyond its time'
      if (this.#stolenAt !== undefined && now - Math.max(this.#stolenAt, since) > GRACE_MS) {
        this.#violation ??= 'a lease is used that somebody else has released'
      }
    }
  }

  #startAgent(): void {
    if (this.#leases) return
    const owner = `agent ${++this.#agents}`
    const { devices } = this.#machine
    const scheduler = this.#scheduler
    const clock: Clock = {
      now: () => scheduler.now,
      monotonic: () => scheduler.now,
      sleep: (ms) => new Promise((resolve) => void scheduler.after(owner, ms, resolve)),
      after: (ms, run) => scheduler.after(owner, ms, run)
    }
    const catalog = new Catalog('/simulated/catalog', { run: runOn(this.#catalog, scheduler, owner) })
    this.#leases = new MetadataSnapshotLeases(
      catalog,
      devices.portOf(owner),
      { headroom, holdMs: HOLD_MS, waitMs: 0, watchMs: WATCH_MS, retryMs: RETRY_MS },
      pino({ level: 'silent' }),
      { keepers: this.#keepers.of(owner), clock, open: devices.openFor(owner) }
    )
    void this.#leases.recover()
  }

  #killAgent(): void {
    if (!this.#leases) return
    const owner = `agent ${this.#agents}`
    this.#leases = undefined
    this.#uses = []
    this.#scheduler.kill(owner)
    this.#keepers.agentDied(owner)
  }

  #count(what: string): void {
    this.outcomes.set(what, (this.outcomes.get(what) ?? 0) + 1)
  }
}
