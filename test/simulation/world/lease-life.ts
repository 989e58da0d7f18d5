/**
 * A life of the world of leases: an agent that takes and gives back the metadata snapshot of a pool, somebody else who does the same, and
 * everything that can die.
 */
import pino from 'pino'
import {
  MetadataSnapshotLeases,
  type MetadataSnapshotLease
} from '../../../src/agent/leases/metadata-snapshot-lease.ts'
import { readSlot, wantedBlocks } from '../../../src/agent/leases/pool-slot.ts'
import { Catalog } from '../../../src/agent/catalog/catalog.ts'
import { poolFacts } from '../../../src/agent/catalog/lease.ts'
import { catalogCalls } from '../../../src/agent/catalog/calls.ts'
import type { CatalogDatabase } from '../../../src/agent/catalog/database.ts'
import type { Clock } from '../../../src/clock.ts'
import { Random } from '../../support/random.ts'
import { decodeSuperblock } from '../metadata/blocks.ts'
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
  waitSome: 1,
  waitLong: 1.5,
  killAgent: 3,
  startAgent: 4,
  killKeeper: 1.5,
  killBoth: 1.5,
  powerCut: 1.5,
  powerOff: 0.5,
  powerOn: 1,
  fill: 1,
  quiet: 0.5,
  plot: 3
} as const

type LeaseActionKind = Exclude<keyof typeof weights, 'plot'>

/** What has to happen in just this order for a guard to be missed: about as it would come about by itself, once in thousands of lives. */
const plots: readonly ((random: Random) => readonly (LeaseActionKind | false)[])[] = [
  () => ['startAgent', 'acquire', 'quiet', 'waitLong'],
  () => ['startAgent', 'acquire', 'quiet', 'steal', 'waitSome'],
  () => ['startAgent', 'fill', 'quiet', 'acquire', 'quiet'],
  () => ['startAgent', 'acquire', 'quiet', 'killAgent', 'waitSome'],
  // The next agent is there before the pool is.
  () => ['startAgent', 'acquire', 'quiet', 'powerOff', 'startAgent', 'quiet', 'powerOn'],
  // Somebody else's is in the place of ours.
  (random) => [
    ...(['startAgent', 'acquire', 'quiet', 'killBoth', 'steal'] as const),
    ...([random.chance(0.5) && 'write', random.chance(0.5) && 'powerCut', 'foreignReserve'] as const),
    ...(['startAgent', 'quiet', 'waitSome'] as const)
  ],
  // A release does not come to its end, and somebody else reserves, now and then just what ours was.
  (random) => [
    ...(['quiet', 'powerCut', 'startAgent', 'quiet', 'acquire', 'quiet'] as const),
    ...([
      random.pick<LeaseActionKind>(['release', 'killAgent']),
      random.pick<LeaseActionKind>(['killBoth', 'powerCut'])
    ] as const),
    ...Array.from({ length: random.integer(0, 3) }, () => ['foreignReserve', 'foreignRelease'] as const).flat(),
    ...([random.chance(0.7) && 'powerCut', 'foreignReserve', 'startAgent', 'quiet', 'waitSome'] as const)
  ]
]

const HOLD_MS = 60_000
const WATCH_MS = 1000
const RETRY_MS = 30_000
/** What is to end has ended after so long, whatever else is going on. Milliseconds. */
const GRACE_MS = 10_000
const MOST_TURNS = 20_000
const headroom = { percent: 25, blocks: 1024 }

export function leaseLifeOf(seed: number): Life {
  const random = new Random(seed)
  const kinds = Object.entries(weights) as [keyof typeof weights, number][]
  const length = random.integer(6, 40)
  const set: LeaseActionKind[] = []
  while (set.length < length) {
    const kind = weighted(random, kinds)
    if (kind !== 'plot') set.push(kind)
    else
      set.push(
        ...random
          .pick(plots)(random)
          .filter((each) => each !== false)
      )
  }
  const actions = set.map((kind) => ({
    kind,
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
  /** Somebody else has put back what they took of us, as it was: nobody can tell. */
  #isIndistinct = false
  /** The keeper that has ours was killed. */
  #isOrphaned = false
  #violation: string | undefined

  constructor(life: Life, catalog: CatalogDatabase, tells: boolean) {
    this.#life = life
    this.#tells = tells
    this.#catalog = catalog
    const random = new Random(life.seed ^ 0x1ea5e)
    this.#scheduler = new Scheduler(random)
    const size = { life: life.seed, pools: 1, metadataBlocks: random.pick([64, 160, 400]), dataBlocks: 3000 }
    this.#machine = new Machine(this.#scheduler, size, () => undefined)
    this.#space = this.#machine.pools[0]
    finish(this.#machine.createVolume('v0', 600, 600 * 65536, this.#space))
    this.#keepers = new SimulatedKeepers({
      kind: 'thin',
      scheduler: this.#scheduler,
      send: (owner, text) =>
        this.#scheduler.io(owner, () => {
          this.#message(text, 'ours')
        }),
      look: (owner, { path, device }) => readSlot(path, device, this.#machine.devices.openFor(owner))
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
        if (action && (scheduler.isIdle || (action.kind !== 'quiet' && random.chance(0.15)))) {
          next++
          await this.#perform(action)
        } else scheduler.step()
      }
      return this.#violation ?? (await this.#end())
    } catch (error) {
      return `the world broke: ${(error as Error).stack}`
    }
  }

  /** Everybody is done: what is ours is given back, or on record as what nobody can tell. */
  async #end(): Promise<string | undefined> {
    finish(this.#machine.activatePool(this.#space))
    if (!this.#leases) {
      await this.#pass(GRACE_MS)
      const { alive } = this.#keepers
      if (this.#holder === 'ours' && alive.length === 0 && !this.#isOrphaned)
        return 'an agent is gone, and what it held is held by nobody'
    }
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

  /** @returns what is to be waited for before anything else is done */
  #perform({ kind, numbers: [a] }: Action): Promise<void> | undefined | void {
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
        if (this.#holder !== 'nobody' || !this.#space.pool) return
        told('somebody else reserves')
        return this.#message('reserve_metadata_snap', 'foreign')
      case 'foreignRelease':
        if (this.#holder !== 'foreign' || !this.#space.pool) return
        told('somebody else releases what is theirs')
        return this.#message('release_metadata_snap', 'foreign')
      case 'steal':
        // (No look is followed by its message so fast that nobody could come between: that race is the kernel's interface.)
        if (this.#holder !== 'ours' || !this.#space.pool || (this.#keepers.alive.length > 0 && !this.#scheduler.isIdle))
          return
        told('somebody else releases ours')
        return this.#message('release_metadata_snap', 'foreign')
      case 'write':
        return finish(this.#write(a))
      case 'wait':
        return void this.#pass(1500)
      case 'waitSome':
        return this.#pass(GRACE_MS + 2 * WATCH_MS)
      case 'quiet':
        return
      case 'fill':
        // (Not between a look and the message that it is for: nobody can notice.)
        if (!scheduler.isIdle) return
        told('metadata gets scarce')
        return finish(this.#fill(a))
      case 'waitLong':
        told('a minute goes by')
        return this.#pass(HOLD_MS + GRACE_MS + WATCH_MS)
      case 'killAgent':
        told('the agent is killed')
        return this.#killAgent()
      case 'startAgent':
        if (!this.#leases) told('an agent is started')
        return this.#startAgent()
      case 'killKeeper': {
        const [keeper] = this.#keepers.alive
        if (!keeper) return
        told('the keeper is killed')
        this.#isOrphaned = true
        return this.#keepers.kill(keeper)
      }
      case 'killBoth':
        told('agent and keeper are killed')
        this.#isOrphaned = true
        this.#keepers.killAll()
        return this.#killAgent()
      case 'powerOn':
        return finish(this.#machine.activatePool(this.#space))
      case 'powerCut':
      case 'powerOff':
        told('the power goes')
        this.#isOrphaned = true
        this.#keepers.killAll()
        this.#killAgent()
        this.#keepers.notes.powerCut(() => this.#scheduler.random.chance(0.5))
        finish(this.#machine.powerCut())
        if (kind === 'powerOff') finish(this.#machine.deactivatePool(this.#space))
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

  /** Snapshots, each with something of its own, until few metadata blocks are free. */
  *#fill(a: number): Steps {
    const [volume] = this.#machine.volumes
    const { pool } = this.#space
    const total = pool?.disk.blocks ?? 0
    const few = wantedBlocks({ totalMetadataBlocks: total }, headroom) / 2
    // (In 64, LVM's own messages would not find room.)
    if (total !== 160) return
    this.#machine.activate(volume)
    for (let i = 0; pool && pool.freeMetadata >= few - 1 && i < 100; i++) {
      yield* this.#machine.snapshot(volume, `f${this.#scheduler.turn}-${i}`, true)
      yield* this.#machine.write(volume, [(a + i * 7) % 600], false)
      yield* this.#machine.commit(this.#space)
    }
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
    if (!isRelease && by === 'foreign') this.#isIndistinct = this.#stolenAt !== undefined && this.#looksLikeOurs()
    if (isRelease && by === 'ours' && this.#holder === 'foreign' && !this.#isIndistinct) {
      this.#violation ??= "a metadata snapshot was released that is somebody else's"
    }
    if (isRelease && by === 'foreign' && this.#holder === 'ours') this.#stolenAt = this.#scheduler.now
    if (by === 'ours') this.#stolenAt = undefined
    if (by === 'ours' && !isRelease) this.#isOrphaned = false
    this.#holder = isRelease ? 'nobody' : by
  }

  /** Whether what is held is where the record says that ours is, and holds the same. */
  #looksLikeOurs(): boolean {
    const [record] = catalogCalls(this.#catalog).leases.list()
    const { disk, heldRoot } = this.#space.pool!
    const { time, transactionId, mappingRoot, detailsRoot } = decodeSuperblock(disk.read(heldRoot), heldRoot)
    const facts = poolFacts({ time, transactionId: BigInt(transactionId), mappingRoot, detailsRoot })
    return record?.heldRoot === heldRoot && record.factsHeld === facts
  }

  #acquire(): void {
    const uuid = this.#space.devices.at(-1)?.uuid
    if (uuid === undefined) return
    const leases = this.#leases
    leases?.acquire({ uuid }, { purpose: 'a life', waitMs: 0 }).then(
      (lease) => {
        this.#count('held')
        if (leases !== this.#leases) return
        if (this.#holder !== 'ours' && this.#stolenAt === undefined)
          this.#violation ??= 'a lease was given of what is not held'
        const [record] = catalogCalls(this.#catalog).leases.list()
        if (this.#holder === 'ours' && record?.state === 'reserving')
          this.#violation ??= 'a lease was given that is not on record as held'
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
