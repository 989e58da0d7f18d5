/**
 * A life of the world of owned pools: an agent that makes a pool, volumes and snapshots, and everybody who dies meanwhile, fails, changes
 * the pool beside it, or brings back an earlier day. What the agent has said to be there has to be there, as it was; and where its catalog
 * and the kernel disagree at the end, it has to say so.
 */
import { Random } from '../../support/random.ts'
import { catalogCalls } from '../../../src/agent/catalog/calls.ts'
import type { CatalogDatabase } from '../../../src/agent/catalog/database.ts'
import {
  type CatalogView,
  intentsTable,
  type OwnedThin,
  poolsTable,
  thinsTable
} from '../../../src/agent/catalog/owned-pools.ts'
import { thinUuid } from '../../../src/agent/node/naming.ts'
import type { DescribedThin } from '../../../src/agent/owned-pools/description.ts'
import { DeltamapperError } from '../../../src/errors.ts'
import type { Action, Life, LifeResult } from './life.ts'
import { weighted } from './life.ts'
import { type CallFault, type Ill, type OwnedAgent, startOwnedAgent } from './owned-agent.ts'
import { BLOCK_BYTES, BLOCK_SECTORS, OwnedMachine, row } from './owned-machine.ts'
import { goOn } from './going-on.ts'
import { Scheduler } from './scheduler.ts'

/** What anybody may do who minds the rules. */
const calm = {
  ...{ write: 8, createVolume: 4, createSnapshot: 8, deleteSnapshot: 2, deleteVolume: 0.5, grow: 2 },
  ...{ activate: 1, deactivate: 1, reactivate: 1, commit: 2, check: 1, quiet: 3 }
} as const

const weights = {
  ...calm,
  killAgent: 3,
  startAgent: 5,
  powerCut: 1,
  fault: 3,
  commitFails: 0.7,
  foreignThin: 1,
  foreignDelete: 1,
  foreignReplace: 1.5,
  foreignTransaction: 0.7,
  foreignDevice: 1,
  foreignTable: 1,
  foreignSuspend: 1,
  foreignRemove: 1,
  foreignRename: 0.7,
  foreignPoolName: 0.5,
  copyCatalog: 1,
  catalogBack: 1,
  copyDisks: 1,
  disksBack: 1,
  accept: 1,
  adopt: 1,
  forget: 1,
  recreatePool: 0.7
} as const

type Kind = keyof typeof weights
type CalmKind = keyof typeof calm
type ForeignKind = Extract<Kind, `foreign${string}`>

const isCalmKind = (kind: Kind): kind is CalmKind => kind in calm
const isForeign = (kind: Kind): kind is ForeignKind => kind.startsWith('foreign')
/** What leaves nothing to be told at the end. */
const isOwnDoing = (kind: Kind): boolean => isCalmKind(kind) || ['killAgent', 'startAgent', 'powerCut'].includes(kind)
const wild = (Object.keys(weights) as Kind[]).filter((kind) => !isCalmKind(kind))
const faults: readonly CallFault[] = ['refused', 'helper dies before', 'helper dies after', 'hangs']

const MOST_TURNS = 20_000
const LEAST_BLOCKS = 4

export function ownedLifeOf(seed: number): Life {
  const random = new Random(seed)
  const isCalm = random.chance(0.15)
  // Much that happens hides something else that could have: most lives are about two things.
  const about = random.chance(0.7) ? [random.pick(wild), random.pick(wild)] : undefined
  const chosen = isCalm ? calm : about ? { ...calm, startAgent: 3, [about[0]]: 6, [about[1]]: 6 } : weights
  const kinds = Object.entries(chosen) as [Kind, number][]
  const actions = Array.from({ length: random.integer(6, 40) }, () => ({
    kind: weighted(random, kinds),
    numbers: [random.uint32(), random.uint32(), random.uint32(), random.uint32()] as const
  }))
  return { world: 'owned', seed, actions, isCalm }
}

export async function liveOwned(life: Life, catalog: CatalogDatabase, tells: boolean): Promise<LifeResult> {
  const world = new OwnedWorld(life, catalog, tells)
  const violation = await world.run()
  world.forget()
  return { violation, story: world.story, turns: world.turns, outcomes: world.outcomes }
}

/** What tells a thin device from all others. */
type Identity = Pick<OwnedThin, 'thinId' | 'creationTime'> & { readonly transactionId: bigint | string | number }

function keyOf({ thinId, creationTime, transactionId }: Identity): string {
  return `${thinId}/${creationTime}/${transactionId}`
}

/** A volume or snapshot of which the agent has said that it is there. */
interface Promised {
  readonly name: string
  readonly thinId: number
  /** Of a snapshot. */
  readonly content: Int32Array | undefined
}

class OwnedWorld {
  readonly story: string[] = []
  readonly outcomes = new Map<string, number>()
  readonly #life: Life
  readonly #tells: boolean
  readonly #scheduler: Scheduler
  readonly #machine: OwnedMachine
  readonly #catalog: CatalogDatabase
  readonly #pool: string
  readonly #ill: Ill
  /** By what tells them apart; what was asked to be deleted is not there any more. */
  readonly #promised = new Map<string, Promised>()
  /** What was asked to be deleted, maybe before the call that made it was answered. */
  readonly #deleted = new Set<string>()
  #agent: OwnedAgent | undefined
  #agents = 0
  #names = 0
  /** Calls of the agent's users that are not answered yet. */
  #open = 0
  #violation: string | undefined
  #catalogCopy: CatalogView | undefined
  #disksCopy: { metadata: ReadonlyMap<number, Buffer>; data: Int32Array; promised: [string, Promised][] } | undefined

  constructor(life: Life, catalog: CatalogDatabase, tells: boolean) {
    this.#life = life
    this.#tells = tells
    this.#catalog = catalog
    this.#pool = `p${life.seed}`
    this.#scheduler = new Scheduler(new Random(life.seed ^ 0x0b1))
    this.#machine = new OwnedMachine(this.#scheduler)
    this.#ill = {
      faults: [],
      onForeign: (what) => (this.#violation ??= `somebody else's device was changed: ${what}`)
    }
  }

  get turns(): number {
    return this.#scheduler.turn
  }

  async run(): Promise<string | undefined> {
    const scheduler = this.#scheduler
    try {
      void this.#startAgent()
      await this.#quiet()
      const made = this.#createPool()
      await this.#quiet()
      if (!(await made)) return this.#violation ?? 'the pool cannot be made'
      for (let next = 0; scheduler.turn < MOST_TURNS; await scheduler.settle()) {
        if (this.#violation !== undefined) return this.#violation
        const action = this.#life.actions.at(next)
        if (!action && this.#isQuiet) break
        const mayAct = action && (action.kind !== 'quiet' || this.#isQuiet)
        if (mayAct && (this.#isQuiet || scheduler.random.chance(0.05))) {
          next++
          this.#perform(action)
        } else if (!(await this.#goOn())) break
      }
      return this.#violation ?? (await this.#end())
    } catch (error) {
      return `the world broke: ${(error as Error).stack}`
    }
  }

  /** Whatever went wrong is over: the agent starts once more, and looks. */
  async #end(): Promise<string | undefined> {
    this.#ill.faults.length = 0
    this.#killAgent()
    void this.#startAgent()
    await this.#quiet()
    if (this.#onRecord.pools.length > 0) {
      void this.#call('activatePool', ({ pools }) => pools.activatePool({ pool: this.#pool, withVolumes: false }))
      await this.#quiet()
    }
    let findings: readonly { kind: string; thinId?: number }[] = []
    const name = this.#onRecord.pools.length > 0 ? this.#pool : ''
    void this.#call('check', async ({ pools }) => ({ findings } = await pools.reconcile({ pool: name })))
    await this.#quiet()
    const [finding] = findings
    // Nobody but the agent had a hand in it: what it had begun is done, or undone.
    if (finding && this.#life.actions.every(({ kind }) => isOwnDoing(kind as Kind))) {
      this.#violation ??= `the agent cannot tell what became of what it had begun: ${finding.kind}`
    }
    return this.#violation ?? this.#leftBehind() ?? this.#lost() ?? this.#disagreement(findings)
  }

  // What must hold

  /** Devices of the agent's that nobody is at work on any more. */
  #leftBehind(): string | undefined {
    const { pools, thins } = this.#onRecord
    const known = new Set([`DELTAMAPPER-pool-${this.#pool}`, ...thins.map(thinUuid)])
    if (pools.length === 0) return undefined
    for (const device of this.#machine.devices) {
      if (!known.has(device.uuid)) continue
      if (device.isSuspended) return `${device.name} is left suspended`
      if (device.loaded) return `a table is left loaded in ${device.name}`
      if (!device.live) return `${device.name} is left without a table`
    }
    return undefined
  }

  /** What was promised and is not in the pool, or not as it was. */
  #lost(): string | undefined {
    const pool = this.#machine.target?.pool
    if (!pool) return undefined
    for (const [key, { name, thinId, content }] of this.#promised) {
      if (!pool.has(thinId) || keyOf({ thinId, ...pool.detailsOf(thinId) }) !== key) return `${name} is lost`
      if (!content) continue
      const now = this.#machine.contentOf(thinId)
      const block = content.findIndex((version, i) => now[i] !== version)
      if (block >= 0)
        return `block ${block} of snapshot ${name} holds ${now[block]}, and was taken with ${content[block]}`
    }
    return undefined
  }

  /** Where catalog and kernel disagree, and the agent does not say so. */
  #disagreement(findings: readonly { kind: string; thinId?: number }[]): string | undefined {
    const { pools, thins, intents } = this.#onRecord
    const [pool] = pools
    const kernel = this.#machine.target?.pool
    const ofPool = findings.some(({ thinId }) => thinId === undefined)
    if (!pool) return kernel && !ofPool ? 'a pool is active that is not on record, and nothing says so' : undefined
    if (ofPool) return undefined
    if (!kernel) return 'the pool is not active, and nothing says so'
    if (intents.length > 0 && findings.length === 0) return `${intents[0].kind} is not finished, and nothing says so`
    if (intents.length > 0) return undefined
    if (pool.transactionId !== BigInt(kernel.transactionId)) return 'transaction ids differ, and nothing says so'
    const said = new Set(findings.map(({ thinId }) => thinId))
    for (const thinId of kernel.ids) {
      const thin = thins.find((each) => each.thinId === thinId)
      if (said.has(thinId)) continue
      if (!thin) return `thin device ${thinId} is not on record, and nothing says so`
      if (keyOf(thin) !== keyOf({ thinId, ...kernel.detailsOf(thinId) })) {
        return `thin device ${thinId} is not ${thin.name} that is on record, and nothing says so`
      }
      const device = this.#machine.thins.find(
        ({ live }) => live.thin.id === thinId && live.row.lengthSectors * 512 !== thin.sizeBytes
      )
      if (device) return `${device.name} has another size than ${thin.name} on record, and nothing says so`
      const beyond = this.#beyond(thin)
      if (beyond !== undefined) return `${thin.name} has data in block ${beyond}, beyond its end, and nothing says so`
    }
    const missing = thins.find(({ thinId }) => !kernel.has(thinId) && !said.has(thinId))
    return missing && `${missing.name} is on record, and not in the pool, and nothing says so`
  }

  /** A block behind the end that holds something: it would be missing from backups. */
  #beyond({ thinId, sizeBytes }: Pick<OwnedThin, 'thinId' | 'sizeBytes'>): number | undefined {
    const block = this.#machine.contentOf(thinId).findLastIndex((version) => version !== 0)
    return block * BLOCK_BYTES >= sizeBytes ? block : undefined
  }

  // What goes on

  get #onRecord(): CatalogView {
    const { pools, thins, intents } = catalogCalls(this.#catalog).ownedPools.view()
    const ofPool = <T extends { pool: string }>(rows: readonly T[]) => rows.filter(({ pool }) => pool === this.#pool)
    return { pools: pools.filter(({ name }) => name === this.#pool), thins: ofPool(thins), intents: ofPool(intents) }
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

  #tell(what: string): void {
    if (this.#tells) this.story.push(`${String(this.#scheduler.turn).padStart(6)}  ${what}`)
  }

  #perform({ kind, numbers }: Action): void {
    const chosen = kind as Kind
    if (isForeign(chosen)) return this.#performForeign(chosen, numbers)
    if (isCalmKind(chosen)) return this.#performCalm(chosen, numbers)
    this.#performWild(chosen, numbers)
  }

  #performCalm(kind: CalmKind, [a, b]: Action['numbers']): void {
    const pool = this.#pool
    const machine = this.#machine
    const { thins } = this.#onRecord
    const of = (wanted: OwnedThin['kind']) =>
      pick(
        thins.filter((each) => each.kind === wanted),
        a
      )
    const [volume, snapshot] = [of('volume'), of('snapshot')]
    switch (kind) {
      case 'write': {
        const device = pick(machine.thins, a)
        if (!device) return
        // (What others write behind the end that a volume has on record, nobody can notice once their device is gone.)
        const most = device.uuid.startsWith('DELTAMAPPER-') ? 12 : LEAST_BLOCKS
        const blocks = Array.from({ length: 1 + (b % 3) }, (_, i) => ((b >>> 4) + i * 3) % most)
        this.#tell(`blocks ${blocks.join(', ')} of ${device.name} are written`)
        for (const block of blocks) machine.write(device, block)
        // A snapshot that somebody writes to holds what they have written.
        for (const [key, each] of this.#promised) {
          if (each.thinId === device.live.thin.id) this.#promised.set(key, { ...each, content: undefined })
        }
        return
      }
      case 'createVolume': {
        const [name, sizeBytes] = [`v${++this.#names}`, (LEAST_BLOCKS + (b % 6)) * BLOCK_BYTES]
        this.#tell(`volume ${name} is asked for`)
        return void this.#create(({ pools }) => pools.createVolume({ pool, name, sizeBytes, inactive: b % 5 === 0 }))
      }
      case 'createSnapshot': {
        const origin = pick(thins, a)
        if (!origin) return
        const name = `s${++this.#names}`
        this.#tell(`snapshot ${name} of ${origin.name} is asked for`)
        return void this.#create(({ pools }) => pools.createSnapshot({ pool, origin: origin.name, name }), origin)
      }
      case 'deleteSnapshot':
        if (snapshot) this.#delete(snapshot, ({ pools }) => pools.deleteSnapshot({ pool, name: snapshot.name }))
        return
      case 'deleteVolume':
        if (volume) this.#delete(volume, ({ pools }) => pools.deleteVolume({ pool, name: volume.name }))
        return
      case 'grow': {
        const sizeBytes = (volume?.sizeBytes ?? 0) + (1 + (b % 3)) * BLOCK_BYTES
        if (!volume || sizeBytes > 16 * BLOCK_BYTES) return
        this.#tell(`${volume.name} is to be grown to ${sizeBytes / BLOCK_BYTES} blocks`)
        return void this.#call('grow', ({ pools }) => pools.growVolume({ pool, name: volume.name, sizeBytes }))
      }
      case 'activate': {
        const thin = pick(thins, a)
        if (!thin) return
        const writable = thin.kind === 'volume'
        this.#tell(`${thin.name} is activated`)
        return void this.#call('activate', ({ pools }) => pools.activateVolume({ pool, name: thin.name, writable }))
      }
      case 'deactivate': {
        const thin = pick(thins, a)
        if (!thin) return
        this.#tell(`${thin.name} is deactivated`)
        return void this.#call('deactivate', ({ pools }) => pools.deactivateVolume({ pool, name: thin.name }))
      }
      case 'reactivate':
        this.#tell('the pool is deactivated, and activated')
        return void this.#reactivate()
      case 'commit':
        return void machine.commit()
      case 'check':
        return void this.#call('check', ({ pools }) => pools.reconcile({ pool }))
      case 'quiet':
        return
    }
  }

  #performWild(kind: Exclude<Kind, CalmKind | ForeignKind>, [a, b, c]: Action['numbers']): void {
    const pool = this.#pool
    const machine = this.#machine
    switch (kind) {
      case 'killAgent':
        this.#tell('the agent is killed')
        return this.#killAgent()
      case 'startAgent':
        if (this.#agent) return
        this.#tell('an agent is started')
        return void this.#startAgent()
      case 'powerCut':
        this.#tell('the power goes')
        this.#killAgent()
        machine.powerCut()
        void this.#startAgent()
        return void this.#activatePool()
      case 'fault': {
        const fault = faults[a % faults.length]
        this.#tell(`call ${b % 5} from now on: ${fault}`)
        this.#ill.faults[b % 5] = fault
        return
      }
      case 'commitFails':
        this.#tell('the next commit fails')
        machine.commitFails = true
        return
      case 'copyCatalog':
        this.#tell('the catalog is copied')
        this.#catalogCopy = this.#onRecord
        return
      case 'catalogBack':
        if (!this.#catalogCopy) return
        this.#tell('the catalog is what it was when it was copied')
        this.#killAgent()
        this.#replaceCatalog(this.#catalogCopy)
        return void this.#startAgent()
      case 'copyDisks':
      case 'disksBack':
        return void this.#disks(kind)
      case 'accept':
        this.#tell('the pool is accepted as it is')
        return void this.#call('accept', ({ pools }) => pools.acceptKernel({ pool }))
      case 'adopt': {
        const known = new Set(this.#onRecord.thins.map(({ thinId }) => thinId))
        const thinId = pick(machine.target?.pool.ids.filter((id) => !known.has(id)) ?? [], a)
        if (thinId === undefined) return
        const [name, sizeBytes] = [`a${++this.#names}`, (1 + (b % 12)) * BLOCK_BYTES]
        const origin = c % 2 === 0 ? '' : (pick(this.#onRecord.thins, c)?.name ?? '')
        this.#tell(`thin device ${thinId} is adopted as ${name}, with ${sizeBytes / BLOCK_BYTES} blocks`)
        return void this.#call('adopt', ({ pools }) => pools.adoptThin({ pool, thinId, name, sizeBytes, origin }))
      }
      case 'forget': {
        const thin = pick(this.#onRecord.thins, a)
        if (!thin) return
        this.#tell(`${thin.name} is to be forgotten`)
        return void this.#call('forget', ({ pools }) => pools.forgetThin({ pool, name: thin.name, unseen: false }))
      }
      case 'recreatePool':
        this.#tell('the pool is removed and wiped, and made again')
        return void this.#recreatePool()
    }
  }

  /** What others do to the pool and its devices, without the agent. */
  #performForeign(kind: ForeignKind, [a, b]: Action['numbers']): void {
    const machine = this.#machine
    const device = machine.poolDevice
    const pool = device?.live?.target?.pool
    const thin = pick(machine.thins, a)
    const send = async (text: string) => {
      this.#tell(`somebody sends ${text}`)
      if (device) await machine.message(device, text)
    }
    const foreign = (act: () => Promise<unknown>) => {
      this.#scheduler.io(machine.kernel, () => act().catch(() => undefined)).catch(() => undefined)
    }
    switch (kind) {
      case 'foreignThin': {
        const origin = pick(pool?.ids ?? [], a)
        const id = b % 3 === 0 ? 50 + (b % 7) : Math.max(-1, ...(pool?.ids ?? [])) + 1
        return foreign(() =>
          send(origin === undefined || b % 2 === 0 ? `create_thin ${id}` : `create_snap ${id} ${origin}`)
        )
      }
      case 'foreignDelete': {
        const id = b % 2 === 0 ? pool?.ids.at(-1) : pick(pool?.ids ?? [], a)
        if (id === undefined) return
        return foreign(async () => {
          if (pool?.has(id)) this.#deleted.add(keyOf({ thinId: id, ...pool.detailsOf(id) }))
          for (const [key, { thinId }] of this.#promised) if (thinId === id) this.#promised.delete(key)
          await send(`delete ${id}`)
        })
      }
      case 'foreignReplace': {
        // Its id is used again.
        const id = pick(pool?.ids.filter((each) => !machine.thins.some(({ live }) => live.thin.id === each)) ?? [], a)
        if (id === undefined || !pool) return
        return foreign(async () => {
          this.#deleted.add(keyOf({ thinId: id, ...pool.detailsOf(id) }))
          for (const [key, { thinId }] of this.#promised) if (thinId === id) this.#promised.delete(key)
          await send(`delete ${id}`)
          await send(`create_thin ${id}`)
        })
      }
      case 'foreignTransaction': {
        const now = pool?.transactionId ?? 0
        return foreign(() => send(`set_transaction_id ${now} ${now + 1}`))
      }
      case 'foreignDevice': {
        const id = pick(pool?.ids ?? [], a)
        if (id === undefined || !device) return
        this.#tell(`somebody makes a device of thin device ${id}`)
        return foreign(async () => {
          const made = machine.create(`other-${++this.#names}`, b % 2 === 0 ? '' : `OTHER-${this.#names}`)
          const { major, minor } = device.number
          machine.load(made, row(16 * BLOCK_SECTORS, 'thin', `${major}:${minor} ${id}`))
          await machine.resume(made)
        })
      }
      case 'foreignTable':
        if (!thin) return
        this.#tell(`somebody loads a table into ${thin.name}`)
        return foreign(async () => {
          machine.load(thin, { ...thin.live.row, lengthSectors: (1 + (b % 16)) * BLOCK_SECTORS })
        })
      case 'foreignSuspend':
        if (!thin) return
        this.#tell(`somebody suspends ${thin.name}`)
        return foreign(() => machine.suspend(thin))
      case 'foreignRemove':
        if (!thin) return
        this.#tell(`somebody removes ${thin.name}`)
        return foreign(() => machine.remove(thin))
      case 'foreignRename':
        if (!thin) return
        this.#tell(`somebody renames ${thin.name}`)
        thin.name = `renamed-${++this.#names}`
        return
      case 'foreignPoolName':
        this.#tell('somebody makes a device of the name of the pool')
        return foreign(async () => {
          const made = machine.create(this.#pool, '')
          machine.load(made, row(128, 'linear', '8:0 0'))
          await machine.resume(made)
        })
    }
  }

  // Calls

  async #createPool(): Promise<boolean> {
    return this.#call('createPool', ({ pools }) =>
      pools.createPool({
        ...{ name: this.#pool, metadataDevice: '/dev/mapper/disk-meta', dataDevice: '/dev/mapper/disk-data' },
        ...{ blockBytes: BLOCK_BYTES, whenFull: 'error' }
      })
    )
  }

  async #recreatePool(): Promise<void> {
    const pool = this.#pool
    if (!(await this.#call('removePool', ({ pools }) => pools.removePool({ pool, wipe: true })))) return
    await this.#createPool()
  }

  async #activatePool(): Promise<void> {
    await this.#call('activatePool', ({ pools }) => pools.activatePool({ pool: this.#pool, withVolumes: true }))
  }

  async #deactivatePool(): Promise<boolean> {
    return this.#call('deactivatePool', ({ pools }) => pools.deactivatePool({ pool: this.#pool, withVolumes: true }))
  }

  async #reactivate(): Promise<void> {
    if (await this.#deactivatePool()) {
      // (thin_check --clear-needs-check-flag, which somebody runs meanwhile.)
      this.#machine.needsCheck = false
    }
    await this.#activatePool()
  }

  /** A copy of the disks is made, or put back, while nothing uses them. */
  async #disks(kind: 'copyDisks' | 'disksBack'): Promise<void> {
    const { metadata, data } = this.#machine
    this.#tell(kind === 'copyDisks' ? 'the disks are copied' : 'the disks are what they were when they were copied')
    if ((await this.#deactivatePool()) && !this.#machine.target) {
      if (kind === 'copyDisks') {
        this.#disksCopy = { metadata: metadata.image(), data: data.image(), promised: [...this.#promised] }
      } else if (this.#disksCopy) {
        metadata.restore(this.#disksCopy.metadata)
        data.restore(this.#disksCopy.data)
        // What was made since is gone, and what was deleted is back.
        const copied = new Set(this.#disksCopy.promised.map(([key]) => key))
        for (const key of this.#promised.keys()) if (!copied.has(key)) this.#promised.delete(key)
      }
    }
    await this.#activatePool()
  }

  /** @param origin what a snapshot is to be of */
  async #create(ask: (agent: OwnedAgent) => Promise<DescribedThin>, origin?: OwnedThin): Promise<void> {
    let made: DescribedThin | undefined
    const askedAt = this.#scheduler.turn
    if (!(await this.#call('create', async (agent) => (made = await ask(agent)))) || !made) return
    const { thinId, name } = made
    const born = this.#machine.born.get(keyOf(made))
    this.#count('well')
    if (!born) {
      this.#violation ??= `${name} was said to be thin device ${keyOf(made)}, which was not made`
      return
    }
    // Others have deleted it since, and what has its id, time and transaction now may be theirs.
    if (this.#deleted.has(keyOf(made))) return
    if (origin && born.writableSince < askedAt)
      this.#violation ??= `${origin.name} could be written to while ${name} was taken`
    if (origin && born.origin !== keyOf(origin)) {
      this.#violation ??= `${name} was taken of thin device ${born.origin}, and ${origin.name} is ${keyOf(origin)}`
    }
    this.#promised.set(keyOf(made), { name, thinId, content: origin && born.content })
    const beyond = born.content.findLastIndex((version) => version !== 0)
    if (beyond * BLOCK_BYTES >= made.sizeBytes) {
      this.#violation ??= `snapshot ${name} ends before block ${beyond}, which holds something`
    }
  }

  #delete(thin: OwnedThin, ask: (agent: OwnedAgent) => Promise<unknown>): void {
    this.#tell(`${thin.name} is to be deleted`)
    if (!this.#agent) return
    this.#promised.delete(keyOf(thin))
    this.#deleted.add(keyOf(thin))
    void this.#call('delete', ask)
  }

  async #startAgent(): Promise<void> {
    if (this.#agent) return
    const agent = startOwnedAgent(`agent ${++this.#agents}`, this.#machine, this.#catalog, this.#ill)
    this.#agent = agent
    await this.#call('start', ({ pools }) => pools.start())
  }

  #killAgent(): void {
    if (!this.#agent) return
    this.#scheduler.kill(this.#agent.owner)
    this.#agent = undefined
    // Nobody answers them any more.
    this.#open = 0
  }

  /** Asks the agent, if there is one. @returns whether that was answered well */
  async #call(what: string, ask: (agent: OwnedAgent) => Promise<unknown>): Promise<boolean> {
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
      if (code === 'a defect' || code === 'DM_INTERNAL') this.#violation ??= `${what} broke: ${(error as Error).stack}`
      else if (this.#life.isCalm && !expected.has(code)) this.#violation ??= `${what} was refused with ${code}`
      return false
    } finally {
      if (agent === this.#agent) this.#open--
    }
  }

  // The catalog

  #replaceCatalog({ pools, thins, intents }: CatalogView): void {
    this.forget()
    this.#catalog.write(() => {
      for (const each of pools) poolsTable.insert(this.#catalog, each)
      for (const each of thins) thinsTable.insert(this.#catalog, each)
      for (const each of intents) intentsTable.insert(this.#catalog, { ...noDetails, ...each, startedAt: 0 })
    })
  }

  /** What this life has left in the catalog. */
  forget(): void {
    this.#killAgent()
    const { pools, thins } = this.#onRecord
    this.#catalog.write(() => {
      const pending = intentsTable.get(this.#catalog, { pool: this.#pool })
      if (pending) intentsTable.delete(this.#catalog, [pending])
      for (const { id } of thins) thinsTable.delete(this.#catalog, [thinsTable.get(this.#catalog, { id })!])
      for (const { name } of pools) poolsTable.delete(this.#catalog, [poolsTable.get(this.#catalog, { name })!])
    })
  }

  #count(what: string): void {
    this.outcomes.set(what, (this.outcomes.get(what) ?? 0) + 1)
  }
}

/** Refusals that are right where nobody breaks a rule: somebody was quicker. */
const expected: ReadonlySet<string> = new Set(['DM_NO_SUCH_DEVICE', 'DM_ARGUMENT_INVALID', 'DM_POOL_INACTIVE'])

const noDetails = {
  ...{ thin: undefined, name: undefined, thinId: undefined, dmName: undefined, sizeBytes: undefined },
  ...{ origin: undefined, suspends: undefined, transactionId: undefined }
}

function pick<T>(items: readonly T[], number: number): T | undefined {
  return items.length === 0 ? undefined : items[number % items.length]
}
