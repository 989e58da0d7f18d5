/**
 * Plots of the thin world: what has to happen in just this order for a guard of the product to be missed, each with room for chance. What
 * they are made of could come about by itself, once in thousands of lives.
 *
 * A plot is done in steps, as everything is: others have their turn in between, but where it says that something is done at once.
 */
import type { Backup, Client, Question } from './client.ts'
import type { DeviceContent } from './content.ts'
import type { Volume } from './group.ts'
import { BLOCK_BYTES, finish, type Machine, type SpaceOf, type Steps } from './machine.ts'

export type Numbers = readonly [number, number, number, number]

/** How a question is asked; all at once, and heard to its end, by default. */
export type Manner = Partial<Pick<Question, 'maxResults' | 'leavesAfter' | 'unfinished'>>

/** What plots need of the world that they are in. */
export interface Stage {
  readonly machine: Machine
  readonly client: Client
  newName(prefix: string): string
  ask(volume: Volume, base: Backup | undefined, manner?: Manner): void
  /** How many questions have not been answered. */
  readonly waiting: number
  /** The agent is killed, and begins anew without its catalog; the client keeps one backup. */
  loseCatalog(but: string): void
  /** The client keeps nothing that the new catalog does not know. */
  catalogIsKnown(): void
  /** From now on, metadata may be called damaged. */
  readsGoWrong(): void
  putBack(asksAtOnce: boolean): Steps
  forgetUnnoticed(): void
}

/** Data blocks that a volume has in full. */
function blocksOf({ sizeBytes }: Pick<Volume, 'sizeBytes'>): number {
  return Math.floor(sizeBytes / BLOCK_BYTES)
}

function range(from: number, count: number, stride = 1): number[] {
  return Array.from({ length: count }, (_, i) => from + i * stride)
}

function pick<T>(items: readonly T[], number: number): T | undefined {
  return items.length === 0 ? undefined : items[number % items.length]
}

export class Plots {
  readonly #stage: Stage
  readonly #machine: Machine

  constructor(stage: Stage) {
    this.#stage = stage
    this.#machine = stage.machine
  }

  /**
   * A base is changed so that as many blocks are mapped as before, and what it was is gone from the volume as well: only its own blocks
   * tell. What hides them is different each time.
   */
  *harm([a, b, c, d]: Numbers): Steps {
    const machine = this.#machine
    const origin = this.#volume(a)
    if (!origin) return
    machine.activate(origin)
    yield* machine.write(origin, range(b % 20, 5 + (c % 5), 1 + (d % 7)), false)
    const base = yield* this.#snapshotOf(origin)
    const backup = base && (yield* this.#backUp(base))
    if (!base?.content || !backup) return
    const [some, none] = [this.#mapped(base, a >>> 4), this.#empty(base, b >>> 4)]
    if (some === undefined || none === undefined) return
    const exchange = () => this.#exchange(base, some, none)
    const variant = d % 6
    if (variant === 0) {
      // Written in place of what was there: nothing else has changed.
      yield* this.#writeTo(base, [some], false)
      yield* machine.commit(base.pool)
      return this.#stage.ask(base, backup)
    }
    if (variant === 1) {
      yield* exchange()
      yield* machine.write(origin, [some], true)
      const target = yield* this.#snapshotOf(c % 2 === 0 ? base : origin)
      if (target) this.#stage.ask(target, backup)
      return
    }
    if (variant === 2) {
      // What is young lies behind the target's end.
      const [low, high] = [Math.min(some, none), Math.max(some, none)]
      if (some !== low) return
      yield* exchange()
      yield* machine.write(origin, [some], true)
      const sizeBytes = origin.sizeBytes
      yield* machine.resize(origin, (low + 1 + (c % (high - low))) * BLOCK_BYTES)
      const target = yield* this.#snapshotOf(origin)
      yield* machine.resize(origin, sizeBytes)
      if (target) this.#stage.ask(target, backup)
      return
    }
    // While it is being answered, or before that is gone on with.
    yield* machine.write(origin, [some], true)
    const target = yield* this.#snapshotOf(origin)
    if (!target) return
    this.#stage.ask(target, backup)
    const { turn } = machine.scheduler
    while (machine.scheduler.turn < turn + (c % 110)) yield
    // Trimmed, it has nothing young: only what it was when it was looked at tells.
    if (variant === 3) return finish(exchange())
    finish(this.#writeTo(base, [some], true))
    finish(machine.commit(base.pool))
  }

  /** An answer ends early; what it is about, or its base, is changed, and it is gone on with. */
  *goOn([a, b, c, d]: Numbers): Steps {
    const machine = this.#machine
    const origin = this.#volume(a)
    if (!origin || blocksOf(origin) < 40) return
    const end = blocksOf(origin)
    machine.activate(origin)
    const last = end - 1 - (b % 5)
    // What comes before is in the same leaf, or in one of its own.
    const first = c % 3 > 0 && end > 330 ? 290 : 4
    if (first > 4) yield* machine.write(origin, range(2, 300), false)
    yield* machine.write(origin, [...range(first, 4, 3), last], false)
    yield* machine.write(origin, [0, 1, ...range(20, 9)], true)
    const base = yield* this.#snapshotOf(origin)
    const backup = base && (yield* this.#backUp(base))
    if (!base || !backup) return
    yield* machine.write(origin, range(first, 4, 3), false)
    yield* machine.write(origin, [last], true)
    const target = yield* this.#snapshotOf(origin)
    if (!target) return
    const handle = this.#handle(target)
    this.#stage.ask(target, c % 2 === 0 ? backup : undefined, { maxResults: 1, leavesAfter: 1 + (c % 3) })
    yield* this.#heard()
    const unfinished = this.#stage.client.unfinished.get(handle)
    if (!unfinished) return
    if (d % 2 === 0) yield* this.#exchange(base, last, b % 2)
    else {
      yield* this.#writeTo(target, [first], false)
      yield* machine.commit(target.pool)
    }
    this.#stage.ask(target, unfinished.base, { unfinished })
  }

  /** Bases that are smaller than what is asked about, or were. */
  *sizes([a, b, c, d]: Numbers): Steps {
    const machine = this.#machine
    const origin = this.#volume(a)
    if (!origin) return
    const whole = origin.content!.blocks * BLOCK_BYTES
    yield* machine.resize(origin, whole)
    machine.activate(origin)
    const count = [10, 60, 300][b % 3]
    yield* machine.write(origin, range(c % 50, count, [1, 2][c % 2]), false)
    const base = yield* this.#snapshotOf(origin)
    if (!base) return
    yield* machine.resize(base, (1 + (b % 30)) * BLOCK_BYTES - (b % 3 === 0 ? BLOCK_BYTES / 2 : 0))
    const backup = yield* this.#backUp(base)
    if (!backup) return
    const variant = d % 3
    if (variant === 0) yield* machine.resize(base, whole)
    if (variant === 1) yield* machine.write(origin, [c % 40], false)
    const target = yield* this.#snapshotOf(variant === 2 ? base : origin)
    if (!target) return
    if (target.sizeBytes !== whole) yield* machine.resize(target, whole)
    this.#stage.ask(target, backup)
  }

  /** A smaller snapshot is merged into a volume in use, whose device keeps its size until the next activation. */
  *merge([a, b, c]: Numbers): Steps {
    const machine = this.#machine
    const origin = this.#volume(a)
    if (!origin || blocksOf(origin) < 20) return
    machine.activate(origin)
    yield* machine.write(origin, range(b % 8, 4), false)
    const snapshot = yield* this.#snapshotOf(origin)
    if (!snapshot) return
    yield* machine.resize(snapshot, (8 + (b % 8)) * BLOCK_BYTES)
    yield* machine.merge(snapshot, true)
    yield* machine.writeBehind(origin, 17 + (c % 3))
    yield* machine.commit(origin.pool)
    this.#stage.ask(origin, undefined)
    yield* this.#heard()
    machine.deactivate(origin)
    machine.activate(origin)
  }

  /** Trees that get a level more, or one less, and lose what they map, above all at their end. */
  *trees([a, b, c, d]: Numbers): Steps {
    const machine = this.#machine
    const origin = this.#volume(a)
    if (!origin || blocksOf(origin) < 320) return
    machine.activate(origin)
    const isShrinking = d % 2 === 0
    yield* machine.write(origin, range(b % 20, 300), !isShrinking)
    if (!isShrinking) yield* machine.write(origin, range(b % 20, 30), false)
    const base = yield* this.#snapshotOf(origin)
    const backup = base && (yield* this.#backUp(base))
    if (!backup) return
    yield* machine.write(origin, range((b % 20) + (c % 60), 300 - (c % 60)), isShrinking)
    const target = yield* this.#snapshotOf(origin)
    if (target) this.#stage.ask(target, backup)
  }

  /** A volume in use is asked about, while writes to it are in memory only. */
  *inUse([a, b, c, d]: Numbers): Steps {
    const machine = this.#machine
    const volume = this.#volume(a)
    if (!volume) return
    machine.activate(volume)
    machine.setReadOnly(volume, false)
    const backup = pick([...this.#stage.client.backups.values()], d)
    finish(machine.write(volume, range(b % 30, 1 + (c % 5)), false))
    this.#stage.ask(volume, d % 2 === 0 ? backup : undefined)
    yield* this.#turns(1 + (c % 4))
  }

  /** What is asked about goes while it is read, and its metadata blocks are used again at once. */
  *reuse([a, b, c, d]: Numbers): Steps {
    const machine = this.#machine
    const origin = this.#volume(a)
    if (!origin || blocksOf(origin) < 260) return
    machine.activate(origin)
    yield* machine.write(origin, range(b % 20, 250 + (c % 10), 1), false)
    const base = yield* this.#snapshotOf(origin)
    const backup = base && (yield* this.#backUp(base))
    if (!backup) return
    yield* machine.write(origin, range((b % 30) + 5, 30 + (c % 200)), false)
    const target = yield* this.#snapshotOf(origin)
    if (!target) return
    this.#stage.ask(target, backup)
    yield* this.#turns(c % 20)
    const gone = d % 3 > 0 ? target : base
    if (d % 2 === 0) finish(machine.remove(gone))
    else {
      finish(this.#writeTo(gone, range(b % 25, 200), d % 4 === 1))
      finish(machine.commit(gone.pool))
    }
    for (let i = 0; i < 60 && this.#stage.waiting > 0; i++) {
      finish(machine.write(origin, range((b + i * 41) % 250, 1 + (i % 40)), i % 5 === 4))
      yield* machine.commit(origin.pool)
      if (!origin.pool.pool) return
    }
  }

  /** Two pools that are easily mistaken for one another: what is done to the one is done to the other. */
  *twins([a, b, c, d]: Numbers): Steps {
    const machine = this.#machine
    const [one, other] = machine.pools
    if (!other || !one.pool || !other.pool) return
    const originOf = (space: SpaceOf) =>
      machine.volumes.find(({ name, pool }) => name.startsWith('v') && pool === space)
    const old = machine.volumes.filter(({ name }) => name.startsWith('s'))
    if (old.length >= 8) for (const volume of old) yield* machine.remove(volume)
    const [backups, targets]: [Backup[], Volume[]] = [[], []]
    for (const isBase of [true, false]) {
      for (const space of machine.pools) {
        const origin = originOf(space)
        if (!origin) return
        machine.activate(origin)
        // Each has something of its own, and as much of it.
        const free = this.#blocks(origin, (content, block) => content.now(block) === 0)
        const first = (space === one ? a : b) % Math.max(1, free.length)
        yield* machine.write(origin, free.slice(first, first + 3 + (c % 3)), false)
        const snapshot = yield* this.#snapshotOf(origin)
        const backup = snapshot && isBase ? yield* this.#backUp(snapshot) : undefined
        if (!snapshot || (isBase && !backup)) return
        if (backup) backups.push(backup)
        else targets.push(snapshot)
      }
    }
    const [target, twin] = targets
    const base = d % 3 === 0 ? undefined : backups[0]
    const variant = c % 4
    if (variant === 0) {
      // Of a snapshot whose volume is gone, nobody knows what it was of.
      const origin = originOf(one)
      if (origin && c % 3 === 0) yield* machine.remove(origin)
      return this.#stage.ask(twin, backups[0])
    }
    if (variant === 1) {
      // The names of two snapshots.
      const named = machine.volumes.find(({ content }) => content === backups[0].content)
      if (!named) return
      this.#stage.ask(target, backups[0])
      for (const pause of [b % 7, (b >>> 4) % 7]) {
        yield* this.#turns(pause)
        finish(machine.trade(named, target))
      }
      return
    }
    if (variant === 2) {
      // The names of the pools, under the agent's hands.
      if (d % 2 === 0) finish(machine.trade(one, other))
      this.#stage.ask(target, base)
      for (const pause of [b % 12, (b >>> 4) % 12]) {
        yield* this.#turns(pause)
        finish(machine.trade(one, other))
      }
      return
    }
    this.#stage.ask(target, base)
    yield* this.#turns(b % 14)
    finish(this.swap([other, one]))
  }

  /** The pools are deactivated, trade their names, and come back, in an order of their own. */
  *swap(order: readonly SpaceOf[]): Steps {
    const machine = this.#machine
    const [one, other] = machine.pools
    let areAway = true
    for (const space of machine.pools) areAway &&= yield* machine.deactivatePool(space)
    if (other && areAway) yield* machine.trade(one, other)
    for (const space of order) yield* machine.activatePool(space)
  }

  /**
   * What is copied, changed, backed up and put back is there twice: under a clock that goes back, or that has caught up by the time that
   * anybody looks, with a device that is there again.
   */
  *wentBack([a, b, , d]: Numbers): Steps {
    const machine = this.#machine
    const origin = this.#volume(a)
    if (!origin) return
    machine.activate(origin)
    const base = yield* this.#snapshotOf(origin)
    yield* machine.write(origin, range(b % 20, 3), false)
    const later = base && (yield* this.#snapshotOf(origin))
    if (!base || !later) return
    yield* machine.copyDisks()
    const some = this.#mapped(base, b)
    if (some === undefined || !machine.image) return
    yield* this.#writeTo(base, [some], false)
    yield* machine.commit(base.pool)
    const backup = yield* this.#backUp(base)
    if (!backup) return
    const catchesUp = d % 2 === 0
    if (catchesUp) yield* machine.remove(later)
    const next = yield* this.#snapshotOf(origin)
    if (!next || !(yield* this.#backUp(next))) return
    yield* this.#stage.putBack(true)
    const now = (volume: Volume) => machine.volumes.find(({ uuid }) => uuid === volume.uuid)
    const [volume, target] = [now(origin), now(later)]
    if (!volume || !target?.content) return this.#stage.forgetUnnoticed()
    if (catchesUp) {
      machine.activate(volume)
      for (let i = 0; i < 4; i++) yield* this.#snapshotOf(volume)
    }
    if (this.#stage.client.backups.has(backup.handle)) this.#stage.ask(target, backup)
    yield* this.#heard()
    this.#stage.forgetUnnoticed()
  }

  /**
   * The catalog is lost. What is asked with a base from before then is answered, as documented, and remembered from then on. Here, the base
   * is harmed after that, or LVM's metadata is put back from its archive, so that the base's name stands for another device.
   */
  *lostCatalog([a, b, c, d]: Numbers): Steps {
    const machine = this.#machine
    const { client } = this.#stage
    const origin = this.#volume(a)
    if (!origin) return
    machine.activate(origin)
    yield* machine.write(origin, range(b % 20, 5 + (c % 5)), false)
    const first = yield* this.#snapshotOf(origin)
    const base = yield* this.#snapshotOf(origin)
    const backup = first && base && (yield* this.#backUp(base))
    if (!base?.content || !backup) return
    const archived = { ...base }
    if (d % 2 === 0) {
      // Its thin id goes to the next one.
      yield* machine.remove(base)
      yield* machine.write(origin, range((b % 20) + 3, 5, 2), false)
    }
    const target = yield* this.#snapshotOf(origin)
    if (!target) return
    yield* this.#heard()
    this.#stage.loseCatalog(backup.handle)
    if (d % 2 === 0) {
      yield* machine.write(origin, range(b % 20, 3), true)
      const newest = yield* this.#snapshotOf(origin)
      if (!newest) return this.#stage.catalogIsKnown()
      const { volumes } = machine
      machine.putBack(archived)
      this.#stage.ask(newest, backup)
      yield* this.#heard()
      machine.volumes = volumes
    } else {
      this.#stage.ask(target, backup)
      yield* this.#heard()
      const some = this.#mapped(base, b)
      // What was not answered is not on record: then nothing is to be noticed.
      if (some === undefined || !client.backups.has(this.#handle(target))) return this.#stage.catalogIsKnown()
      yield* this.#writeTo(base, [some], true)
      yield* machine.commit(base.pool)
      yield* machine.write(origin, [some], true)
      const newest = yield* this.#snapshotOf(origin)
      if (newest) this.#stage.ask(newest, backup)
      yield* this.#heard()
    }
    this.#stage.catalogIsKnown()
  }

  /** Something else comes back of a block than what is in it: a bit of it is wrong, or it is another block. */
  *spoiled([a, b, c, d]: Numbers): Steps {
    const machine = this.#machine
    const origin = this.#volume(a)
    if (!origin || blocksOf(origin) < 40) return
    machine.activate(origin)
    yield* machine.write(origin, range(b % 20, [5, 20, 300][c % 3], 2), false)
    const base = yield* this.#snapshotOf(origin)
    const backup = base && (yield* this.#backUp(base))
    if (!backup) return
    yield* machine.write(origin, range(c % 30, 4, 3), b % 2 === 0)
    const target = yield* this.#snapshotOf(origin)
    if (!target) return
    yield* this.#heard()
    this.#stage.readsGoWrong()
    for (let i = 0; i < 6; i++) this.#spoil(target.pool, [a >>> i, b >>> i, c >>> i, d >>> i])
    this.#stage.ask(target, d % 2 === 0 ? backup : undefined)
    yield* this.#heard()
  }

  #spoil({ disk }: SpaceOf, [a, b, c, d]: Numbers): void {
    const block = pick(disk.written, a)!
    const bytes = Buffer.from(disk.read(block))
    const entries = bytes.readUInt32LE(20)
    if (d % 2 === 0) {
      // Mostly in a key: where it is in order still, nothing but the checksum tells.
      const at = b % 4 > 0 && entries > 0 && entries < 253 ? 32 + 8 * (c % entries) : c % bytes.length
      bytes[at] ^= 1 << ((b >>> 4) % (b % 4 > 0 ? 3 : 8))
      return disk.spoil(block, bytes)
    }
    // One that looks like it is mistaken for it most easily.
    const shape = (each: number) => disk.read(each).toString('latin1', 16, 40)
    const alike = disk.written.filter((each) => each !== block && shape(each) === shape(block))
    disk.spoil(block, disk.read(pick(alike.length > 0 ? alike : disk.written, c)!))
  }

  // What they are made of

  /** A volume that is no snapshot, in a pool that is there. */
  #volume(a: number): Volume | undefined {
    const { volumes } = this.#machine
    return pick(
      volumes.filter(({ name, pool, content }) => name.startsWith('v') && pool.pool && content),
      a
    )
  }

  #handle({ name }: Volume): string {
    return `${this.#machine.group.name}/${name}`
  }

  *#snapshotOf(volume: Volume): Steps<Volume | undefined> {
    const name = this.#stage.newName('s')
    yield* this.#machine.snapshot(volume, name, true)
    const made = this.#machine.volumes.find((each) => each.name === name)
    return made?.content ? made : undefined
  }

  /** @returns undefined where that was refused, or came to nothing */
  *#backUp(volume: Volume): Steps<Backup | undefined> {
    yield* this.#heard()
    this.#stage.ask(volume, undefined)
    yield* this.#heard()
    const backup = this.#stage.client.backups.get(this.#handle(volume))
    return backup && backup.content === volume.content ? backup : undefined
  }

  /** Until all questions were answered. */
  *#heard(): Steps {
    while (this.#stage.waiting > 0) yield
  }

  *#turns(count: number): Steps {
    for (let i = 0; i < count; i++) yield
  }

  /** A block goes and another comes: as many are mapped as before. */
  *#exchange(volume: Volume, some: number, none: number): Steps {
    yield* this.#writeTo(volume, [some], true)
    yield* this.#writeTo(volume, [none], false)
    yield* this.#machine.commit(volume.pool)
    this.#machine.deactivate(volume)
  }

  *#writeTo(volume: Volume, blocks: readonly number[], discard: boolean): Steps {
    this.#machine.setReadOnly(volume, false)
    this.#machine.activate(volume)
    yield* this.#machine.write(volume, blocks, discard)
  }

  #mapped(volume: Volume, number: number): number | undefined {
    return pick(
      this.#blocks(volume, (content, block) => content.now(block) !== 0),
      number
    )
  }

  #empty(volume: Volume, number: number): number | undefined {
    return pick(
      this.#blocks(volume, (content, block) => content.now(block) === 0),
      number
    )
  }

  #blocks(volume: Volume, isWanted: (content: DeviceContent, block: number) => boolean): number[] {
    const { content } = volume
    return content ? range(0, blocksOf(volume)).filter((block) => isWanted(content, block)) : []
  }
}
